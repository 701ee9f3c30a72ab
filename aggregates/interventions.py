"""What can be commanded about the operation that runs: cancel it, try it again, skip a step of it, abandon it.

Each decision raises `Refusal` and changes nothing then. A way back is declared in the chart or there is none: what
is decided here is only whether an operation is in a state to be intervened in, and what is said about it.
"""

from __future__ import annotations

from typing import Any

from aggregates.base import Context, Failure, Intervention, Lifecycled, Operation, Refusal, WrongFactsError, _checked
from aggregates.commands import (
    AbandonOperation,
    CancelOperation,
    OperationCommand,
    RetryOperation,
    SkipStep,
)


def cancel(aggregate: Lifecycled, command: CancelOperation, context: Context) -> None:
    """Undo the operation, from where there is a way back."""
    operation = _running(aggregate, command)
    if not aggregate.can("cancel_requested"):
        raise _refused(command, operation, _no_way_back(aggregate, operation))
    aggregate.take(
        "cancel_requested",
        at=context.at,
        failure=Failure(code="cancelled", message=_said("cancelled", command, context), state=aggregate.state),
        intervention=_intervention(command, context),
    )


def retry(aggregate: Lifecycled, command: RetryOperation, context: Context) -> None:
    """Have what is owed tried now."""
    operation = _running(aggregate, command)
    if aggregate.parked is None and aggregate.retry_at is None:
        raise _refused(command, operation, f"is neither parked nor waits for its next try: {aggregate.state} goes on")
    aggregate.note("RetryRequested", at=context.at, intervention=_intervention(command, context))


def skip(aggregate: Lifecycled, command: SkipStep, context: Context) -> None:
    """Declare what is owed to be paid."""
    _parked(aggregate, command)
    obligation = aggregate.owes()
    assert obligation is not None  # noqa: S101 - what runs owes
    facts = _facts_declared(aggregate, command)
    aggregate.note(
        "StepSkipped",
        at=context.at,
        effect=obligation.effect.type_name,
        intervention=_intervention(command, context),
    )
    aggregate.take(obligation.then, at=context.at, **obligation.facts, **facts)


def abandon(aggregate: Lifecycled, command: AbandonOperation, context: Context) -> None:
    """Leave the operation where it is."""
    _parked(aggregate, command)
    parked = aggregate.parked
    assert parked is not None  # noqa: S101 - just looked at
    message = (
        f"{_said('abandoned', command, context)}; {parked.effect} could not be paid: {parked.message}{aggregate.kept}"
    )
    aggregate.take(
        "operation_abandoned",
        at=context.at,
        failure=Failure(code="abandoned", message=message, state=aggregate.state),
        left_behind=aggregate.left(),
        intervention=_intervention(command, context),
    )


# --- what is looked at --------------------------------------------------------------------------------------------


def _running(aggregate: Lifecycled, command: OperationCommand) -> Operation:
    """The operation that is named, which must be the one that runs."""
    running = aggregate.operation
    if running is not None and running.id == command.operation_id:
        return running
    instead = "none runs" if running is None else f"{running.id} ({running.command}) runs"
    raise Refusal("not_found", f"no operation {command.operation_id} on {aggregate.kind} {aggregate.id}: {instead}")


def _parked(aggregate: Lifecycled, command: OperationCommand) -> None:
    operation = _running(aggregate, command)
    if aggregate.parked is None:
        raise _refused(command, operation, f"is not parked: it goes on by itself, now in {aggregate.state}")


def _no_way_back(aggregate: Lifecycled, operation: Operation) -> str:
    """Why it cannot be cancelled, and what can be done instead."""
    state, instead = aggregate.state, "wait until it has ended"
    if aggregate.parked is not None:
        instead = "it is parked: retry it, skip the step or abandon it"
    if aggregate.can("deletion_requested"):
        instead += f", or delete the {aggregate.kind}"
    if aggregate.undoing:
        return f"is being undone already, now in {state}; {instead}"
    final = [each for each in operation.plan if not aggregate.can_from(each, "cancel_requested")]
    if len(final) == len(operation.plan):
        return f"has nothing that undoes it; {instead}"
    first = final[0] if state in final else state
    return f"is past its point of no return, which is {first}: it is in {state} and only goes forward; {instead}"


def _facts_declared(aggregate: Lifecycled, command: SkipStep) -> dict[str, Any]:
    """The facts to record in place of those that the effect would have yielded."""
    owed, obligation, missing = aggregate.owing[aggregate.state], aggregate.owes(), aggregate.to_yield()
    assert obligation is not None  # noqa: S101 - what runs owes
    effect = obligation.effect.type_name
    if command.facts is None and not owed.absence:
        names = ", ".join(missing) or "none, so give {}"
        raise Refusal(
            "forbidden_state",
            f"skip_step is refused: {aggregate.state} owes {effect}, which is no absence; make it true by hand, then "
            f"give the facts that it yields ({names}), or retry or abandon the operation",
        )
    given = {name: () for name in missing if owed.absence} | (command.facts or {})
    try:
        if lacking := sorted(missing.keys() - given.keys()):
            raise WrongFactsError(f"{effect} yields {', '.join(lacking)} as well")  # noqa: TRY301 - told with the rest
        return _checked(effect, given, missing)
    except WrongFactsError as wrong:
        raise Refusal("invalid_argument", f"facts: {wrong}") from None


# --- what is said -------------------------------------------------------------------------------------------------


def _refused(command: OperationCommand, operation: Operation, why: str) -> Refusal:
    return Refusal(
        "forbidden_state", f"{command.wire_name()} is refused: operation {operation.id} ({operation.command}) {why}"
    )


def _intervention(command: OperationCommand, context: Context) -> Intervention:
    return Intervention(
        command_id=context.command_id, command=command.wire_name(), actor=context.actor, reason=command.reason
    )


def _said(what: str, command: OperationCommand, context: Context) -> str:
    return f"{what} by {context.actor}" + (f": {command.reason}" if command.reason else "")
