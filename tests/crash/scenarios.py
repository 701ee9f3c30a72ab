"""The runs of the crash matrix, found by walking the charts: nobody lists them, so nobody can forget one.

Every owing state is passed and every transition taken that commands, paid effects and failures can lead to; of the
runs that do so only those are kept that show something new. It is pure: what the runs show is for the harness to see.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from copy import copy
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import msgspec

from aggregates import base
from aggregates.base import Context, Failure, Lifecycled, Refusal
from aggregates.catalogue import Catalogue
from aggregates.commands import COMMANDS, Command
from engine.clouds.simulated import BARE, CATALOGUE
from engine.deciding import AGGREGATES

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)
ID = UUID(int=1)

Edge = tuple[str, str, str, str]  # whose it is, the event, the state that was left, the state that was entered


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One command, and what is to go wrong from when it is sent on.

    `fails`: the owing states whose effects fail for good. `unanswered`: the one in which the answer of the call that
    makes something is lost, once. `during`: the owing state in which the operation before must be when it is sent,
    parked or on its way; None: settled. `bare`: the cloud offers what clouds did before there were security groups.
    """

    command: Command
    fails: tuple[str, ...] = ()
    unanswered: str | None = None
    during: str | None = None
    parked: bool = False
    bare: bool = False

    def __str__(self) -> str:
        given = [*_said(self.command), *(["on a bare cloud"] if self.bare else [])]
        said = self.command.wire_name() + (f" ({', '.join(given)})" if given else "")
        said += f" unanswered in {self.unanswered}" if self.unanswered else ""
        said += f" failing in {' and '.join(self.fails)}" if self.fails else ""
        if self.during:
            said += f" while {'parked' if self.parked else ''} in {self.during}".replace("  ", " ")
        return said


class Scenario(msgspec.Struct, frozen=True, kw_only=True):
    """`before` leads to the settled state `begins`; `steps` are the run itself, which ends in the settled state `ends`.

    `shows` are the edges for whose sake it is run.
    """

    kind: str
    before: tuple[Step, ...]
    steps: tuple[Step, ...]
    begins: str
    ends: str
    shows: frozenset[Edge]

    @property
    def operation(self) -> str:
        """The name of the command under test: the last one."""
        return self.steps[-1].command.wire_name()

    @property
    def name(self) -> str:
        """What happens, in one line: unique among the scenarios."""
        made = str(self.before[0]) if self.before else ""
        plainly = not self.before or made == self.before[0].command.wire_name()
        begins = f" from {self.begins}{'' if plainly else f' of {made}'}" if self.begins else ""
        return ", ".join(str(step) for step in self.steps) + begins


class _Walk:
    """One aggregate on its way, and the edges that it took since the last command."""

    def __init__(self, kind: type[Lifecycled], aggregate: Lifecycled | None = None) -> None:
        self.kind = kind
        self.aggregate: Any = aggregate
        self.edges: list[Edge] = []
        self._whose = ""

    @property
    def state(self) -> str:
        """The state; empty while there is nothing."""
        return "" if self.aggregate is None else str(self.aggregate.state)

    @property
    def parked(self) -> bool:
        """Whether paying has stopped."""
        return self.aggregate is not None and self.aggregate.parked is not None

    @property
    def done(self) -> bool:
        """Whether nothing went wrong on the way."""
        return self.aggregate is not None and self.aggregate.failure is None

    @property
    def owing(self) -> bool:
        """Whether something is owed and may be paid."""
        return self.aggregate is not None and self.aggregate.owes() is not None and not self.parked

    def after(self, command: Command, *, bare: bool = False) -> _Walk | None:
        """What this walk is after the command; None when that is refused or changes nothing."""
        context = _context(BARE if bare else CATALOGUE)
        walk = self._copy()
        source, walk.edges = walk.state, []
        try:
            if walk.aggregate is None:
                if not command.creates:
                    return None
                walk.aggregate = walk.kind.create(ID, command, context)  # type: ignore[attr-defined]
            else:
                walk.aggregate.execute(addressed(command, walk.aggregate), context)
        except Refusal:
            return None
        # What follows a command about an operation is that operation's.
        operation, walk._whose = self._whose, command.wire_name() + (" when parked" if self.parked else "")
        walk._took(source)
        if walk.state == source:  # the same wherever it is sent
            walk.edges = [(whose, event, "", "") for whose, event, _, _ in walk.edges]
        walk._whose = operation if "operation_id" in command.__struct_fields__ else command.wire_name()
        return walk if walk.edges else None

    def paid(self) -> _Walk:
        """What it is once what is owed is paid."""
        walk = self._copy()
        source, owed = walk.state, walk.aggregate.owes()
        recorded = base._facts(walk.aggregate.events[owed.then])
        made_up = {name: _specimen(kind) for name, kind in recorded.items() if name not in owed.facts}
        walk.aggregate.take(owed.then, at=NOON, **made_up, **owed.facts)
        walk._took(source)
        return walk

    def failed(self) -> _Walk:
        """What it is once what is owed has failed for good."""
        walk = self._copy()
        source, aggregate = walk.state, walk.aggregate
        if aggregate.can("failed"):
            aggregate.take("failed", at=NOON, failure=Failure(code="refused", message="as told", state=source))
        else:
            effect = aggregate.owes().effect.type_name
            aggregate.note("OperationParked", at=NOON, effect=effect, code="refused", message="as told")
        walk._took(source)
        return walk

    def hindered(self) -> _Walk:
        """What it is once a try has failed in a way that may pass."""
        walk = self._copy()
        facts = {"effect": walk.aggregate.owes().effect.type_name, "code": "refused", "message": "as told"}
        walk.aggregate.note("AttemptFailed", at=NOON, attempt=1, retry_at=NOON, **facts)
        walk._took(walk.state)
        return walk

    @property
    def makes(self) -> bool:
        """Whether a call that goes unanswered now may leave something behind."""
        owed = self.aggregate.owes()
        return bool(owed.effect.makes)

    def unanswered(self) -> _Walk:
        """What it is once a call of what is owed went out and its answer is missing."""
        walk = self._copy()
        effect = walk.aggregate.owes().effect.type_name
        walk.aggregate.note("CallUnanswered", at=NOON, effect=effect, until=NOON)
        walk._took(walk.state)
        return walk

    def _copy(self) -> _Walk:
        walk = copy(self)
        walk.edges = list(self.edges)
        if self.aggregate is not None:
            walk.aggregate = copy(self.aggregate)  # facts are replaced, never changed
            vars(walk.aggregate)["_pending_events"] = []
        return walk

    def _took(self, source: str) -> None:
        events = self.aggregate.collect_events()
        self.edges += [(self._whose, type(event).__name__, source, self.state) for event in events]


class Matrix:
    """The scenarios of one kind of aggregate. `examples`: good commands to it, in the order in which they are tried."""

    def __init__(self, kind: type[Lifecycled], examples: Sequence[Command]) -> None:
        self._kind = kind
        self._commands = [variant for example in examples for variant in _variants(example)]
        self._interrupted: set[tuple[str, str, bool]] = set()

    def scenarios(self) -> list[Scenario]:
        """Those that together show all there is."""
        kept: list[Scenario] = []
        shown: set[Edge] = set()
        for found in self._found():
            if new := found.shows - shown:
                shown |= new
                kept.append(msgspec.structs.replace(found, shows=new))
        return kept

    def _found(self) -> Iterator[Scenario]:
        """All runs, from each settled state as it is reached by the fewest commands, and none in between if it can.

        What was made in another way passes other states, so it is another origin.
        """
        origins: deque[tuple[tuple[Step, ...], _Walk]] = deque([((), _Walk(self._kind))])
        roundabout = deque(self._made_before())
        reached: set[tuple[str, str]] = set()
        while origins or roundabout:
            before, origin = (origins or roundabout).popleft()
            key = (origin.state, str(before[0]) if len(before) == 1 and origin.done else "")
            if key in reached:
                continue
            reached.add(key)
            for command in self._commands:
                begun = origin.after(command)
                if begun is None or not begun.owing:
                    continue
                for steps, end in self._runs((Step(command=command),), begun):
                    yield Scenario(
                        kind=self._kind.kind,
                        before=before,
                        steps=steps,
                        begins=origin.state,
                        ends=end.state,
                        shows=frozenset(end.edges),
                    )
                    (origins if len(steps) == 1 else roundabout).append(((*before, *steps), end))

    def _made_before(self) -> Iterator[tuple[tuple[Step, ...], _Walk]]:
        """What was created when clouds offered less."""
        for command in self._commands:
            begun = _Walk(self._kind).after(command, bare=True)
            if begun is not None and command == self._commands[0]:
                yield (Step(command=command, bare=True),), _passed(begun)[1]

    def _runs(self, steps: tuple[Step, ...], begun: _Walk) -> Iterator[tuple[tuple[Step, ...], _Walk]]:
        """Every way on from here: all goes well; each state fails, is left without an answer, is interrupted."""
        passed, end = _passed(begun)
        if not end.parked:
            yield steps, end
        for walk in reversed(passed):  # the later it fails, the more there is to undo
            failing = msgspec.structs.replace(steps[-1], fails=(*steps[-1].fails, walk.state))
            if walk.state not in steps[-1].fails and len(failing.fails) <= MOST_FAILURES:
                yield from self._after_failure((*steps[:-1], failing), walk.failed())
        for walk in passed:
            if walk.makes and not steps[-1].unanswered and not steps[-1].fails:
                unanswered = msgspec.structs.replace(steps[-1], unanswered=walk.state)
                yield from self._runs((*steps[:-1], unanswered), walk.unanswered())
        for walk in passed:
            yield from self._interruptions(steps, walk)

    def _after_failure(self, steps: tuple[Step, ...], walk: _Walk) -> Iterator[tuple[tuple[Step, ...], _Walk]]:
        if walk.owing:
            yield from self._runs(steps, walk)
        elif walk.parked:
            yield from self._interruptions(steps, walk)
        else:
            yield steps, walk

    def _interruptions(self, steps: tuple[Step, ...], walk: _Walk) -> Iterator[tuple[tuple[Step, ...], _Walk]]:
        if len(steps) >= MOST_STEPS:
            return
        walk = walk if walk.parked else walk.hindered()
        for command in self._commands:
            step = Step(command=command, during=walk.state, parked=walk.parked)
            key = (repr(command), walk.state, walk.parked)
            if key in self._interrupted or (after := walk.after(command)) is None:
                continue
            self._interrupted.add(key)
            end = _passed(after)[1]
            if not end.parked:
                yield (*steps, step), end


MOST_FAILURES = 2  # one that leads into compensation, one that parks it
MOST_STEPS = 2  # a command, and one that interrupts it


def scenarios() -> list[Scenario]:
    """Of every aggregate that has a lifecycle."""
    found = []
    for name, kind in AGGREGATES.items():
        if issubclass(kind, Lifecycled):
            found += Matrix(kind, examples(name)).scenarios()
    return found


def examples(kind: str) -> list[Command]:
    """Good commands of each name that the aggregate knows; those that create first."""
    found = [
        msgspec.convert(given, command)
        for (of, _), command in COMMANDS.items()
        if of == kind
        for given in (getattr(command, "example", {}), *getattr(command, "variants", ()))
    ]
    return sorted(found, key=lambda command: not command.creates)


def addressed(command: Command, aggregate: Lifecycled) -> Command:
    """The command, about the operation that runs when it is about any."""
    operation = aggregate.operation
    if operation is None or "operation_id" not in command.__struct_fields__:
        return command
    return msgspec.structs.replace(command, operation_id=operation.id)


def _said(command: Command) -> list[str]:
    """The flags that are set, and what else differs from the example."""
    example = msgspec.convert(getattr(command, "example", {}), type(command))
    return [
        name
        for name in command.__struct_fields__
        if (value := getattr(command, name)) is True or (value is not False and value != getattr(example, name))
    ]


def _variants(example: Command) -> Iterator[Command]:
    """The example, and the example with each of its flags set the other way."""
    yield example
    for name in example.__struct_fields__:
        value = getattr(example, name)
        if isinstance(value, bool):
            yield msgspec.structs.replace(example, **{name: not value})


def _passed(walk: _Walk) -> tuple[list[_Walk], _Walk]:
    """The walk in each owing state that it passes when all goes well, itself first, and where it ends."""
    passed = []
    while walk.owing:
        passed.append(walk)
        walk = walk.paid()
    return passed, walk


def _context(catalogue: Catalogue) -> Context:
    return Context(at=NOON, command_id=uuid4(), actor="crash", project="acme", partition=0, catalogue=catalogue)


def _specimen(kind: Any) -> Any:
    """Some value of a fact's type, for the walk alone."""
    values: tuple[Any, ...] = ("made-up", 1, (), {}, None)
    for value in values:
        try:
            return msgspec.convert(value, kind)
        except msgspec.ValidationError:
            continue
    raise TypeError(f"the walk cannot make up a fact of type {kind}")
