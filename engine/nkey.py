"""NATS key pairs as text: a seed that is secret, a public key that is not, and signatures by one that the other proves.

The library `nkeys` signs and encodes; it cannot check a signature with a public key alone, which is what is needed of
whoever presents one.
"""

from __future__ import annotations

import base64
import binascii
import os
import re

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
