"""A publisher's objects as plain wire data: flavors, databases, users, ids, and where passwords stand in them.

Guarantees that what leaves here is JSON data without a cloud client's objects in it. It judges no value: what the
engine does not take, it refuses by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any
from uuid import UUID

import msgspec

from engine.client.errors import InvalidCommand


class SecretRef(msgspec.Struct, frozen=True):
    """A secret that the vault holds already; can stand wherever a password can."""

    ref: str


# What the predecessor's serialised users carry besides what ours have; they say nothing when they have these values.
_IDLE = {"is_root": (False, None), "root": (False, None), "ignore_dbs": ([], None)}


def identifier(value: Any) -> str:
    """An aggregate's id in its one written form."""
    if isinstance(value, list | tuple):
        raise InvalidCommand("unsupported", "one command names one instance; send one for each id")
    try:
        return str(value if isinstance(value, UUID) else UUID(str(value)))
    except ValueError:
        raise InvalidCommand("invalid_argument", f"instance id {value!r} is not a UUID") from None


def flavor_reference(flavor: Any) -> str:
    """The id of a flavor given as id, name, dict, or the cloud client's object; else its name."""
    if isinstance(flavor, str):
        return flavor
    if isinstance(flavor, int) and not isinstance(flavor, bool):
        return str(flavor)
    values = flavor if isinstance(flavor, Mapping) else _attributes(flavor)
    wanted = values.get("id") or values.get("name")
    if not isinstance(wanted, str | int):
        raise InvalidCommand("invalid_argument", f"a flavor of type {type(flavor).__name__} has neither id nor name")
    return str(wanted)


def _attributes(obj: Any) -> dict[str, Any]:
    # `to_dict` of a client's resource leaves its manager out; objects without it are read by attribute.
    to_dict = getattr(obj, "to_dict", None)
    if callable(to_dict):
        return dict(to_dict())
    return {name: getattr(obj, name, None) for name in ("id", "name")}


def databases(given: Iterable[Any] | None) -> list[dict[str, Any]]:
    """Databases given as names or as dicts, also the predecessor's serialised ones with leading underscores."""
    items = _listed(given, "databases")
    return [{"name": item} if isinstance(item, str) else _plain(item, "database") for item in items]


def users(given: Iterable[Any] | None) -> list[dict[str, Any]]:
    """Users given as dicts. `password` is still in each; `databases` is a list of names."""
    result = []
    for item in _listed(given, "users"):
        user = _plain(item, "user")
        for name, idle in _IDLE.items():
            if name in user and user[name] in idle:
                del user[name]
        if "databases" in user:
            user["databases"] = [d["name"] for d in databases(user["databases"])]
        result.append(user)
    return result


def networks(given: Iterable[Any] | None) -> list[str] | None:
    """Network ids given as such, or in the predecessor's dicts; None for none. An address in them is not passed on."""
    found = []
    for item in _listed(given, "nics"):
        if isinstance(item, str):
            found.append(item)
            continue
        names = dict(item) if isinstance(item, Mapping) else {}
        network = names.pop("network_id", None) or names.pop("net-id", None)
        others = sorted(name for name, value in names.items() if value)
        if not isinstance(network, str):
            raise InvalidCommand("invalid_argument", "a nic names no network; give the id of one")
        if others:
            raise InvalidCommand("unsupported", f"a nic may not set {', '.join(others)}; give the network's id alone")
        found.append(network)
    return found or None


def access_of(given: Mapping[str, Any]) -> dict[str, Any]:
    """Who can reach a database: `is_public`, as the predecessor has it, or `public`; and `allowed_cidrs`."""
    if not isinstance(given, Mapping):
        raise InvalidCommand("invalid_argument", f"access must be a dict, not {type(given).__name__}")
    plain = {"public" if name == "is_public" else str(name): value for name, value in given.items()}
    return {name: value for name, value in plain.items() if value is not None}


def _listed(given: Any, what: str) -> Iterable[Any]:
    if given is None:
        return ()
    if isinstance(given, str | bytes | Mapping) or not isinstance(given, Iterable):
        raise InvalidCommand("invalid_argument", f"{what} must be a list, not {type(given).__name__}")
    return given


def _plain(item: Any, what: str) -> dict[str, Any]:
    if not isinstance(item, Mapping):
        raise InvalidCommand("invalid_argument", f"a {what} must be a dict with a name, not {type(item).__name__}")
    plain = {str(key).removeprefix("_"): value for key, value in item.items() if value is not None}
    if "name" not in plain:
        raise InvalidCommand("invalid_argument", f"a {what} has no name")
    return plain


def present(**arguments: Any) -> dict[str, Any]:
    """The arguments that are set: None stands for 'not asked for' in every command."""
    return {name: value for name, value in arguments.items() if value is not None}
