"""What is kept of a message that could not be decided, for the operator to look at and perhaps to replay.

Guarantees that no value under a key that names a secret is kept, neither in the body nor in a traceback. It cannot
know a secret that a publisher put under a name that says nothing, or into a body that is no JSON: such a body is not
kept at all.
"""

from __future__ import annotations

import json
import re
import traceback
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from aggregates.base import Refusal
from engine.intake import SECRET_KEYS, Received
from engine.messages import DeadLetter

REDACTED = "***"
KEPT_BODY = 2048  # characters
KEPT_TRACEBACK = 16_384

_NAMED = re.compile(
    rf"""(?i)(["']?\b(?:{"|".join(sorted(SECRET_KEYS))})\b["']?\s*[:=]\s*)("[^"]*"|'[^']*'|[^\s,;)}}\]]+)"""
)
_IN_URL = re.compile(r"(://[^\s:/@]+:)[^\s@]+@")


def letter(received: Received, refusal: Refusal, at: datetime) -> DeadLetter:
    """The dead letter of a message, refused as it says."""
    body, whole = _kept(received.body)
    return DeadLetter(
        code=refusal.code,
        reason=refusal.message,
        subject=str(received.subject),
        sequence=received.sequence,
        size=len(received.body),
        content=received.content,
        body=body,
        received_at=at,
        command_id=received.command_id,
        tries=received.tries,
        traceback=received.traceback,
        original=received.body.decode() if whole and received.wish is not None else None,
    )


def told(error: BaseException, body: bytes) -> str:
    """The traceback of what broke on this body, with the body's secrets blanked out."""
    text = "".join(traceback.format_exception(error))
    for secret in sorted(set(_secrets(_parsed(body))), key=len, reverse=True):
        text = text.replace(secret, REDACTED)
    text = _IN_URL.sub(rf"\g<1>{REDACTED}@", _NAMED.sub(rf"\g<1>{REDACTED}", text))
    return text if len(text) <= KEPT_TRACEBACK else f"...\n{text[-KEPT_TRACEBACK:]}"


def redacted(body: bytes) -> str:
    """The body with secrets blanked out; one that is no JSON is not shown, since it may hold some."""
    return _kept(body)[0]


def _kept(body: bytes) -> tuple[str, bool]:
    """What may be shown of a body, and whether nothing of it had to be hidden."""
    content = _parsed(body)
    if content is None:
        return f"<{len(body)} bytes that are no JSON>", False
    blanked = _blank(content)
    return json.dumps(blanked)[:KEPT_BODY], blanked == content


def _parsed(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def _blank(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: REDACTED if _is_secret(key, inner) else _blank(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_blank(inner) for inner in value]
    return value


def _secrets(value: Any, *, secret: bool = False) -> Iterator[str]:
    """Every string that stands under a key that names a secret."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _secrets(inner, secret=secret or _is_secret(key, inner))
    elif isinstance(value, list):
        for inner in value:
            yield from _secrets(inner, secret=secret)
    elif secret and isinstance(value, str) and value:
        yield value


def _is_secret(key: str, value: Any) -> bool:
    return key.lower() in SECRET_KEYS and value is not None
