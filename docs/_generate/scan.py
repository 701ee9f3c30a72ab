"""Every stable code that the program can say, found in its source: where, and by which exception or answer."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("aggregates", "engine", "projections")
WORD = re.compile(r"[a-z]+(_[a-z]+)*")
# Who says a code, by the root of the exception's or answer's class.
SAID = {
    "Refusal": "command",
    "Decision": "command",
    "PayError": "operation",
    "Failure": "operation",
    "QueryError": "query",
    "ErrorReply": "query",
    "ClientError": "client",
    "DatastoreError": "guest agent",
    "EnrolmentRefused": "enrolment",
}
OTHERWISE = "process"


def codes() -> dict[str, set[str]]:
    """Each code, and who says it."""
    trees = {
        path.relative_to(ROOT): ast.parse(path.read_text(encoding="utf-8"))
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
    }
    classes = _Classes(trees.values())
    found: dict[str, set[str]] = defaultdict(set)
    for path, tree in trees.items():
        for code, said_by in _said(tree, classes):
            found[code].add("guest agent" if path.parts[:2] == ("engine", "guest") else said_by)
    return dict(sorted(found.items()))


class _Classes:
    """The classes of the program, and which of them bear a code."""

    def __init__(self, trees: Iterable[ast.Module]) -> None:
        self._bases: dict[str, list[str]] = {}
        self._coded: dict[str, int] = {}
        for tree in trees:
            for node in ast.walk(tree):
                if isinstance(node, ast.ClassDef):
                    self._bases[node.name] = [base.id for base in node.bases if isinstance(base, ast.Name)]
                    for each in node.body:
                        if (position := _position(each)) is not None:
                            self._coded[node.name] = position

    def said_by(self, name: str) -> str | None:
        """Who says the code that a call of this class bears; None when it bears none."""
        line = list(self._line(name))
        if not any(each in self._coded for each in line):
            return None
        return next((SAID[each] for each in line if each in SAID), OTHERWISE)

    def position(self, name: str) -> int:
        """Which argument the code is, where it is not named."""
        return next((self._coded[each] for each in self._line(name) if each in self._coded), 0)

    def _line(self, name: str) -> Iterator[str]:
        yield name
        for base in self._bases.get(name, ()):
            yield from self._line(base)


def _position(node: ast.stmt) -> int | None:
    """Which argument the code is, if this part of a class's body declares one."""
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == "code":
        return 0
    if isinstance(node, ast.FunctionDef) and node.name == "__init__":
        arguments = [each.arg for each in node.args.args[1:]]
        return arguments.index("code") if "code" in arguments else None
    return None


def _said(tree: ast.Module, classes: _Classes) -> Iterator[tuple[str, str]]:
    for scope in ast.walk(tree):
        if isinstance(scope, ast.ClassDef):
            yield from _in_class(scope, classes)
        elif isinstance(scope, ast.Call):
            yield from _in_call(scope, classes)
        elif isinstance(scope, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "code" for t in scope.targets):
            for word in _words(scope.value):
                yield word, _assigned(tree, classes)


def _in_class(scope: ast.ClassDef, classes: _Classes) -> Iterator[tuple[str, str]]:
    """What an exception hands to its base, `super().__init__("code", ...)`, or says of itself: "Code `...`."."""
    for word in re.findall(r"Code `([a-z_]+)`", ast.get_docstring(scope) or ""):
        yield word, classes.said_by(scope.name) or OTHERWISE
    for node in ast.walk(scope):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "__init__":
            said_by = classes.said_by(scope.name)
            if said_by is not None and node.args:
                for word in _words(node.args[0]):
                    yield word, said_by


def _in_call(call: ast.Call, classes: _Classes) -> Iterator[tuple[str, str]]:
    if not isinstance(call.func, ast.Name):
        return
    said_by = classes.said_by(call.func.id)
    if said_by is None and call.func.id == "error":
        said_by = "operation"  # guests.py chooses the class by whether trying again may help
    if said_by is None:
        return
    for keyword in call.keywords:
        if keyword.arg == "code":
            for word in _words(keyword.value):
                yield word, said_by
    position = classes.position(call.func.id)
    if len(call.args) > position:
        for word in _words(call.args[position]):
            yield word, said_by


def _assigned(tree: ast.Module, classes: _Classes) -> str:
    """Who says a code that is put into a variable first: what the module raises or answers."""
    called = [node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    return next((said for name in called if (said := classes.said_by(name)) is not None), OTHERWISE)


def _words(node: ast.expr) -> Iterator[str]:
    if isinstance(node, ast.IfExp):
        yield from _words(node.body)
        yield from _words(node.orelse)
    elif isinstance(node, ast.Constant) and isinstance(node.value, str) and WORD.fullmatch(node.value):
        yield node.value
