"""The commands that start processes: up, worker, projector, agent, rebuild, demo.

What they run is imported when they run: all other commands start several times faster without it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated, Any

import structlog
import typer

from engine import logs
from engine.broker import BrokerError, BrokerSettings
from engine.listening import Listening
from engine.state import default_directory

DEFAULT_PORT = 4222

log = structlog.get_logger(__name__)

State = Annotated[
    Path | None, typer.Option("--state", help="Directory of the state.", envvar="HOLDFAST_STATE", show_default=False)
]
Nats = Annotated[
    str | None, typer.Option("--nats", help="URL of a broker to use instead of the embedded one.", envvar="NATS_URL")
]
Seed = Annotated[Path | None, typer.Option("--seed", help="File with our NKey seed for that broker.")]
Creds = Annotated[Path | None, typer.Option("--creds", help="File with our JWT credentials for that broker.")]
Ca = Annotated[Path | None, typer.Option("--tls-ca", help="File with the CA of that broker's certificate.")]
Cert = Annotated[Path | None, typer.Option("--tls-cert", help="File with our own certificate for that broker.")]
Key = Annotated[Path | None, typer.Option("--tls-key", help="File with the key of our certificate.")]
Store = Annotated[
    str | None,
    typer.Option(
        "--store",
        help="Event store: sqlite:///path or postgresql://user@host/database; SQLite in the state by default.",
        envvar="HOLDFAST_STORE",
    ),
]
Durable = Annotated[
    bool,
    typer.Option("--durable-broker", help="You vouch that this broker keeps what it acknowledges."),
]
GuestSeed = Annotated[
    Path | None, typer.Option("--guest-seed", help="File with the NKey seed that guests use there, or enrol with.")
]
CalloutSeed = Annotated[
    Path | None,
    typer.Option("--callout-seed", help="File with the account seed by which that broker's auth callout is answered."),
]
CalloutAccount = Annotated[str, typer.Option("--callout-account", help="Account of that broker in which guests are.")]
Cloud = Annotated[
    str,
    typer.Option(
        "--cloud",
        help="Where servers are made: local (this machine); openstack, or openstack:NAME for an entry of clouds.yaml; "
        "or simulated:SOCKET, for trials of the engine alone: a simulated cloud in a process of its own, started by "
        "python -m engine.clouds.simulated.",
    ),
]
CloudConfig = Annotated[
    Path | None,
    typer.Option("--cloud-config", help="File that says how OpenStack is used.", envvar="HOLDFAST_CLOUD_CONFIG"),
]
InFlight = Annotated[int, typer.Option(help="Calls to the cloud at once.", min=1)]
ObserveEvery = Annotated[
    float,
    typer.Option(
        help="Seconds between two looks at all that the cloud holds, to find what is surplus; 0: none.", min=0
    ),
]
RunAs = Annotated[str | None, typer.Option(help="user-id:group-id of the guests when started by root.")]
JsonLog = Annotated[bool, typer.Option("--json-log", help="Log in JSON.")]
Verbose = Annotated[bool, typer.Option("--verbose", help="Log more.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    app.command(rich_help_panel="Processes")(up)
    app.command(rich_help_panel="Processes")(worker)
    app.command(rich_help_panel="Processes")(projector)
    app.command(
        rich_help_panel="Processes", context_settings={"ignore_unknown_options": True, "help_option_names": []}
    )(agent)
    app.command(rich_help_panel="Processes")(rebuild)
    app.command(rich_help_panel="Processes")(demo)


def up(
    state: State = None,
    port: Annotated[
        int, typer.Option(help="Port of the embedded broker; 0 for any, kept from then on.")
    ] = DEFAULT_PORT,
    broker_listen: Annotated[
        str | None,
        typer.Option(help="Address or name by which machines find the embedded broker: the loopback by default."),
    ] = None,
    broker_cert: Annotated[Path | None, typer.Option(help="File with the embedded broker's certificate.")] = None,
    broker_key: Annotated[Path | None, typer.Option(help="File with the key of that certificate.")] = None,
    broker_ca: Annotated[Path | None, typer.Option(help="File with the CA that machines shall trust.")] = None,
    nats: Nats = None,
    seed: Seed = None,
    creds: Creds = None,
    tls_ca: Ca = None,
    tls_cert: Cert = None,
    tls_key: Key = None,
    durable_broker: Durable = False,
    guest_seed: GuestSeed = None,
    callout_seed: CalloutSeed = None,
    callout_account: CalloutAccount = "HOLDFAST",
    store: Store = None,
    cloud: Cloud = "local",
    cloud_config: CloudConfig = None,
    run_as: RunAs = None,
    mount: Annotated[bool, typer.Option(help="Under root, give volumes a hard limit by mounting images.")] = True,
    in_flight: InFlight = 64,
    observe_every: ObserveEvery = 60.0,
    json_log: JsonLog = False,
    verbose: Verbose = False,
) -> None:
    """Run everything on this machine, in the foreground: broker, worker, projector and a local cloud."""
    from engine import service  # noqa: PLC0415 - see above

    logs.configure(as_json=json_log, verbose=verbose)
    settings = service.Settings(
        state=state or default_directory(),
        broker=_broker(nats, seed, creds, tls_ca, tls_cert, tls_key),
        port=port,
        listening=_listening(broker_listen, broker_cert, broker_key, broker_ca),
        durable_broker=durable_broker,
        guest_seed=guest_seed,
        callout_seed=callout_seed,
        callout_account=callout_account,
        store_url=store,
        cloud=cloud,
        cloud_config=cloud_config,
        run_as=_user(run_as),
        mount=mount,
        in_flight=in_flight,
        observe_every=observe_every,
    )
    _run(service.run_up(settings))


def worker(
    nats: Annotated[str, typer.Option("--nats", help="URL of the broker.", envvar="NATS_URL")],
    state: State = None,
    seed: Seed = None,
    creds: Creds = None,
    tls_ca: Ca = None,
    tls_cert: Cert = None,
    tls_key: Key = None,
    durable_broker: Durable = False,
    guest_seed: GuestSeed = None,
    callout_seed: CalloutSeed = None,
    callout_account: CalloutAccount = "HOLDFAST",
    store: Store = None,
    cloud: Cloud = "local",
    cloud_config: CloudConfig = None,
    run_as: RunAs = None,
    in_flight: InFlight = 64,
    observe_every: ObserveEvery = 60.0,
    json_log: JsonLog = False,
    verbose: Verbose = False,
) -> None:
    """Run a worker alone: it decides commands and pays what instances owe."""
    from engine import service  # noqa: PLC0415 - see above

    logs.configure(as_json=json_log, verbose=verbose)
    settings = service.Settings(
        state=state or default_directory(),
        broker=_broker(nats, seed, creds, tls_ca, tls_cert, tls_key),
        durable_broker=durable_broker,
        guest_seed=guest_seed,
        callout_seed=callout_seed,
        callout_account=callout_account,
        store_url=store,
        cloud=cloud,
        cloud_config=cloud_config,
        run_as=_user(run_as),
        in_flight=in_flight,
        observe_every=observe_every,
    )
    _run(service.run_worker(settings))


def projector(
    nats: Annotated[str, typer.Option("--nats", help="URL of the broker.", envvar="NATS_URL")],
    state: State = None,
    seed: Seed = None,
    creds: Creds = None,
    tls_ca: Ca = None,
    tls_cert: Cert = None,
    tls_key: Key = None,
    store: Store = None,
    json_log: JsonLog = False,
    verbose: Verbose = False,
) -> None:
    """Run a projector alone: it follows the log, keeps the read models and answers queries."""
    from engine import service  # noqa: PLC0415 - see above

    logs.configure(as_json=json_log, verbose=verbose)
    settings = service.Settings(
        state=state or default_directory(),
        broker=_broker(nats, seed, creds, tls_ca, tls_cert, tls_key),
        store_url=store,
    )
    _run(service.run_projections(settings))


def agent(context: typer.Context, arguments: Annotated[list[str], typer.Argument(metavar="CONFIG")]) -> None:
    """Run the guest agent of one instance: CONFIG is its agent.json; on a machine of a cloud, say --machine FILE, which
    cloud-init wrote, or --config-drive DIR in its place. Options: --image FILE, --run-as UID:GID.
    """
    from engine.guest.__main__ import main as run_agent  # noqa: PLC0415 - see above

    raise typer.Exit(run_agent([*arguments, *context.args]))


def rebuild(
    models: Annotated[list[str] | None, typer.Argument(help="Read models; all by default.")] = None,
    state: State = None,
    store: Store = None,
) -> None:
    """Build read models anew from the log, while no projector runs. Readers see the old rows until it is done."""
    from engine import service  # noqa: PLC0415 - see above

    logs.configure()
    settings = service.Settings(state=state or default_directory(), store_url=store)
    _run(service.rebuild_models(settings, models or []))


def demo() -> None:
    """Create, use, resize, break and delete a real PostgreSQL, and show that nothing is left."""
    from engine.cli.demo import run  # noqa: PLC0415 - see above

    if not run():
        raise typer.Exit(1)


def _broker(
    url: str | None, seed: Path | None, creds: Path | None, ca: Path | None, cert: Path | None, key: Path | None
) -> BrokerSettings | None:
    if url is None:
        return None
    return BrokerSettings(url=url, seed_file=seed, creds_file=creds, tls_ca=ca, tls_cert=cert, tls_key=key)


def _listening(host: str | None, cert: Path | None, key: Path | None, ca: Path | None) -> Listening:
    try:
        return Listening.on(host, cert, key, ca)
    except BrokerError as error:
        log.error("cannot_run", reason=str(error))  # noqa: TRY400 - the error says it all
        raise typer.Exit(1) from None


def _user(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    user, _, group = text.partition(":")
    try:
        return int(user), int(group or user)
    except ValueError:
        raise typer.BadParameter(f"--run-as wants numbers, as in 65534:65534, not {text}") from None


def _run(main: Coroutine[Any, Any, None]) -> None:
    from engine.clouds.port import PayError  # noqa: PLC0415 - see above
    from engine.databases import StoreRefusedError  # noqa: PLC0415 - see above
    from engine.store import StoreInUseError  # noqa: PLC0415 - see above
    from projections.base import ProjectorRunningError  # noqa: PLC0415 - see above

    try:
        asyncio.run(main)
    except (
        StoreInUseError,
        StoreRefusedError,
        ProjectorRunningError,
        BrokerError,
        PayError,
        ValueError,
        OSError,
    ) as error:
        log.error("cannot_run", reason=str(error))  # noqa: TRY400 - the error says it all
        raise typer.Exit(1) from None
