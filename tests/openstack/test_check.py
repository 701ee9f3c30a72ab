"""`holdfast cloud check` says what a cloud lacks, before anybody needs it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from openstack.connection import Connection

from tests.openstack.ledger import holdings

PROGRAM = Path(sys.executable).with_name("holdfast")
Checked = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture
def check(service: Connection, tmp_path: Path) -> Checked:
    """Runs it; its exit code, and the findings by what was looked at."""
    image = service.image.find_image("lab-image", ignore_missing=False).id

    def run(*options: str, networks: str = 'tenant = "lab-net"', images: str = image) -> tuple[int, dict[str, Any]]:
        config = tmp_path / "openstack.toml"
        named = f'[servers.images]\n"postgresql/16" = "{images}"\n'
        config.write_text(f'cloud = "lab-service"\n[networks]\n{networks}\n{named}')
        command = [str(PROGRAM), "--json", "cloud", "check", "--cloud-config", str(config), *options]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.stdout, done.stderr
        return done.returncode, {each["check"]: each for each in json.loads(done.stdout)["findings"]}

    return run


def test_a_cloud_that_has_all_is_usable(check: Checked, admin: Connection) -> None:
    code, found = check("--try", networks='tenant = "lab-net"\nexternal = "lab-public"')
    assert code == 0, found
    assert all(each["ok"] for each in found.values())
    assert "postgresql 16" in found["images"]["says"]
    assert holdings(admin, "holdfast-check") == []


def test_no_external_network_is_no_hindrance(check: Checked) -> None:
    code, found = check()
    assert code == 0
    assert (found["external network"]["ok"], found["external network"]["needed"]) == (False, False)


def test_a_network_that_is_not_there_is_named(check: Checked) -> None:
    code, found = check(networks='tenant = "nowhere"')
    assert code == 1
    assert "there is no network nowhere" in found["network"]["says"]


def test_an_image_that_is_not_there_is_named(check: Checked) -> None:
    code, found = check(images="00000000-0000-4000-8000-000000000000")
    assert code == 1
    assert "the images named for postgresql/16 are not there" in found["images"]["says"]


def test_a_right_that_lacks_is_told(check: Checked) -> None:
    code, found = check("--try", "--cloud", "lab-other")
    assert code == 1
    assert "403" in found["MAC addresses"]["says"]
    assert (found["hosts"]["ok"], found["hosts"]["needed"]) == (False, False)
