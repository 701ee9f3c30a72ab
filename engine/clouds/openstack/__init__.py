"""OpenStack as a cloud: Nova, Cinder, Neutron, Glance and Swift by openstacksdk."""

from engine.clouds.openstack.cloud import OpenStackCloud
from engine.clouds.openstack.config import CloudConfig, ConfigError, load_config
from engine.clouds.openstack.regions import open_regions

__all__ = ["CloudConfig", "ConfigError", "OpenStackCloud", "load_config", "open_regions"]
