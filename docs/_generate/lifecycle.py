"""lifecycle.md: the chart of an instance, what each state owes, and how each command goes, fails and ends."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterable
from dataclasses import fields
from textwrap import dedent

from aggregates.base import transitions
from aggregates.instance import Instance
from docs._generate.specimen import EXAMPLES, effect, entered, leaves, optional, plan, settled, top, way
from docs._generate.text import code, table

SETTLED = {
    "ACTIVE": "The database is there and no operation runs.",
    "SHUTOFF": "Database and server are stopped; the data stay. It can be started or deleted.",
    "ERROR": "An operation failed and a server exists; `failure` says why.",
    "FAILED": "The create was undone: nothing exists, `failure` says why, and it can only be deleted.",
    "DELETED": "Nothing of it exists any more. The end.",
}
_LIBRARY = {"originator_id", "originator_version", "timestamp", "state", "operation_id"}


def page() -> str:
    """The page."""
    return "\n\n".join(
        [
            "# The lifecycle of an instance",
            (
                "The top states are the words that users see. The states inside them are waiting points: each owes one "
                "effect, and when it is paid the transition named beside it is taken. A state at the top owes nothing: "
                "the instance is settled, and takes commands."
            ),
            _meanings(),
            "## Chart",
            f"```mermaid\n{format(Instance.chart, 'mermaid').strip()}\n```",
            "## What each state owes",
            (
                "`fails to` is where a final failure, or a passed deadline, leads. Where it is empty there is no way "
                "back: what cannot be paid *parks*, and shows, until an operator acts. `cancelled to` is where "
                "`cancel_operation` leads; where it is empty it is refused."
            ),
            _owing(),
            "## What each command passes",
            *_commands(),
            "## Transitions and their events",
            (
                "Each transition is recorded by one event class. Facts are what the event says besides the state "
                "entered and the operation it belongs to; those in parentheses come only with the commands."
            ),
            _transitions(),
        ]
    )


def _meanings() -> str:
    inner = {top(state) for state in leaves() if Instance.owes_in(state)}
    described = _described()
    return table(
        ("status", "meaning", "settled"),
        ((code(state.id), described[state.id], "" if state.id in inner else "yes") for state in Instance.chart.states),
    )


def _described() -> dict[str, str]:
    """What each status means: the compounds' docstrings, which the library does not keep, and the settled ones."""
    (chart,) = ast.parse(dedent(inspect.getsource(Instance.chart))).body
    compounds = {c.name: ast.get_docstring(c) or "" for c in ast.walk(chart) if isinstance(c, ast.ClassDef)}
    return {**compounds, **SETTLED}


def _owing() -> str:
    return table(
        ("status", "state", "owes", "then", "enters", "fails to", "cancelled to"),
        (
            (
                code(top(state)),
                code(state),
                code(effect(state)),
                code(Instance.owing[state].then),
                " or ".join(code(to) for to in transitions(Instance.chart)[Instance.owing[state].then][state]),
                _failing(state),
                code(entered(state, "cancel_requested") or ""),
            )
            for state in leaves()
            if Instance.owes_in(state)
        ),
    )


def _failing(state: str) -> str:
    to = entered(state, "failed")
    kept = entered(state, "failed", keep_on_failure=True)
    if to is None:
        return ""
    return code(to) if kept in (None, to) else f"{code(to)}, or {code(kept)} with `keep_on_failure`"


def _commands() -> Iterable[str]:
    for name in EXAMPLES:
        states = plan(name)
        _, end = way(states[0])
        reversible = [state for state in states if entered(state, "failed") is not None]
        final = next((state for state in states if state not in reversible), None)
        yield f"### {name}"
        yield f"Passes {_row(states)}, and ends {code(end)}."
        if wanted := [state for state in states if state in optional(name)]:
            yield f"Only where it is wanted, or the cloud works so: {_row(wanted)}."
        yield _point(final)
        if reversible:
            yield table(("failing in", "passes", "and ends"), (_undo(state) for state in reversible))


def _point(final: str | None) -> str:
    if final is None:
        return "It has no point of no return: a failure in any state ends it."
    return f"Its point of no return is {code(final)}: from there on it goes forward only, or parks."


def _undo(state: str) -> tuple[str, str, str]:
    to = entered(state, "failed")
    if to is None:
        raise TypeError(f"{state} does not fail")
    passed, end = way(to)
    return code(state), _row(passed) or "nothing", code(end)


def _row(states: Iterable[str]) -> str:
    return ", ".join(code(state) for state in states)


def _transitions() -> str:
    declared = transitions(Instance.chart)
    rows = []
    for name, event in Instance.events.items():
        facts = [f"{code(f.name)}" for f in fields(event) if f.name not in _LIBRARY | {"operation", "failure"}]
        begins = [f"({code(f.name)})" for f in fields(event) if f.name == "operation"]
        failure = [code(f.name) for f in fields(event) if f.name == "failure" and name == "failed"]
        rows.append((code(name), code(event.__name__), ", ".join([*begins, *facts, *failure]), _from(declared[name])))
    return table(("transition", "event", "facts", "declared from"), rows)


def _from(sources: dict[str, tuple[str, ...]]) -> str:
    if len(sources) > len(settled()) + len({top(state) for state in leaves()}):
        return f"{len(sources)} states, see above"
    return ", ".join(code(source) for source in sources)
