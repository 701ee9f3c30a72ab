"""The vault: secrets at rest, one encrypted file each, named by references that commands and events may carry.

Guarantees that a secret is on disk when `put` returns, is readable only with the vault's key and only for the project
that put it, and that a file which was changed or moved is noticed. It does not hide secrets from root, who can read
the key, nor bring them back when the key is lost.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Collection
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from uuid import UUID, uuid4

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from engine.private_files import delete_file, make_file, replace_file

_SCHEME = "vault:"
_FORMAT = b"\x01"  # followed by the project's hash, a nonce, and the secret under AES-256-GCM with its tag
_HEADER = 1 + 32
_NONCE = 12
_KEY = 32


class VaultError(Exception):
    """The vault cannot be used: `vault_key_missing`, `vault_key_exposed`, `vault_key_damaged`, `secret_unreadable`."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code


class SecretNotFound(KeyError):  # noqa: N818 - named as what it is about
    """There is no such secret for this project, be it that it never was, was deleted, or is another's."""

    code = "secret_not_found"

    def __init__(self, reference: str) -> None:
        super().__init__(reference)
        self.reference = reference

    def __str__(self) -> str:
        return f"{self.code}: no secret {self.reference[:64]!r} in this project; put it again and use the new reference"


class Vault:
    """The secrets under one directory. Blocking; may be used by several threads and processes at once."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._key: AESGCM | None = None
        self._opening = threading.Lock()

    def put(self, secret: str, *, project: str, reference: str | None = None) -> str:
        """Keep a secret and return its reference. Under a reference given, the project's own secret is replaced."""
        if reference is None:
            reference = f"{_SCHEME}{uuid4()}"
        path = self._path(reference)
        if path.exists():
            self._open(path, reference, project)  # raises when it is another's
        header, nonce = _header(project), os.urandom(_NONCE)
        sealed = self._cipher().encrypt(nonce, secret.encode(), header + reference.encode())
        replace_file(path, header + nonce + sealed)
        return reference

    def get(self, reference: str, *, project: str) -> str:
        """The secret. Raises `SecretNotFound`."""
        return self._open(self._path(reference), reference, project)

    def delete(self, reference: str) -> None:
        """Forget a secret, if it is there."""
        delete_file(self._path(reference))

    def sweep(self, older_than: datetime, keep: Collection[str]) -> int:
        """Forget what was put before that time and is not to be kept, such as what no command ever named."""
        kept = {reference.removeprefix(_SCHEME) for reference in keep}
        swept = 0
        for path in (*self._directory.glob("*.secret"), *self._directory.glob(".*.new")):
            try:
                if path.stem in kept or path.stat().st_mtime >= older_than.timestamp():
                    continue
            except FileNotFoundError:
                continue
            delete_file(path)
            swept += path.suffix == ".secret"
        return swept

    def _path(self, reference: str) -> Path:
        """Only a canonical UUID leads to a file."""
        name = reference.removeprefix(_SCHEME)
        try:
            canonical = reference.startswith(_SCHEME) and str(UUID(name)) == name
        except ValueError:
            canonical = False
        if not canonical:
            raise SecretNotFound(reference)
        return self._directory / f"{name}.secret"

    def _open(self, path: Path, reference: str, project: str) -> str:
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            raise SecretNotFound(reference) from None
        header, nonce, sealed = content[:_HEADER], content[_HEADER : _HEADER + _NONCE], content[_HEADER + _NONCE :]
        if len(header) == _HEADER and header[:1] == _FORMAT and header != _header(project):
            raise SecretNotFound(reference)
        try:
            return self._cipher().decrypt(nonce, sealed, header + reference.encode()).decode()
        except (InvalidTag, ValueError):
            raise VaultError(
                "secret_unreadable",
                f"{path} was damaged, moved, or written with another key; restore it together with its key, or put "
                "the secret again",
            ) from None

    def _cipher(self) -> AESGCM:
        """The key, made when the first secret is put."""
        with self._opening:
            if self._key is None:
                self._key = AESGCM(self._read_key())
            return self._key

    def _read_key(self) -> bytes:
        path = self._directory / "key"
        if not path.exists():
            if next(self._directory.glob("*.secret"), None) is not None:
                raise VaultError(
                    "vault_key_missing",
                    f"{path} is gone and {self._directory} holds secrets; restore it, or delete the secrets and put "
                    "them again: without it nobody can read them",
                )
            make_file(path, AESGCM.generate_key(bit_length=_KEY * 8))
        if path.stat().st_mode & 0o077:
            raise VaultError("vault_key_exposed", f"others may read {path}; say chmod 600, and change what lies there")
        key = path.read_bytes()
        if len(key) != _KEY:
            raise VaultError("vault_key_damaged", f"{path} has {len(key)} bytes instead of {_KEY}; restore it")
        return key


def _header(project: str) -> bytes:
    return _FORMAT + sha256(project.encode()).digest()
