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


# --- several regions ----------------------------------------------------------------------------------------------

SEVERAL = """
cloud = "main"
region = "one"
calls_at_once = 7
[networks]
tenant = "net"
external = "public"
[servers]
flavors = ["db.*"]
[quota]
instances = 3
[regions.two]
[regions.two.networks]
tenant = "net-two"
[regions.two.volumes]
default_type = "fast"
[regions.acme]
cloud = "acme"
[regions.far]
cloud = "far"
region = "RegionOne"
"""


def test_a_region_differs_in_what_is_said_of_it_and_nothing_else(tmp_path: Path) -> None:
    config = load_config(_written(tmp_path, SEVERAL))
    two = config.within("two")
    assert (two.cloud, two.region) == ("main", "two")
    assert (two.networks.tenant, two.networks.external) == ("net-two", "public")
    assert (two.volumes.default_type, config.volumes.default_type) == ("fast", None)
    assert (two.servers, two.timing, two.quota, two.calls_at_once) == (config.servers, config.timing, config.quota, 7)
    assert two.regions == {}


def test_a_region_may_be_that_of_another_entry_of_clouds_yaml(tmp_path: Path) -> None:
    config = load_config(_written(tmp_path, SEVERAL))
    assert [(each.cloud, each.region) for each in map(config.within, ("acme", "far"))] == [
        ("acme", None),
        ("far", "RegionOne"),
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (f"{LEAST}[regions.two]\nquota = 1\n", "unknown field `quota`"),
        (f"{LEAST}[regions.two.timing]\ncall = 1.0\n", "unknown field `timing`"),
        (f'{LEAST}[regions.""]\n', "$.regions"),
        (
            f'{LEAST}[regions.two.networks]\ntennant = "net"\n',
            "in [regions.two]: Object contains unknown field `tennant`",
        ),
        (f"{LEAST}[regions.two.volumes]\nmax_size = 0\n", "in [regions.two]: Expected `int` >= 1"),
    ],
)
def test_what_is_wrong_of_a_region_is_named(tmp_path: Path, text: str, says: str) -> None:
    path = _written(tmp_path, text)
    with pytest.raises(ConfigError) as raised:
        load_config(path)
    assert says in str(raised.value)
    assert str(path) in str(raised.value)
