"""Which host a server goes to: the least loaded one that may have it. Flavors and zones of the local cloud are here.

Load is the number of servers; memory and processors of the machine are shared and not counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from aggregates.catalogue import Flavor
from engine.clouds.port import FinalError

FLAVORS = (
    Flavor(id="micro", name="micro", vcpus=1, ram=256),
    Flavor(id="small", name="small", vcpus=1, ram=512),
    Flavor(id="medium", name="medium", vcpus=2, ram=1024),
    Flavor(id="large", name="large", vcpus=2, ram=2048),
    Flavor(id="xlarge", name="xlarge", vcpus=4, ram=4096),
)


def zones(hosts: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The availability zones: every third host is in the second zone, the others in the first."""
    second = tuple(host for number, host in enumerate(hosts, start=1) if number % 3 == 0)
    first = tuple(host for host in hosts if host not in second)
    return {"az-1": first, "az-2": second} if second else {"az-1": first}


def check_flavor(flavor_id: str) -> None:
    """Raises `FinalError` for a flavor that there is not."""
    known = [flavor.id for flavor in FLAVORS]
    if flavor_id not in known:
        raise FinalError("invalid_argument", f"there is no flavor {flavor_id}; there are: {', '.join(known)}")


def check_host(host: str, hosts: Sequence[str]) -> None:
    """Raises `FinalError` for a host that there is not."""
    if host not in hosts:
        raise FinalError("invalid_argument", f"there is no host {host}; there are: {', '.join(hosts)}")


def choose(hosts: Sequence[str], load: Mapping[str, int], zone: str | None) -> str:
    """The host for a new server. Raises `FinalError` for a zone that there is not."""
    known = zones(hosts)
    if zone is not None and zone not in known:
        raise FinalError(
            "invalid_argument", f"there is no availability zone {zone}; there are: {', '.join(sorted(known))}"
        )
    return _least_loaded(known[zone] if zone is not None else hosts, load)


def elsewhere(hosts: Sequence[str], load: Mapping[str, int], source: str, wanted: str | None) -> str:
    """The host for a server that leaves `source`: the wanted one, or another of its zone before one of other zones."""
    if wanted is not None:
        check_host(wanted, hosts)
    if wanted == source:
        raise FinalError("invalid_argument", f"the server is on host {source} already; choose another one")
    if wanted is not None:
        return wanted
    others = [host for host in hosts if host != source]
    if not others:
        raise FinalError("invalid_argument", f"there is no host but {source} to migrate to")
    zone = next((names for names in zones(hosts).values() if source in names), ())
    return _least_loaded([host for host in others if host in zone] or others, load)


def _least_loaded(hosts: Sequence[str], load: Mapping[str, int]) -> str:
    return min(hosts, key=lambda host: (load.get(host, 0), hosts.index(host)))
