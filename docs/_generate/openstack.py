"""openstack.md: the file that says how OpenStack is used, as its structs and what stands below their fields say."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, get_args

import msgspec

from docs._generate.text import code, doc, table
from engine.clouds.openstack.config import CloudConfig


def page() -> str:
    """The page."""
    return "\n\n".join(
        [
            "# The configuration of OpenStack",
            (
                "One TOML file, given as `--cloud-config FILE` or in `HOLDFAST_CLOUD_CONFIG`. A key that is unknown, "
                "or a value of another kind, ends the start. Credentials do not stand in it: see "
                "[how to deploy on OpenStack](../how-to/deploy-on-openstack.md)."
            ),
            *_sections("", CloudConfig),
        ]
    )


def _sections(name: str, struct: type[msgspec.Struct]) -> Iterator[str]:
    yield f"## {f'`[{name}]`' if name else 'At the top'}"
    yield doc(struct)
    said = _said(struct)
    fields = msgspec.structs.fields(struct)
    inner = {each.name: each.type for each in fields if _is_struct(each.type)}
    yield table(
        ("key", "type", "default", "meaning"),
        [
            (code(each.name), _kind(each.type), _default(each), said.get(each.name, ""))
            for each in fields
            if each.name not in inner
        ],
    )
    for key, kind in inner.items():
        yield from _sections(key, kind)
    for each in fields:
        for named in get_args(each.type):
            if _is_struct(named):
                yield from _sections(f"{each.name}.NAME", named)


def _is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def _said(struct: type[msgspec.Struct]) -> dict[str, str]:
    """What stands below each field."""
    said: dict[str, str] = {}
    for each in ast.walk(ast.parse(inspect.getsource(struct))):
        body = each.body if isinstance(each, ast.ClassDef) else []
        for field, below in pairwise(body):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(below, ast.Expr):
                said[field.target.id] = str(ast.literal_eval(below.value))
    return said


def _kind(kind: Any) -> str:
    """The type in an operator's words."""
    words = str(kind)
    for python, plain in _WORDS:
        if python in words:
            return plain
    return words


_WORDS = (
    ("dict", "table"),
    ("tuple", "list of texts"),
    ("float", "seconds"),
    ("bool", "yes or no"),
    ("int", "number"),
    ("str", "text"),
)


def _default(field: msgspec.structs.FieldInfo) -> str:
    if field.required:
        return "must be given"
    default = field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
    if default is None or default in ({}, ()):
        return "none"
    if isinstance(default, tuple):
        return code("[" + ", ".join(f'"{each}"' for each in default) + "]")
    if isinstance(default, bool):
        return code(str(default).lower())
    return code(f"{default:g}" if isinstance(default, float) else default)
