"""Glance: which image an instance's server is made of, and which datastores there are images for."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf

from openstack.image.v2._proxy import Proxy as Glance
from openstack.image.v2.image import Image

from engine.clock import monotonic
from engine.clouds.openstack.calls import Service
from engine.clouds.port import FinalError

DATASTORE = "holdfast_datastore"
VERSION = "holdfast_datastore_version"
PAGE = 500
AGE = 60.0  # seconds for which a list of images is good enough


class Images:
    """The images. `fixed`: ids by datastore and version, as `postgresql/16`, that go before all others."""

    def __init__(self, glance: Service[Glance], fixed: Mapping[str, str]) -> None:
        self._glance = glance
        self._fixed = fixed
        self._known: dict[tuple[str, str], str] = {}
        self._listed = -inf

    async def image_id(self, datastore: str, version: str) -> str:
        """The image for this datastore version, the newest where there are several. Raises `FinalError`: none."""
        if monotonic() > self._listed + AGE or (datastore, version) not in self._known:
            await self.offered()
        found = self._known.get((datastore, version))
        if found is None:
            raise FinalError(
                "image_missing",
                f"there is no active image with the properties {DATASTORE}={datastore} and {VERSION}={version}: "
                "upload one, or name one in the cloud's configuration",
            )
        return found

    async def offered(self) -> dict[tuple[str, str], str]:
        """Image ids by datastore and version."""
        found: dict[tuple[str, str], str] = {}
        images: list[Image] = await self._glance.look(
            "list_images", lambda glance: list(glance.images(status="active", sort="created_at:desc", limit=PAGE))
        )
        for image in images:
            told = image.properties or {}
            if DATASTORE in told and VERSION in told:
                found.setdefault((told[DATASTORE], told[VERSION]), image.id)
        for named, image_id in self._fixed.items():
            datastore, _, version = named.partition("/")
            found[datastore, version] = image_id
        self._known, self._listed = found, monotonic()
        return found
