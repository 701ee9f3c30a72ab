"""The local cloud: real servers, volumes and addresses on one machine."""

from engine.clouds.local.cloud import LocalCloud
from engine.clouds.local.credentials import GuestCredentials

__all__ = ["GuestCredentials", "LocalCloud"]
