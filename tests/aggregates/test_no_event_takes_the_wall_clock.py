"""The event sourcing library stamps the wall clock where no time is given: every event says its own."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import aggregates

MODULES = sorted(Path(aggregates.__file__).parent.glob("*.py"))
MAKES_EVENTS = {"trigger_event", "_create"}


def _made(tree: ast.AST) -> list[ast.Call]:
    return [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in MAKES_EVENTS
    ]


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.stem)
def test_every_event_is_given_its_time(module: Path) -> None:
    untimed = [
        call.lineno
        for call in _made(ast.parse(module.read_text()))
        if "timestamp" not in {keyword.arg for keyword in call.keywords}
    ]
    assert untimed == []


def test_events_are_made_somewhere() -> None:
    assert sum(len(_made(ast.parse(module.read_text()))) for module in MODULES) > 5
