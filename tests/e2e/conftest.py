"""One installation for the tests of a module: started once, cleaned up at the end."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from tests.support.installation import Installation, Tenant, installation


@pytest.fixture(scope="module")
def made() -> Iterator[Installation]:
    with installation() as one:
        one.start()
        yield one


@pytest.fixture
async def tenant(made: Installation) -> AsyncIterator[Tenant]:
    client = await made.connect()
    yield Tenant(client)
    await client.close()
