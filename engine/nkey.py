"""NATS key pairs as text: a seed that is secret, a public key that is not, and signatures by one that the other proves.

The library `nkeys` signs and encodes; it cannot check a signature with a public key alone, which is what is needed of
whoever presents one, and it makes no JWT.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
from collections.abc import Mapping
from typing import Any

import msgspec
import nkeys  # type: ignore[import-untyped]
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from engine.messages import PUBLIC_KEY_PATTERN

_PREFIX, _CHECKSUM = 1, 2  # bytes around the key's 32


def make_seed() -> str:
    """A fresh seed of a user."""
    return str(nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_USER).decode())


def public_key(seed: str) -> str:
    """The public key that goes with a seed. Raises `ValueError`."""
    pair = _pair(seed)
    try:
        return str(pair.public_key.decode())
    finally:
        pair.wipe()


def sign(seed: str, message: bytes) -> str:
    """The seed's signature under a message, in base64. Raises `ValueError`."""
    pair = _pair(seed)
    try:
        return base64.b64encode(pair.sign(message)).decode()
    finally:
        pair.wipe()


def is_user(public: str) -> bool:
    """Whether the text is the public key of a user, its checksum included."""
    return _raw(public) is not None


def has_signed(public: str, message: bytes, signature: str) -> bool:
    """Whether the holder of this public key's seed signed the message. Nothing that is sent makes it raise."""
    raw = _raw(public)
    if raw is None:
        return False
    try:
        Ed25519PublicKey.from_public_bytes(raw).verify(base64.b64decode(signature, validate=True), message)
    except (InvalidSignature, binascii.Error, ValueError):
        return False
    return True


def signed_claims(seed: str, claims: Mapping[str, Any]) -> str:
    """A JWT as NATS has it, by the seed of whoever vouches for what it says. Raises `ValueError`."""
    parts = [{"typ": "JWT", "alg": "ed25519-nkey"}, claims]
    content = ".".join(_base64url(msgspec.json.encode(part)) for part in parts)
    return f"{content}.{_base64url(base64.b64decode(sign(seed, content.encode())))}"


def claims_of(token: bytes) -> bytes:
    """What a JWT says, as JSON; who says it is not checked. Raises `ValueError`."""
    parts = token.split(b".")
    if len(parts) != 3:  # noqa: PLR2004 - header, claims, signature
        raise ValueError("this is no JWT")
    return base64.urlsafe_b64decode(parts[1] + b"=" * (-len(parts[1]) % 4))


def _base64url(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).decode().rstrip("=")


def _pair(seed: str) -> nkeys.KeyPair:
    try:
        return nkeys.from_seed(bytearray(seed.strip().encode()))
    except nkeys.NkeysError as error:
        raise ValueError(f"this is no seed: {error}") from None


def _raw(public: str) -> bytes | None:
    if not re.fullmatch(PUBLIC_KEY_PATTERN, public):
        return None
    whole = base64.b32decode(public)
    content, checksum = whole[:-_CHECKSUM], whole[-_CHECKSUM:]
    if content[0] != nkeys.PREFIX_BYTE_USER or nkeys.crc16(content).to_bytes(2, "little") != checksum:
        return None
    return content[_PREFIX:]
