"""errors.md: every stable code, what it means, what to do, and who says it."""

from __future__ import annotations

from docs._generate.codes import CODES
from docs._generate.scan import codes
from docs._generate.text import code, table

SECTIONS = {
    "command": "Commands: why one is rejected, in its decision and its record. It changed nothing.",
    "operation": "Operations: why an effect was not paid, in events, operations and `failure`.",
    "query": "Queries: why one is not answered.",
    "client": "The client library: what a publisher meets.",
    "guest agent": "The guest agent: in its own log, and in the message of `guest_error`.",
    "enrolment": "Enrolment: why a new machine is not let in, in the log of its agent and of the worker.",
    "process": "Processes: why one of the program's own does not start, or stops.",
}


def page() -> str:
    """The page."""
    said = codes()
    sections = [
        "# Errors",
        (
            "Every error has a stable code and a message. The code is part of the contract; the message is for people: "
            "what happened, to which thing, why, and what to do next. A cloud's or database's own words stand in it."
        ),
    ]
    for who, about in SECTIONS.items():
        title, _, meaning = about.partition(": ")
        rows = [(code(each), *CODES.get(each, ("", ""))) for each, whos in said.items() if who in whos]
        sections += [f"## {title}", meaning[0].upper() + meaning[1:], table(("code", "meaning", "what to do"), rows)]
    return "\n\n".join(sections)
