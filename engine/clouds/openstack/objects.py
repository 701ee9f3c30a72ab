"""Swift: objects of any size in one container, written in parts as their bytes come, and read in pieces.

An object is there whole or not at all: its parts count for nothing before the manifest that names them, with the
checksum of each, is written last. Whoever dies while writing leaves what was there before, and parts of which the next
write or the removal of the name rids us. Two who write one name at once are the callers' matter.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterable, AsyncIterator
from typing import Any
from urllib.parse import quote
from uuid import uuid4

from openstack import exceptions as sdk
from openstack.object_store.v1._proxy import Proxy as Swift

from engine.clouds.openstack.calls import Service

PART = 64 * 1024 * 1024  # bytes: one is held in memory; Swift takes a thousand of them for one object, if not told else
PIECE = 8 * 1024 * 1024
_PARTS = ".parts/"


class Objects:
    """The objects of a container. `part`: bytes of each part that is written, but the last."""

    def __init__(self, swift: Service[Swift], container: str, *, part: int = PART) -> None:
        self._swift = swift
        self._container = container
        self._part = part

    async def prepare(self) -> None:
        """There is the container."""
        await self._swift.change("create_container", lambda swift: swift.create_container(self._container))

    async def write(self, name: str, content: AsyncIterable[bytes]) -> int:
        """The object holds this content, and what it held before is gone. Returns its size in bytes."""
        manifest: list[dict[str, Any]] = []
        paths: set[str] = set()
        parts = f"{_PARTS}{name}/{uuid4()}"
        async for data in _in_parts(content, self._part):
            path = f"{parts}/{len(manifest):08}"
            paths.add(path)
            etag = hashlib.md5(data, usedforsecurity=False).hexdigest()  # Swift's own check of what arrived
            await self._put(path, data=data, headers={"ETag": etag})
            manifest.append({"path": f"{self._container}/{path}", "etag": etag, "size_bytes": len(data)})
        await self._put(name, json=manifest, params={"multipart-manifest": "put"})
        for part in await self._parts(name):
            if part not in paths:
                await self._delete(part)
        return sum(each["size_bytes"] for each in manifest)

    async def read(self, name: str) -> AsyncIterator[bytes]:
        """The content. Raises `FinalError`, `not_found`, when there is no such object."""
        size = await self.size(name)
        for start in range(0, size, PIECE):
            yield await self._get(name, start, min(start + PIECE, size) - 1)

    async def size(self, name: str) -> int:
        """Its size in bytes. Raises `FinalError`, `not_found`, when there is no such object."""
        found = await self._swift.look(
            "get_object_metadata", lambda swift: swift.get_object_metadata(name, self._container)
        )
        return int(found.content_length)

    async def names(self, prefix: str = "") -> list[str]:
        """The names of the objects that begin so."""
        return [each for each in await self._listed(prefix) if not each.startswith(_PARTS)]

    async def remove(self, name: str) -> None:
        """There is no such object, nor a part of one."""
        await self._delete(name)
        for part in await self._parts(name):
            await self._delete(part)

    # --- underneath -----------------------------------------------------------------------------------------------

    def _url(self, name: str) -> str:
        return f"/{quote(self._container)}/{quote(name)}"

    async def _put(self, name: str, **content: Any) -> None:
        def put(swift: Swift) -> None:
            sdk.raise_from_response(swift.put(self._url(name), **content))

        await self._swift.change("put_object", put)

    async def _get(self, name: str, first: int, last: int) -> bytes:
        def get(swift: Swift) -> bytes:
            answer = swift.get(self._url(name), headers={"Range": f"bytes={first}-{last}"})
            sdk.raise_from_response(answer)
            return bytes(answer.content)

        return await self._swift.look("get_object", get)

    async def _parts(self, name: str) -> list[str]:
        return await self._listed(f"{_PARTS}{name}/")

    async def _listed(self, prefix: str) -> list[str]:
        return await self._swift.look(
            "list_objects",
            lambda swift: sorted(each.name for each in swift.objects(self._container, prefix=prefix)),
        )

    async def _delete(self, name: str) -> None:
        await self._swift.remove("delete_object", lambda swift: swift.delete_object(name, container=self._container))


async def _in_parts(content: AsyncIterable[bytes], size: int) -> AsyncIterator[bytes]:
    """The same bytes in parts of this size, the last of what is left; none of nothing."""
    held = bytearray()
    async for piece in content:
        held += piece
        while len(held) >= size:
            yield bytes(held[:size])
            del held[:size]
    if held:
        yield bytes(held)
