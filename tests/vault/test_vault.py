"""Secrets come back to their project alone, and lie nowhere in clear."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from engine.vault import SecretNotFound, Vault, VaultError

SECRET = "correct horse battery staple ☂"


@pytest.fixture
def vault(tmp_path: Path) -> Vault:
    return Vault(tmp_path)


def test_a_secret_comes_back_after_a_restart(vault: Vault, tmp_path: Path) -> None:
    reference = vault.put(SECRET, project="p")

    assert reference.startswith("vault:")
    assert Vault(tmp_path).get(reference, project="p") == SECRET


def test_another_projects_reference_is_not_found(vault: Vault) -> None:
    reference = vault.put(SECRET, project="p")

    with pytest.raises(SecretNotFound) as missing:
        vault.get(reference, project="q")

    assert missing.value.code == "secret_not_found"
    assert isinstance(missing.value, KeyError)
    assert SECRET not in str(missing.value)


def test_a_deleted_secret_is_not_found_and_deleting_again_is_fine(vault: Vault) -> None:
    reference = vault.put(SECRET, project="p")

    vault.delete(reference)
    vault.delete(reference)

    with pytest.raises(SecretNotFound):
        vault.get(reference, project="p")


@pytest.mark.parametrize(
    "reference",
    [
        "",
        "vault:",
        "vault:../key",
        "vault:key",
        "vault:11111111111111111111111111111111",
        "11111111-1111-1111-1111-111111111111",
        "vault:11111111-1111-1111-1111-111111111111",
        "vault:{11111111-1111-1111-1111-111111111111}",
        "barbican:11111111-1111-1111-1111-111111111111",
    ],
)
def test_what_is_no_reference_of_ours_is_not_found(vault: Vault, reference: str) -> None:
    vault.put(SECRET, project="p")

    with pytest.raises(SecretNotFound):
        vault.get(reference, project="p")


def test_a_given_reference_can_be_put_again_by_its_project_only(vault: Vault) -> None:
    reference = "vault:11111111-1111-1111-1111-111111111111"
    vault.put("first", project="p", reference=reference)

    assert vault.put("second", project="p", reference=reference) == reference
    with pytest.raises(SecretNotFound):
        vault.put("mine", project="q", reference=reference)

    assert vault.get(reference, project="p") == "second"


def test_nothing_lies_in_clear_or_open_to_others(vault: Vault, tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        for _ in range(3):
            vault.put(SECRET, project="p")
    finally:
        os.umask(before)

    files = list(tmp_path.iterdir())
    assert len(files) == 4
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}
    assert not any(b"horse" in file.read_bytes() for file in files)
    assert len({file.read_bytes() for file in files}) == 4


@pytest.mark.parametrize("spoil", ["flip", "cut", "empty", "format", "moved"])
def test_a_file_that_was_touched_is_noticed(vault: Vault, tmp_path: Path, spoil: str) -> None:
    reference, other = vault.put(SECRET, project="p"), vault.put("other", project="p")
    file = tmp_path / f"{reference.removeprefix('vault:')}.secret"
    content = file.read_bytes()
    vault.put("theirs", project="q")
    spoiled = {
        "flip": content[:-1] + bytes([content[-1] ^ 1]),
        "cut": content[:40],
        "empty": b"",
        "format": b"\x02" + content[1:],
        "moved": (tmp_path / f"{other.removeprefix('vault:')}.secret").read_bytes(),
    }
    file.write_bytes(spoiled[spoil])

    with pytest.raises(VaultError) as noticed:
        vault.get(reference, project="p")

    assert noticed.value.code == "secret_unreadable"


def test_a_file_cannot_be_given_to_another_project(vault: Vault, tmp_path: Path) -> None:
    reference, theirs = vault.put(SECRET, project="p"), vault.put("theirs", project="q")
    file = tmp_path / f"{reference.removeprefix('vault:')}.secret"
    header = (tmp_path / f"{theirs.removeprefix('vault:')}.secret").read_bytes()[:33]
    file.write_bytes(header + file.read_bytes()[33:])

    with pytest.raises(VaultError):
        vault.get(reference, project="q")


def test_a_lost_key_is_said_and_not_replaced(vault: Vault, tmp_path: Path) -> None:
    reference = vault.put(SECRET, project="p")
    (tmp_path / "key").unlink()

    with pytest.raises(VaultError, match="restore it") as lost:
        Vault(tmp_path).get(reference, project="p")
    with pytest.raises(VaultError, match="restore it"):
        Vault(tmp_path).put("new", project="p")

    assert lost.value.code == "vault_key_missing"
    assert not (tmp_path / "key").exists()


@pytest.mark.parametrize(
    ("mode", "content", "code"), [(0o644, None, "vault_key_exposed"), (0o600, b"x", "vault_key_damaged")]
)
def test_a_key_that_is_open_or_damaged_is_refused(
    vault: Vault, tmp_path: Path, mode: int, content: bytes | None, code: str
) -> None:
    reference = vault.put(SECRET, project="p")
    key = tmp_path / "key"
    if content is not None:
        key.write_bytes(content)
    key.chmod(mode)

    with pytest.raises(VaultError) as refused:
        Vault(tmp_path).get(reference, project="p")

    assert refused.value.code == code


def test_many_threads_and_vaults_share_one_key(tmp_path: Path) -> None:
    vaults = [Vault(tmp_path) for _ in range(8)]
    with ThreadPoolExecutor(8) as threads:
        references = list(threads.map(lambda n: vaults[n % 8].put(f"s{n}", project="p"), range(200)))

    assert [Vault(tmp_path).get(r, project="p") for r in references] == [f"s{n}" for n in range(200)]


def test_one_reference_put_by_many_threads_holds_one_of_them(tmp_path: Path) -> None:
    vault, reference = Vault(tmp_path), "vault:11111111-1111-1111-1111-111111111111"
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda n: vault.put(f"s{n}", project="p", reference=reference), range(64)))

    assert vault.get(reference, project="p") in {f"s{n}" for n in range(64)}
    assert {file.name for file in tmp_path.iterdir()} == {"key", "11111111-1111-1111-1111-111111111111.secret"}


def test_a_sweep_forgets_what_is_old_and_not_kept(vault: Vault, tmp_path: Path) -> None:
    old, kept = vault.put("old", project="p"), vault.put("kept", project="p")
    leftover = tmp_path / ".x.secret.abc.new"
    leftover.write_bytes(b"")
    past = (datetime.now(UTC) - timedelta(days=2)).timestamp()
    for file in tmp_path.iterdir():
        os.utime(file, (past, past))
    fresh = vault.put("fresh", project="p")

    swept = vault.sweep(datetime.now(UTC) - timedelta(days=1), keep={kept})

    assert swept == 1
    assert not leftover.exists()
    assert [vault.get(r, project="p") for r in (kept, fresh)] == ["kept", "fresh"]
    with pytest.raises(SecretNotFound):
        vault.get(old, project="p")


_PUTS = """
import sys
from pathlib import Path
from engine.vault import Vault
vault = Vault(Path(sys.argv[1]))
while True:
    print(vault.put("secret", project="p"), flush=True)
"""


def test_what_was_put_is_there_after_a_kill_at_any_moment(tmp_path: Path) -> None:
    references: list[str] = []
    for lines in (1, 20, 7):
        with subprocess.Popen(
            [sys.executable, "-c", _PUTS, str(tmp_path)], stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            references += [process.stdout.readline().strip() for _ in range(lines)]
            process.kill()

    vault = Vault(tmp_path)
    assert {vault.get(reference, project="p") for reference in references} == {"secret"}
