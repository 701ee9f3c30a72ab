"""The connection to one region of an OpenStack, as openstacksdk makes it of clouds.yaml or the environment.

Nothing below repeats a call by itself, but for one thing: a call that is refused because the token has expired is made
again with a new one. How long to wait for whom is the callers' matter.
"""

from __future__ import annotations

from keystoneauth1 import exceptions as keystone
from keystoneauth1.session import TCPKeepAliveAdapter
from openstack import exceptions as sdk
from openstack.block_storage.v3._proxy import Proxy as Cinder
from openstack.compute.v2._proxy import Proxy as Nova
from openstack.config import OpenStackConfig
from openstack.connection import Connection
from openstack.image.v2._proxy import Proxy as Glance
from openstack.network.v2._proxy import Proxy as Neutron

from engine.clouds.openstack.config import CloudConfig, ConfigError


def connect(config: CloudConfig) -> Connection:
    """A connection that may be used by so many threads as calls are allowed at once. Nothing is called yet.

    Raises `ConfigError` when there are no credentials to be found.
    """
    try:
        region = OpenStackConfig(app_name="holdfast").get_one(
            cloud=config.cloud, region_name=config.region, api_timeout=config.timing.call
        )
        session = region.get_session()
        for scheme in ("https://", "http://"):
            session.session.mount(scheme, TCPKeepAliveAdapter(pool_maxsize=config.calls_at_once))
        return Connection(config=region)
    except (sdk.SDKException, keystone.ClientException) as error:
        named = f"cloud {config.cloud}" if config.cloud else "the cloud of the environment"
        listed = "" if config.region is None else f", with region {config.region} among its `regions`"
        said = str(error).rstrip(".")
        raise ConfigError(
            f"{named} cannot be used: {said}; it must be in clouds.yaml{listed}, or in the OS_* variables"
        ) from error


def whereabouts(connection: Connection) -> str:
    """What tells its cloud and region from others, the same for all who are told of it in the same words."""
    told = (connection.config.get_auth_args().get("auth_url"), connection.config.region_name)
    return " ".join(str(each) for each in told if each)


def project(connection: Connection) -> tuple[object, ...]:
    """What tells its cloud, region and project from others, as far as its configuration says it."""
    told = connection.config.get_auth_args()
    return (whereabouts(connection), *(f"{key} {told[key]}" for key in sorted(told) if key.startswith(_TELLS_PROJECT)))


_TELLS_PROJECT = ("project", "tenant", "application_credential_id", "application_credential_name")


def nova(connection: Connection) -> Nova:
    """Compute."""
    return connection.compute


def neutron(connection: Connection) -> Neutron:
    """Network."""
    return connection.network


def cinder(connection: Connection) -> Cinder:
    """Block storage. Raises `ConfigException` where it is of another version than 3."""
    proxy = connection.block_storage
    if not isinstance(proxy, Cinder):
        raise sdk.ConfigException("block storage of version 3 is needed, and clouds.yaml asks for another")
    return proxy


def glance(connection: Connection) -> Glance:
    """Images. Raises `ConfigException` where they are of another version than 2."""
    proxy = connection.image
    if not isinstance(proxy, Glance):
        raise sdk.ConfigException("the image service of version 2 is needed, and clouds.yaml asks for another")
    return proxy
