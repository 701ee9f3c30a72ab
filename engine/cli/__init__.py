"""The program `holdfast`."""

import typer

from engine.cli import services


def main() -> None:
    """Run it."""
    app = typer.Typer()
    services.register(app)
    app()
