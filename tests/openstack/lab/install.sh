#!/usr/bin/env bash
# Installs what the lab runs: MariaDB and RabbitMQ from the system's packages, if they are missing, and the services of
# OpenStack into one virtualenv, locked by hashes. To run it again costs a second.
. "$(dirname "$0")/common.sh"
only_one 1800

again() { # again COMMAND...: a mirror that stumbles is asked three times
    "$@" || { sleep 5 && "$@"; } || { sleep 20 && "$@"; }
}

rabbitmq_server=/usr/lib/rabbitmq/bin/rabbitmq-server

system_packages() { # in a shell of its own
    local missing=()
    PATH=$PATH:/usr/sbin command -v mariadbd >/dev/null || missing+=(mariadb-server-core)
    command -v mariadb >/dev/null || missing+=(mariadb-client-core)
    [ -x $rabbitmq_server ] || missing+=(rabbitmq-server)
    [ "${#missing[@]}" -gt 0 ] || return 0
    [ "$(id -u)" = 0 ] || die "the lab needs the packages ${missing[*]}: install them, or run this as root"
    log "apt: ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    local apt=(apt-get -qq -o DPkg::Lock::Timeout=600 -o Acquire::Retries=3)
    if [ ! -e /usr/sbin/policy-rc.d ]; then # else the package starts a broker of its own, which nobody wants here
        trap 'rm -f /usr/sbin/policy-rc.d' EXIT
        printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
        chmod +x /usr/sbin/policy-rc.d
    fi
    again "${apt[@]}" update
    again "${apt[@]}" -y install --no-install-recommends "${missing[@]}" >/dev/null
}

fit_python() {
    local candidate
    for candidate in "${OS_LAB_PYTHON:-}" python3.12 python3.13 python3.11 python3 /usr/bin/python3; do
        if [ -n "$candidate" ] && "$candidate" -c 'import sys, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    die "the services want Python 3.11, 3.12 or 3.13 with its venv: install one, or set OS_LAB_PYTHON"
}

virtualenv() {
    local stamp python
    stamp=$VENV/.installed-$(sha256sum <"$LAB/requirements.lock" | cut -c1-16)
    [ -e "$stamp" ] && return
    python=$(fit_python)
    log "virtualenv $VENV by $("$python" -V)"
    [ -x "$VENV/bin/python" ] || "$python" -m venv "$VENV"
    # The lock is complete, so that nothing is to be resolved; all cores compile, where pip would use one.
    again "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --retries 10 --no-deps --no-compile \
        --require-hashes -r "$LAB/requirements.lock"
    "$VENV/bin/python" -m pip check --disable-pip-version-check >&2
    log "compiling"
    "$VENV/bin/python" -m compileall -q -j 0 -x '/tests?/' "$VENV"/lib >/dev/null || true # some have templates named .py
    touch "$stamp"
}

system_packages &
packages=$!
virtualenv
wait "$packages" || die "the system's packages could not be installed"
log "installed"
