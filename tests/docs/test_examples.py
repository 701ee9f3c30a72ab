"""What the documentation shows works as shown: every block marked `run`, against one real installation.

A Python block is a program of its own; the shell blocks of a page are one session, in order.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from tests.support.installation import HOLDFAST, Installation, installation

# One worker of a parallel run takes all of them, and so needs one installation only.
pytestmark = [pytest.mark.xdist_group("docs-examples"), pytest.mark.timeout(300)]

WITHIN = 240  # seconds; the longest is a session of a dozen commands
ROOT = Path(__file__).parents[2]
_BLOCK = re.compile(r"^( *)```(python|sh) run\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)


class Example(msgspec.Struct, frozen=True, kw_only=True):
    """A program of a page: `language` is python or sh."""

    page: str
    line: int
    language: str
    source: str

    @property
    def name(self) -> str:
        """Where it stands."""
        return f"{self.page}:{self.line}"


def pages() -> list[Path]:
    """The pages for people."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def examples() -> list[Example]:
    """Every program of every page."""
    return [example for page in pages() for example in _of(page)]


def _of(page: Path) -> Iterator[Example]:
    text = page.read_text()
    name = str(page.relative_to(ROOT))
    session: list[tuple[int, str]] = []
    for found in _BLOCK.finditer(text):
        line = text.count("\n", 0, found.start()) + 2
        source = re.sub(f"^{found[1]}", "", found[3], flags=re.MULTILINE)
        if found[2] == "python":
            yield Example(page=name, line=line, language="python", source=source)
        else:
            session.append((line, source))
    if session:
        yield Example(page=name, line=session[0][0], language="sh", source="\n".join(part for _, part in session))


Run = Future[subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def running(request: pytest.FixtureRequest) -> Iterator[tuple[Installation, dict[str, Run]]]:
    """An installation, and the examples that were chosen, at work on it side by side: they mostly wait."""
    selected = [getattr(item, "callspec", None) for item in request.session.items]
    chosen = {
        spec.params["example"].name: spec.params["example"] for spec in selected if spec and "example" in spec.params
    }
    with installation() as made:
        made.start()
        with ThreadPoolExecutor(4) as threads:
            yield made, {name: threads.submit(_carry_out, example, made) for name, example in chosen.items()}


def _carry_out(example: Example, made: Installation) -> subprocess.CompletedProcess[str]:
    program = {
        "python": [sys.executable, "-W", "error", "-c", example.source],
        "sh": ["bash", "-euo", "pipefail", "-c", example.source],
    }[example.language]
    with tempfile.TemporaryDirectory(prefix="holdfast-docs-") as directory:
        return subprocess.run(
            program,
            cwd=directory,
            env={
                "HOME": directory,
                "LANG": "C.UTF-8",
                "PATH": f"{HOLDFAST.parent}:{os.environ['PATH']}",
                "HOLDFAST_STATE": str(made.state),
                # Pages use the same names for their instances, so each has a project of its own.
                "HOLDFAST_PROJECT": re.sub(r"\W", "-", example.page)[-64:],
            },
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=WITHIN,
            check=False,
        )


@pytest.mark.parametrize("example", examples(), ids=lambda example: example.name)
def test_the_example_works_as_shown(example: Example, running: tuple[Installation, dict[str, Run]]) -> None:
    made, runs = running
    done = runs[example.name].result()
    said = f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    assert done.returncode == 0, f"{example.name} ended with {done.returncode}:\n{said}\n{made.said()}"


def test_there_are_examples() -> None:
    assert {example.language for example in examples()} >= {"python"}


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    links = re.findall(
        r"\]\(([^)\s]+)\)", re.sub(r"^ *```.*?^ *```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    )
    local = [link.partition("#")[0] for link in links if "://" not in link and not link.startswith("#")]
    assert [link for link in local if not (page.parent / link).exists()] == []
