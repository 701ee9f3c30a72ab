"""JSON schemas of everything on the wire, from the types that encode and decode it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

REFERENCE = "#/components/schemas/{name}"
# What the library records beside an event's facts: on the wire it stands in the envelope.
LIBRARY = frozenset({"originator_id", "originator_version", "originator_topic", "timestamp"})


def components(types: Iterable[Any]) -> tuple[dict[Any, dict[str, Any]], dict[str, Any]]:
    """For each type the schema that refers to it, and the schemas referred to."""
    listed = list(dict.fromkeys(types))
    references, schemas = msgspec.json.schema_components(listed, ref_template=REFERENCE)
    _say_moments(listed, schemas)
    return dict(zip(listed, references, strict=True)), {name: _tidy(schemas[name]) for name in sorted(schemas)}


def _say_moments(types: list[Any], schemas: dict[str, Any]) -> None:
    """Say `date-time` of moments: the library leaves it out where the type does not ask for a time zone."""
    seen: set[Any] = set()
    todo: list[Any] = list(msgspec.inspect.multi_type_info(types))
    while todo:
        node = todo.pop()
        if isinstance(node, msgspec.inspect.StructType | msgspec.inspect.DataclassType) and node.cls not in seen:
            seen.add(node.cls)
            for field in node.fields:
                todo.append(field.type)
                if _is_moment(field.type):
                    _mark(schemas[node.cls.__name__]["properties"][field.encode_name])
        elif isinstance(node, msgspec.inspect.UnionType):
            todo += node.types
        elif isinstance(node, msgspec.inspect.CollectionType):
            todo.append(node.item_type)
        elif isinstance(node, msgspec.inspect.DictType):
            todo.append(node.value_type)


def _is_moment(node: Any) -> bool:
    kinds = node.types if isinstance(node, msgspec.inspect.UnionType) else (node,)
    return any(isinstance(kind, msgspec.inspect.DateTimeType) for kind in kinds)


def _mark(schema: dict[str, Any]) -> None:
    for each in schema.get("anyOf", (schema,)):
        if each.get("type") == "string":
            each["format"] = "date-time"


def facts(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema of an event's facts alone."""
    return {
        **schema,
        "properties": {name: each for name, each in schema["properties"].items() if name not in LIBRARY},
        "required": [name for name in schema.get("required", ()) if name not in LIBRARY],
    }


def words(schema: dict[str, Any], schemas: dict[str, Any]) -> str:
    """The type in words: `integer, 1 to 65536`."""
    name = schema.get("$ref", "").rpartition("/")[2]
    enumerated = schema.get("enum") or schemas.get(name, {}).get("enum")
    if enumerated:
        return f"one of {', '.join(map(str, enumerated))}"
    if name:
        return str(name)
    if "anyOf" in schema:
        return " or ".join(words(each, schemas) for each in schema["anyOf"])
    return _plain(schema, schemas)


def _plain(schema: dict[str, Any], schemas: dict[str, Any]) -> str:
    match schema.get("type", "any"), schema.get("format"):
        case "array", _:
            return f"list of {words(schema.get('items', {}), schemas)}"
        case "object", _:
            return f"object of {words(schema.get('additionalProperties') or {}, schemas)}"
        case "string", "uuid":
            return "UUID"
        case "string", "date-time":
            return "moment"
        case kind, _:
            return f"{kind}{_limits(schema)}"


def _limits(schema: dict[str, Any]) -> str:
    for least, most, unit in (("minimum", "maximum", ""), ("minLength", "maxLength", " characters")):
        if least in schema and most in schema:
            return f", {schema[least]} to {schema[most]}{unit}"
        if least in schema:
            return f", at least {schema[least]}{unit}"
    return ""


def _tidy(value: Any) -> Any:
    """Descriptions on one line: where a docstring breaks is nobody's business outside."""
    if isinstance(value, dict):
        return {
            k: " ".join(v.split()) if k == "description" and isinstance(v, str) else _tidy(v) for k, v in value.items()
        }
    if isinstance(value, list):
        return [_tidy(each) for each in value]
    return value
