"""`holdfast cloud check`: whether an OpenStack can be used as it is configured, said before anybody needs it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
import typer

from engine.cli.exits import Exit
from engine.cli.output import Output, clean

cloud = typer.Typer(no_args_is_help=True, help="The cloud that servers are made on.")


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    app.add_typer(cloud, name="cloud", rich_help_panel="Looking at the engine")


@cloud.command()
def check(
    context: typer.Context,
    config: Annotated[
        Path,
        typer.Option("--cloud-config", help="File that says how OpenStack is used.", envvar="HOLDFAST_CLOUD_CONFIG"),
    ],
    name: Annotated[
        str | None, typer.Option("--cloud", help="Entry of clouds.yaml, instead of the one that the file names.")
    ] = None,
    tries: Annotated[
        bool, typer.Option("--try", help="Make a port and remove it, to see whether we may choose its MAC address.")
    ] = False,
) -> None:
    """Say what an OpenStack lacks, or does not let us do; exit code 1 when it cannot be used so."""
    # They take longer to import than all the rest.
    from engine.clouds.openstack import ConfigError, load_config  # noqa: PLC0415
    from engine.clouds.openstack.check import check as look  # noqa: PLC0415
    from engine.guest.datastores.catalogue import KNOWN  # noqa: PLC0415

    output = Output(as_json=context.obj.as_json)
    found = []
    try:
        for each in look(load_config(config, cloud=name), KNOWN, tries=tries):
            found.append(each)
            if not output.as_json:
                word = "ok  " if each.ok else "LACK" if each.needed else "note"
                output.line(f"{word} {each.check}: {clean(each.says)}")
    except ConfigError as error:
        output.error("cloud_misconfigured", str(error))
        raise typer.Exit(Exit.USAGE) from None
    usable = all(each.ok or not each.needed for each in found)
    if output.as_json:
        output.document({"ok": usable, "findings": [msgspec.to_builtins(each) for each in found]})
    if not usable:
        raise typer.Exit(Exit.FAILED)
