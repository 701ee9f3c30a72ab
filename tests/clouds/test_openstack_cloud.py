"""OpenStack is asked for every effect that there is; to begin, nothing is called."""

from __future__ import annotations

import json
from pathlib import Path
from uuid import uuid4

import msgspec
import pytest

from aggregates import effects
from aggregates.effects import CloudEffect
from engine.clouds.openstack import CloudConfig, ConfigError, OpenStackCloud, open_regions
from engine.clouds.openstack.config import Networks, Region
from engine.clouds.port import FinalError
from engine.clouds.regions import Regions
from tests.clouds.ambiguous import kinds
from tests.openstack.adapter import Enrolment

ENTRY = {"auth": {"auth_url": "http://127.0.0.1:1/v3", "username": "u", "password": "p", "project_name": "p"}}


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CloudConfig:
    """Of a cloud that is not there."""
    path = tmp_path / "clouds.json"
    other = {"auth": ENTRY["auth"] | {"project_name": "acme"}}
    path.write_text(json.dumps({"clouds": {"nowhere": ENTRY, "acme": other}}))
    monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", str(path))
    return CloudConfig(cloud="nowhere", networks=Networks(tenant="net"))


async def test_every_effect_that_a_cloud_can_be_asked_for_is_paid(config: CloudConfig) -> None:
    cloud = OpenStackCloud(config, enrolment=Enrolment(), datastores={})
    keyed = {effects.RebootServer, effects.RebuildServer}
    assert cloud._table().keys() | keyed == kinds(CloudEffect)
    await cloud.close()


async def test_an_entry_that_is_not_there_is_named(config: CloudConfig) -> None:
    lost = CloudConfig(cloud="lost", networks=config.networks)
    with pytest.raises(ConfigError, match="cloud lost cannot be used"):
        OpenStackCloud(lost, enrolment=Enrolment(), datastores={})


# --- several regions ----------------------------------------------------------------------------------------------


def opened(config: CloudConfig) -> Regions:
    return open_regions(config, enrolment=Enrolment(), datastores={})


async def test_each_region_is_a_cloud_of_its_own_under_the_name_that_commands_know(config: CloudConfig) -> None:
    clouds = opened(msgspec.structs.replace(config, region="one", regions={"two": Region()}))
    effect = effects.StopServer(instance_id=uuid4(), server_id="s", region="three")
    with pytest.raises(FinalError, match="there are: one, two"):
        await clouds.pay(effect, "key")
    await clouds.close()


@pytest.mark.parametrize(
    ("own", "regions", "says"),
    [
        (None, {"two": Region()}, "the one at the top needs a name"),
        ("one", {"one": Region()}, "bears the name of the region at the top"),
        ("one", {"two": Region(region="one")}, r"\[regions.two\] is the same place as one"),
        ("one", {"two": Region(), "three": Region(region="two")}, r"\[regions.three\] is the same place as two"),
        ("one", {"two": Region(cloud="lost")}, "cloud lost cannot be used"),
    ],
)
async def test_regions_that_cannot_be_told_apart_are_refused(
    config: CloudConfig, own: str | None, regions: dict[str, Region], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        opened(msgspec.structs.replace(config, region=own, regions=regions))


async def test_the_same_region_of_another_project_is_another(config: CloudConfig) -> None:
    await opened(
        msgspec.structs.replace(config, region="one", regions={"acme": Region(cloud="acme", region="one")})
    ).close()
