"""Adds the golden histories that are not on file yet: `python -m tests.golden.record`.

It never writes a file again: what is on file stands for logs that exist. To change what an event says, give its class
a `class_version` and an upcast, and record the new form under a new name.
"""

from __future__ import annotations

from pathlib import Path

from tests.golden.history import DIRECTORY, written
from tests.golden.scenarios import scenarios


def record(directory: Path) -> list[str]:
    """Write the missing files; their names."""
    new = []
    for name, tell in sorted(scenarios().items()):
        path = directory / f"{name}.jsonl"
        if path.exists():
            continue
        with path.open("xb") as file:
            file.write(written(tell(), folded=not name.startswith("command-")))
        new.append(path.name)
    return new


if __name__ == "__main__":
    print("\n".join(record(DIRECTORY)) or "nothing is missing")
