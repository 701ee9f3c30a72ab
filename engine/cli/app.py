"""The program's face: its global options, its commands, and where options may stand.

Guarantees that global options are taken before and after the command alike, so that `holdfast list --json` works. A
command that has an option of the same name keeps its own.
"""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer import Abort
from typer.core import TyperGroup
from typer.exceptions import TyperException

from engine.cli import (
    actions,
    clouds,
    connecting,
    creating,
    dead_letters,
    doctor,
    looking,
    orphans,
    quotas,
    services,
)
from engine.cli.exits import EPILOG, Exit, exit_of
from engine.cli.output import Output
from engine.cli.session import Settings
from engine.client import ClientError
from engine.messages import PROJECT_PATTERN


class _Group(TyperGroup):
    """Takes the global options that stand behind a command to the front."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse, with the global options in front."""
        return super().parse_args(ctx, self._reordered(ctx, args))

    def _reordered(self, ctx: Any, args: list[str]) -> list[str]:
        takes_value = {name: not p.is_flag for p in self.params for name in p.opts if hasattr(p, "is_flag")}
        takes_value.pop("--help", None)
        command, at = self._command_in(ctx, args, takes_value)
        if command is None or command.context_settings.get("ignore_unknown_options"):
            return args
        own = {name for p in command.params for name in (*p.opts, *p.secondary_opts)}
        valued = {name for p in command.params if not getattr(p, "is_flag", True) for name in p.opts}
        front, rest, left = args[:at], [args[at]], iter(args[at + 1 :])
        for word in left:
            name = word.partition("=")[0]
            if word == "--":
                rest.extend([word, *left])
            elif name in own or name not in takes_value:
                rest.append(word)
                rest.extend(itertools.islice(left, word in valued))
            else:
                front.append(word)
                rest_of_it = takes_value[name] and "=" not in word
                front.extend(itertools.islice(left, rest_of_it))
        return front + rest

    def _command_in(self, ctx: Any, args: list[str], takes_value: dict[str, bool]) -> tuple[Any, int]:
        at = 0
        while at < len(args) and args[at].startswith("-"):
            at += 2 if takes_value.get(args[at], False) else 1
        if at >= len(args):
            return None, 0
        command = self.get_command(ctx, args[at])
        # `operation show ID --json`: the inner command's options count.
        inner = getattr(command, "commands", {})
        return next((inner[each] for each in args[at + 1 :] if each in inner), command), at


app = typer.Typer(
    name="holdfast",
    cls=_Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def holdfast(
    context: typer.Context,
    state: Annotated[
        Path | None,
        typer.Option(help="Directory of the engine's state.", envvar="HOLDFAST_STATE", show_default=False),
    ] = None,
    nats: Annotated[
        str | None, typer.Option(help="URL of the broker, instead of the engine's own.", envvar="NATS_URL")
    ] = None,
    seed: Annotated[Path | None, typer.Option(help="File with the NKey seed for that broker.")] = None,
    creds: Annotated[Path | None, typer.Option(help="File with the JWT credentials for that broker.")] = None,
    tls_ca: Annotated[Path | None, typer.Option(help="File with the CA of that broker's certificate.")] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="File with our own certificate for that broker.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="File with the key of our certificate.")] = None,
    project: Annotated[str, typer.Option(help="Project to act in.", envvar="HOLDFAST_PROJECT")] = "default",
    as_json: Annotated[bool, typer.Option("--json", help="Answer with one JSON document.")] = False,
    timeout: Annotated[
        float | None, typer.Option(help="Seconds to wait at most; for an operation without end by default.", min=0.1)
    ] = None,
) -> None:
    """Holdfast: databases as a service, each operation of which is seen through.

    Instances are named by name or id. Global options may also stand after the command.
    """
    files = {"seed": seed, "creds": creds, "tls_ca": tls_ca, "tls_cert": tls_cert, "tls_key": tls_key}
    given = {"state": state, "nats": nats, **files}
    # The processes have these options of their own; given here, they hold there.
    context.default_map = {
        name: {key: str(value) for key, value in given.items() if value is not None}
        for name in ("up", "worker", "projector", "rebuild")
    }
    context.obj = Settings(state=state, nats=nats, **files, project=_project(project), as_json=as_json, timeout=timeout)


def _project(name: str) -> str:
    if not re.fullmatch(PROJECT_PATTERN, name):
        raise typer.BadParameter(f"{name!r}: use letters, digits, - and _, at most 64", param_hint="--project")
    return name


creating.register(app)
actions.register(app)
looking.register(app)
connecting.register(app)
dead_letters.register(app)
quotas.register(app)
doctor.register(app)
orphans.register(app)
clouds.register(app)
services.register(app)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """The entry point of the program."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    output = Output(as_json="--json" in given)
    try:
        code = app(given, prog_name="holdfast", standalone_mode=False)
    except TyperException as error:
        if not error.format_message().strip():
            sys.exit(Exit.USAGE)  # the help was shown in place of an error
        context = getattr(error, "ctx", None)
        at = "holdfast" if context is None else context.command_path
        output.error("usage", f"{error.format_message().rstrip('.')}; see `{at} --help`")
        sys.exit(Exit.USAGE)
    except (Abort, KeyboardInterrupt):
        output.error("interrupted", "nothing was sent")
        sys.exit(Exit.INTERRUPTED)
    except ClientError as error:
        output.error(error.code, error.message)
        sys.exit(exit_of(error))
    sys.exit(code if isinstance(code, int) else Exit.OK)
