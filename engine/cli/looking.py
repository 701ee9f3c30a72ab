"""The commands that only look: instances, operations, history, the fleet, and what the engine offers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from engine.cli import intervening
from engine.cli.arguments import Instance, Limit, OperationId
from engine.cli.output import moment
from engine.cli.parked import ways_on
from engine.cli.session import Session, run
from engine.cli.waiting import finish, step_name

_INSTANCES, _ENGINE = "Looking at instances", "Looking at the engine"
_FLEET = (
    "instances", "statuses", "healths", "hosts", "ram", "volume_size", "running", "parked", "failed", "done",
    "cancelled",
)  # fmt: skip
Filter = Annotated[
    list[str] | None, typer.Option("--filter", help="Only those with this value; repeatable.", metavar="FIELD=VALUE")
]
InRegion = Annotated[str | None, typer.Option("--region", help="What is offered there; see `holdfast regions`.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    app.command("list", rich_help_panel=_INSTANCES)(list_instances)
    app.command(rich_help_panel=_INSTANCES)(show)
    app.command(rich_help_panel=_INSTANCES)(history)
    app.command(rich_help_panel=_INSTANCES)(operations)
    app.command(rich_help_panel=_INSTANCES)(heartbeats)
    operation = typer.Typer(help="One operation.", no_args_is_help=True)
    operation.command("show")(show_operation)
    operation.command("watch")(watch_operation)
    intervening.register(operation)
    app.add_typer(operation, name="operation", rich_help_panel=_INSTANCES)
    for command in (datastores, flavors, regions, fleet, workers):
        app.command(rich_help_panel=_ENGINE)(command)


def list_instances(context: typer.Context, filter_: Filter = None, limit: Limit = 1000) -> None:
    """The instances of the project, the newest first."""

    async def work(session: Session) -> None:
        items = await _listed(session, "instances", conditions(filter_), limit)
        # Most installations have one region, and then nobody asks for it.
        where = any(each.get("region") for each in items)
        columns = (
            "name", "id", "status", "health", *(["region"] if where else []), "datastore", "flavor", "volume",
            "address", "operation",
        )  # fmt: skip
        rows = [
            (
                each["name"], each["id"], each["status"], each["health"], *([each.get("region")] if where else []),
                f"{each['datastore']} {each['datastore_version']}", each["flavor"], f"{each['volume_size']} GiB",
                _address(each), _doing(each),
            )
            for each in items
        ]  # fmt: skip
        _items(session, items, columns, rows, f"no instances in project {session.settings.project}")

    run(context, work)


def show(context: typer.Context, instance: Instance) -> None:
    """All that is known of an instance, and why it is so."""

    async def work(session: Session) -> None:
        found = await session.instance(instance)
        if session.output.as_json:
            session.output.document(found)
            return
        failure = found.get("failure")
        because = f"{found['last_event']} by {found['last_actor']}'s {found['last_command']}"
        session.output.pairs(
            [
                ("name", found["name"]),
                ("id", found["id"]),
                ("status", found["status"]),
                ("because", f"{because} at {moment(found['updated_at'])}"),
                ("state", found["state"]),
                ("health", found["health"]),
                ("operation", _doing(found) if found.get("operation") else None),
                ("operation id", found.get("operation_id")),
                *(("drift", f"{each['says']} (seen {moment(each['since'])})") for each in found.get("drift", ())),
                ("failure", failure and f"{failure['code']}: {failure['message']}"),
                ("datastore", f"{found['datastore']} {found['datastore_version']}"),
                ("address", _address(found) if found.get("address") else None),
                ("public address", found.get("public_address")),
                ("reached by", _reached_by(found.get("access"))),
                ("flavor", f"{found['flavor']} ({found['vcpus']} CPU, {found['ram']} MiB)"),
                ("volume", f"{found['volume_size']} GiB {found.get('volume_type') or ''}".strip()),
                ("region", found.get("region")),
                ("zone", found.get("availability_zone")),
                ("locality", found.get("locality")),
                ("image", found.get("image_id")),
                ("host", found.get("host")),
                ("server", found.get("server_id")),
                ("volume id", found.get("volume_id")),
                ("snapshot id", found.get("snapshot_id")),
                ("port id", found.get("port_id")),
                ("created", moment(found["created_at"])),
                ("deleted", moment(found.get("deleted_at"))),
                ("version", found["version"]),
            ]
        )

    run(context, work)


def history(context: typer.Context, instance: Instance, limit: Limit = 100) -> None:
    """What happened to an instance, in order; the latest events if there are more than --limit."""

    async def work(session: Session) -> None:
        instance_id = await session.instance_id(instance)
        items = (await _listed(session, "history", {"instance_id": instance_id}, limit, "-position"))[::-1]
        rows = [(moment(each["at"]), each["name"], each["actor"], each["sentence"]) for each in items]
        _items(session, items, ("at", "event", "actor", "what happened"), rows, f"{instance} has no history here")

    run(context, work)


def operations(
    context: typer.Context,
    instance: Annotated[str | None, typer.Option(help="Only those of this instance, by name or id.")] = None,
    filter_: Filter = None,
    limit: Limit = 50,
) -> None:
    """The operations of the project, the newest first."""

    async def work(session: Session) -> None:
        chosen = conditions(filter_)
        if instance is not None:
            chosen["instance_id"] = await session.instance_id(instance)
        items = await _listed(session, "operations", chosen, limit)
        rows = [
            (
                each["id"], each["command"], each["instance_id"], _outcome(each), f"{each['n']}/{each['m']}",
                step_name(each["state"], each["plan"]) if each["state"] else "-", each["actor"],
                moment(each["started_at"]), _seconds(each),
            )
            for each in items
        ]  # fmt: skip
        columns = ("id", "command", "instance", "outcome", "step", "doing", "actor", "started", "took")
        _items(session, items, columns, rows, f"no operations in project {session.settings.project}")

    run(context, work)


def show_operation(context: typer.Context, operation: OperationId) -> None:
    """How far an operation is, or how it ended."""

    async def work(session: Session) -> None:
        handle = session.manager.operation(operation)
        found = await session.queries.get("operations", operation_id=handle.id)
        if session.output.as_json:
            session.output.document(found)
            return
        error = found.get("error")
        session.output.pairs(
            [
                ("id", found["id"]),
                ("command", found["command"]),
                ("instance", found["instance_id"]),
                ("actor", found["actor"]),
                ("outcome", _outcome(found)),
                ("step", f"{found['n']} of {found['m']}"),
                ("doing", found["state"] and step_name(found["state"], found["plan"])),
                ("effect", found["effect"]),
                ("tries", found["attempts"] or None),
                ("error", error and f"{error['code']}: {error['message']}"),
                ("next try", moment(found.get("retry_at"))),
                ("started", moment(found["started_at"])),
                ("finished", moment(found.get("finished_at"))),
                ("took", _seconds(found)),
                ("deadline", moment(found["deadline"])),
                ("cancelled by", found.get("cancelled_by")),
                *((way.command, way.effect) for way in (ways_on(found) if found.get("parked") else ())),
                ("plan", [step_name(state, found["plan"]) for state in found["plan"]]),
            ]
        )

    run(context, work)


def watch_operation(context: typer.Context, operation: OperationId) -> None:
    """Wait for the end of an operation, from wherever it was started."""

    async def work(session: Session) -> None:
        from engine.cli.actions import ended  # noqa: PLC0415 - both register commands

        handle = session.manager.operation(operation)
        record = await finish(session, handle, wait=True, words=f"operation {operation}")
        if record is not None:
            await ended(session, record)

    run(context, work)


def heartbeats(context: typer.Context, limit: Limit = 1000) -> None:
    """When the agent of each instance was heard last, and what it said."""

    async def work(session: Session) -> None:
        items = await _listed(session, "heartbeats", {}, limit)
        rows = [
            (
                each["instance_id"], each["status"], f"{each['age']:.1f} s", each["role"], each["position"],
                _used(each.get("volume")),
            )
            for each in items
        ]  # fmt: skip
        columns = ("instance", "status", "age", "role", "position", "volume")
        _items(session, items, columns, rows, f"no heartbeats in project {session.settings.project}")

    run(context, work)


def datastores(context: typer.Context, region: InRegion = None) -> None:
    """The database software on offer."""

    async def work(session: Session) -> None:
        offered = (await _offered(session, region))["datastores"]
        rows = [(each["manager"], each["versions"], sorted(each["parameters"])) for each in offered]
        _items(session, offered, ("datastore", "versions", "parameters"), rows, "no datastores; install one")

    run(context, work)


def flavors(context: typer.Context, region: InRegion = None) -> None:
    """The sizes of servers on offer."""

    async def work(session: Session) -> None:
        offered = (await _offered(session, region))["flavors"]
        rows = [(each["name"], each["id"], each["vcpus"], f"{each['ram']} MiB") for each in offered]
        _items(session, offered, ("flavor", "id", "cpus", "memory"), rows, "no flavors")

    run(context, work)


def regions(context: typer.Context) -> None:
    """The regions that an instance can be made in; the first is where one lies for which none is asked."""

    async def work(session: Session) -> None:
        offered = await session.queries.ask("catalogue", "get")
        items = [
            {
                "region": each.get("region"),
                "flavors": [flavor["name"] for flavor in each["flavors"]],
                "datastores": [
                    f"{known['manager']} {version}" for known in each["datastores"] for version in known["versions"]
                ],
                "unavailable": each.get("unavailable"),
            }
            for each in (offered, *offered.get("regions", {}).values())
            if each.get("region") is not None
        ]
        rows = [(each["region"], each["flavors"], each["datastores"], each["unavailable"]) for each in items]
        _items(session, items, ("region", "flavors", "datastores", "unavailable"), rows, "this cloud has no regions")

    run(context, work)


def fleet(context: typer.Context) -> None:
    """The project in numbers."""

    async def work(session: Session) -> None:
        found = await session.queries.get("fleet")
        if session.output.as_json:
            session.output.document(found)
            return
        pairs = [(name.replace("_", " "), found.get(name)) for name in _FLEET]
        for datastore, versions in found.get("datastores", {}).items():
            pairs.append((datastore, versions))
        session.output.pairs(pairs)

    run(context, work)


def workers(context: typer.Context) -> None:
    """The workers that live, and how the partitions are shared out among them."""

    async def work(session: Session) -> None:
        found = (await session.queries.ask("workers", "list"))["items"]
        rows = [
            (each["id"], each["host"], each["pid"], moment(each["since"]), each["running"], _ranges(each["ranges"]))
            for each in found
        ]
        columns = ("worker", "host", "pid", "since", "running", "ranges")
        _items(session, found, columns, rows, "no worker holds a lease; the broker may have been away until now")

    run(context, work)


def _ranges(names: Sequence[str]) -> str:
    """Ranges that follow each other in one, as `0-5, 9, outbox`."""
    parts: list[str] = []
    first = last = None
    for name in (*names, ""):
        number = int(name) if name.isdigit() else None
        if last is not None and number == last + 1:
            last = number
            continue
        if last is not None:
            parts.append(str(first) if first == last else f"{first}-{last}")
        first = last = number
        if number is None and name:
            parts.append(name)
    return ", ".join(parts)


def conditions(given: list[str] | None) -> dict[str, Any]:
    """What `--filter` asks for."""
    chosen: dict[str, Any] = {}
    for each in given or ():
        field, mark, value = each.partition("=")
        if not mark:
            raise typer.BadParameter(f"{each}: write FIELD=VALUE", param_hint="--filter")
        chosen[field] = {"true": True, "false": False}.get(value, value)
    return chosen


async def _offered(session: Session, region: str | None) -> dict[str, Any]:
    """What is offered in the region, the cloud's own where none is named."""
    offered = await session.queries.ask("catalogue", "get")
    known = {each.get("region"): each for each in (offered, *offered.get("regions", {}).values())}
    if region is not None and region not in known:
        there_are = ", ".join(name for name in known if name) or "none by name"
        raise typer.BadParameter(f"no region {region}; there are: {there_are}", param_hint="--region")
    return dict(offered if region is None else known[region])


async def _listed(
    session: Session, model: str, chosen: dict[str, Any], limit: int, sort: str | None = None
) -> list[dict[str, Any]]:
    """Up to `limit` records; pages can be shorter than asked for."""
    items: list[dict[str, Any]] = []
    marker: str | None = None
    while len(items) < limit:
        page, marker = await session.queries.page(
            model, filter=chosen or None, sort=sort, marker=marker, limit=limit - len(items)
        )
        items.extend(page)
        if marker is None:
            return items
    session.output.remark(f"there are more than {limit}; ask for more with --limit, or for fewer with --filter")
    return items


def _items(session: Session, items: list[Any], columns: Sequence[str], rows: list[tuple[Any, ...]], empty: str) -> None:
    if session.output.as_json:
        session.output.document({"items": items})
        return
    session.output.table(columns, rows, empty)


def _address(instance: dict[str, Any]) -> str | None:
    address, port = instance.get("address"), instance.get("port")
    return f"{address}:{port}" if address and port else address


def _reached_by(access: dict[str, Any] | None) -> str | None:
    return None if access is None else ", ".join(access["allowed_cidrs"]) or "nobody"


def _doing(instance: dict[str, Any]) -> str | None:
    operation = instance.get("operation")
    return f"{operation} (parked)" if operation and instance.get("parked") else operation


def _outcome(operation: dict[str, Any]) -> str:
    return "parked" if operation.get("parked") else str(operation["outcome"])


def _seconds(operation: dict[str, Any]) -> str | None:
    duration = operation.get("duration")
    return None if duration is None else f"{duration:.1f} s"


def _used(volume: dict[str, Any] | None) -> str | None:
    if volume is None:
        return None
    mark = " read only" if volume.get("read_only") else " nearly full" if volume.get("warning") else ""
    return f"{volume['used'] / 2**20:.0f} of {volume['size'] / 2**20:.0f} MiB{mark}"
