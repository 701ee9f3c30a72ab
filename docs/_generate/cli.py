"""cli.md: the program's commands and options, read off the program itself."""

from __future__ import annotations

from collections.abc import Iterator
from inspect import cleandoc
from typing import Any

from typer.main import get_command

from docs._generate.text import code, table
from engine.cli.app import app
from engine.cli.exits import MEANING


def page() -> str:
    """The page."""
    program = get_command(app)
    return "\n\n".join(
        [
            "# The program `holdfast`",
            _words(program.help),
            "## Global options",
            _options(program),
            "## Exit codes",
            table(("code", "meaning"), ((code(int(exit_code)), text) for exit_code, text in MEANING.items())),
            "## Commands",
            *_sections(program, "holdfast"),
        ]
    )


def _sections(group: Any, path: str) -> Iterator[str]:
    for name, command in getattr(group, "commands", {}).items():
        if command.hidden:
            continue
        inner = f"{path} {name}"
        if not getattr(command, "commands", None):
            yield f"### {inner}"
            yield _words(command.help)
            yield f"```\n{' '.join([inner, *_usage(command)])}\n```"
            if command.params:
                yield _options(command)
        yield from _sections(command, inner)


def _usage(command: Any) -> Iterator[str]:
    if any(_is_option(each) and not each.required for each in command.params):
        yield "[OPTIONS]"
    for each in command.params:
        if _is_option(each) and each.required:
            yield f"{each.opts[0]} {_value(each)}"
    for each in command.params:
        if not _is_option(each):
            yield _value(each) if each.required else f"[{_value(each)}]"


def _options(command: Any) -> str:
    rows = []
    for each in command.params:
        if each.hidden:
            continue
        names = " / ".join((*each.opts, *each.secondary_opts)) if _is_option(each) else _value(each)
        rows.append((code(names), _words(each.help), _default(each), code(each.envvar or "")))
    return table(("", "meaning", "default", "environment"), rows)


def _is_option(parameter: Any) -> bool:
    return bool(parameter.opts[0].startswith("-"))


def _value(parameter: Any) -> str:
    return str(parameter.metavar or parameter.name.upper().replace("_", "-"))


def _default(parameter: Any) -> str:
    if parameter.required:
        return "required"
    if parameter.default is None or parameter.default is False or callable(parameter.default):
        return ""
    if parameter.default is True:
        return code(parameter.opts[0])
    return code(parameter.default)


def _words(text: str | None) -> str:
    return "\n\n".join(" ".join(part.split()) for part in cleandoc(text or "").split("\n\n"))
