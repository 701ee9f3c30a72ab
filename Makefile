# make demo    sets everything up and shows the main job on a real database
# make test    sets everything up and runs every test
# make test-openstack    runs the tests on real OpenStack services, which it starts if they are not up
# make openstack-up      installs and starts these services on this machine; make openstack-down [PURGE=1] stops them
# make faults  breaks broker, store, disk and clock for a minute each; SEEDS=n for more
# make lint    ruff, mypy, import contracts
# make crash   kills real processes at every boundary of every operation, and prints what was lost, doubled or stuck
# make crash-openstack   the same on real OpenStack services
# make bench   prints the figures, each with its ratio
# make bench-openstack   the same of a create on real OpenStack services
# make simulate SEEDS=1000 [SEED=n [TRACE=1]] [HOURS=h]    simulates by seeds, or replays one
# make docs    writes the generated pages of docs/ again
# make lock    resolves the dependencies again into requirements*.lock

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LAB := tests/openstack/lab
# Needs uv (pipx install uv); only whoever changes dependencies does.
LOCK := uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --no-annotate --quiet

.PHONY: setup demo test test-openstack openstack-up openstack-down faults crash crash-openstack lint bench bench-openstack simulate docs mariadb lock clean
.DEFAULT_GOAL := setup

setup: $(VENV)/.ready

$(VENV)/.ready: requirements-dev.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Holdfast needs Python 3.11 or newer; say make PYTHON=python3.x")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements-dev.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: setup mariadb
	$(BIN)/pytest -n 3 --dist worksteal

test-openstack: setup
	$(LAB)/with.sh $(BIN)/pytest tests/openstack

openstack-up: setup
	$(LAB)/install.sh
	$(LAB)/up.sh

openstack-down:
	$(LAB)/down.sh $(if $(PURGE),--purge)

faults: setup
	HOLDFAST_FAULT_SECONDS=60 HOLDFAST_FAULT_SEEDS=$(or $(SEEDS),1) $(BIN)/pytest tests/faults --timeout 600

demo: setup
	$(BIN)/holdfast demo

crash: setup
	$(BIN)/python -m tests.crash $(CRASH)

crash-openstack: setup
	$(LAB)/with.sh $(BIN)/python -m tests.openstack.crash $(CRASH)

bench: setup mariadb
	$(BIN)/python -m tests.benchmarks

bench-openstack: setup
	$(LAB)/with.sh $(BIN)/python -m tests.openstack.benchmark

simulate: setup
	$(BIN)/python -m tests.simulation --seeds $(or $(SEEDS),100) $(if $(SEED),--seed $(SEED)) $(if $(HOURS),--hours $(HOURS)) $(if $(TRACE),--trace)

docs: setup
	$(BIN)/python -m docs.generate

mariadb:
	@bash .ci/mariadb

lock:
	$(LOCK) pyproject.toml --extra embedded --extra build --extra dev -o requirements-dev.lock
	$(LOCK) pyproject.toml --extra embedded -o requirements.lock
	$(LOCK) $(LAB)/requirements.in -o $(LAB)/requirements.lock

clean:
	rm -rf $(VENV)
