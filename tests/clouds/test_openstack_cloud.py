"""OpenStack is asked for every effect that there is; to begin, nothing is called."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aggregates import effects
from aggregates.effects import CloudEffect
from engine.clouds.openstack import CloudConfig, ConfigError, OpenStackCloud
from engine.clouds.openstack.config import Networks
from tests.clouds.ambiguous import kinds
from tests.openstack.adapter import Enrolment

ENTRY = {"auth": {"auth_url": "http://127.0.0.1:1/v3", "username": "u", "password": "p", "project_name": "p"}}


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CloudConfig:
    """Of a cloud that is not there."""
    path = tmp_path / "clouds.json"
    path.write_text(json.dumps({"clouds": {"nowhere": ENTRY}}))
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
