"""The file that says how OpenStack is used is checked as a whole when it is read, and says where it is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.clouds.openstack import CloudConfig, ConfigError, load_config

LEAST = '[networks]\ntenant = "net"\n'


def _written(directory: Path, text: str) -> Path:
    path = directory / "openstack.toml"
    path.write_text(text)
    return path


def test_networks_are_all_that_must_be_said(tmp_path: Path) -> None:
    config = load_config(_written(tmp_path, LEAST))
    assert config == CloudConfig(networks=config.networks)
    assert config.networks.tenant == "net"


def test_what_is_given_goes_before_what_is_written(tmp_path: Path) -> None:
    path = _written(tmp_path, f'cloud = "written"\n{LEAST}')
    assert load_config(path, cloud=None).cloud == "written"
    assert load_config(path, cloud="given").cloud == "given"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "missing required field `networks`"),
        ("[networks]\n", "missing required field `tenant`"),
        ('[networks]\ntenant = ""\n', "$.networks.tenant"),
        (f"{LEAST}[servers]\nflavours = []\n", "unknown field `flavours`"),
        (f"{LEAST}[timing]\ncall = 0\n", "$.timing.call"),
        (f'calls_at_once = "many"\n{LEAST}', "$.calls_at_once"),
        (f'{LEAST}[servers.images]\n"postgresql/16" = ""\n', "$.servers.images"),
        ("[networks", "wrong"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, says: str) -> None:
    path = _written(tmp_path, text)
    with pytest.raises(ConfigError) as raised:
        load_config(path)
    assert says in str(raised.value)
    assert str(path) in str(raised.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path / "none.toml")
