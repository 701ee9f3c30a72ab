"""Users of a foreign broker, as its operator makes them: NKeys, and the chain of JWTs from operator to user.

The JWTs hold what a nats-server asks of them and no more: they never expire, and nothing is limited.
"""

from __future__ import annotations

import base64
import json
import os
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

import nkeys  # type: ignore[import-untyped]

from engine.credentials import USERS

UNLIMITED = dict.fromkeys(("subs", "data", "payload"), -1)


class Key:
    """A key pair of one role: a user by default."""

    def __init__(self, prefix: int = nkeys.PREFIX_BYTE_USER) -> None:
        self.seed = str(nkeys.encode_seed(os.urandom(32), prefix).decode())
        self._pair = nkeys.from_seed(bytearray(self.seed.encode()))
        self.public = str(self._pair.public_key.decode())

    def write(self, path: Path) -> Path:
        """The seed as a file."""
        path.write_text(self.seed + "\n")
        return path

    def token(self, subject: Key, kind: str, **claims: Any) -> str:
        """A JWT about the subject, signed by this key."""
        content = {
            "jti": uuid4().hex,
            "iat": int(time.time()),
            "iss": self.public,
            "name": kind,
            "sub": subject.public,
            "nats": {**claims, "type": kind, "version": 2},
        }
        signed = f"{_encoded({'typ': 'JWT', 'alg': 'ed25519-nkey'})}.{_encoded(content)}"
        return f"{signed}.{_base64(self._pair.sign(signed.encode()))}"


class Operator:
    """An operator with an account that may use JetStream, and one for the broker's own affairs."""

    def __init__(self) -> None:
        self._key = Key(nkeys.PREFIX_BYTE_OPERATOR)
        self._account = Key(nkeys.PREFIX_BYTE_ACCOUNT)
        self._system = Key(nkeys.PREFIX_BYTE_ACCOUNT)

    @property
    def config(self) -> str:
        """What a nats-server is told."""
        limits = UNLIMITED | dict.fromkeys(("conn", "leaf", "imports", "exports"), -1)
        storage = dict.fromkeys(("mem_storage", "disk_storage", "streams", "consumer"), -1)
        account = self._key.token(self._account, "account", limits=limits | storage)
        system = self._key.token(self._system, "account", limits=limits)
        operator = self._key.token(self._key, "operator", system_account=self._system.public)
        return (
            f"operator: {operator}\nresolver: MEMORY\n"
            f"resolver_preload: {{ {self._account.public}: {account}, {self._system.public}: {system} }}\n"
        )

    def credentials(self, path: Path, newline: str = "\n") -> Path:
        """A new user of the account as a file of credentials."""
        user = Key()
        token = self._account.token(user, "user", pub={}, sub={}, **UNLIMITED)
        lines = (
            "-----BEGIN NATS USER JWT-----", token, "------END NATS USER JWT------", "",
            "-----BEGIN USER NKEY SEED-----", user.seed, "------END USER NKEY SEED------", "",
        )  # fmt: skip
        path.write_bytes(newline.join(lines).encode())
        return path


def asks_about_guests(engine: Key, enrol: Key, issuer: Key) -> str:
    """What an operator tells a nats-server whose guests come and go: it asks the engine about them."""
    rights = {"publish": USERS["enrol"].publish, "subscribe": USERS["enrol"].subscribe}
    return f"""
accounts {{
  HOLDFAST {{
    jetstream: enabled
    users: [ {{ nkey: {engine.public} }}, {{ nkey: {enrol.public}, permissions: {json.dumps(rights)} }} ]
  }}
  SYS {{ }}
}}
system_account: SYS
authorization {{
  auth_callout {{
    issuer: {issuer.public}
    account: HOLDFAST
    auth_users: [ {engine.public}, {enrol.public} ]
  }}
}}
"""


def _encoded(value: dict[str, Any]) -> str:
    return _base64(json.dumps(value).encode())


def _base64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")
