"""Writes the generated pages of docs/reference: `python -m docs.generate`.

They follow from the code alone, so the same code writes the same bytes; a test fails while a page on disk is
another one.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from docs._generate import asyncapi, cli, commands, errors, events, lifecycle, openstack

REFERENCE = Path(__file__).parent / "reference"
NOTE = "<!-- Written by `make docs` from the code; changes are made there. -->\n\n"

PAGES: dict[str, Callable[[], str]] = {
    "asyncapi.json": asyncapi.page,
    "cli.md": lambda: NOTE + cli.page(),
    "commands.md": lambda: NOTE + commands.page(),
    "errors.md": lambda: NOTE + errors.page(),
    "events.md": lambda: NOTE + events.page(),
    "lifecycle.md": lambda: NOTE + lifecycle.page(),
    "openstack.md": lambda: NOTE + openstack.page(),
}


def written(name: str) -> str:
    """The page as it should stand on disk."""
    return PAGES[name]().rstrip() + "\n"


def main() -> None:
    """Write all pages."""
    REFERENCE.mkdir(exist_ok=True)
    for name in PAGES:
        (REFERENCE / name).write_text(written(name), encoding="utf-8")


if __name__ == "__main__":
    main()
