"""What a new machine is told through its user data: who it is, where the broker is, and a token to enrol with once.

It is a cloud-config that cloud-init carries out, written as JSON, which is YAML too: so the agent can also read it by
itself, from a config drive, without a YAML parser. The token in it is worth nothing once the agent has enrolled.
"""

from __future__ import annotations

from pathlib import Path
from uuid import UUID

import msgspec

MACHINE = Path("/etc/holdfast/machine.json")  # where cloud-init puts it
_HEADER = b"#cloud-config\n"
_DRIVE = Path("openstack/latest/user_data")  # on a config drive
_UNIT = "holdfast-volume.service"  # which starts the agent once the volume is mounted


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """The content of `machine.json`.

    `token`: the one-time token, an NKey seed. `access`: the seed of the broker's user `enrol`, which may ask for
    enrolment and nothing else; None with a broker that lets anybody ask. `ca`: the CA of the broker's certificate, PEM.
    """

    instance_id: UUID
    datastore: str
    datastore_version: str
    nats_url: str
    token: str
    access: str | None = None
    ca: str | None = None


class UserDataError(Exception):
    """There is no user data of ours where it should be. Code `user_data_unreadable`."""

    def __init__(self, place: Path, why: str) -> None:
        super().__init__(
            f"user_data_unreadable: {place} does not say which instance this machine is ({why}); the server was not "
            "made by Holdfast, or its config drive is not mounted there"
        )


class _File(msgspec.Struct, frozen=True, kw_only=True):
    path: str
    permissions: str
    content: str


class _CloudConfig(msgspec.Struct, frozen=True, kw_only=True):
    write_files: list[_File]
    runcmd: list[list[str]]


def render(machine: Machine) -> bytes:
    """The user data: the machine's file, readable by root alone, and a look at its disks."""
    told = _File(path=str(MACHINE), permissions="0600", content=msgspec.json.encode(machine).decode())
    start = ["systemctl", "start", "--no-block", _UNIT]
    return _HEADER + msgspec.json.encode(_CloudConfig(write_files=[told], runcmd=[start])) + b"\n"


def parse(user_data: bytes) -> Machine:
    """The machine that the user data tells of. Raises `ValueError`."""
    if not user_data.startswith(_HEADER):
        raise ValueError("it is no cloud-config")
    config = msgspec.json.decode(user_data.removeprefix(_HEADER), type=_CloudConfig)
    told = next((file for file in config.write_files if file.path == str(MACHINE)), None)
    if told is None:
        raise ValueError(f"it writes no {MACHINE}")
    return msgspec.json.decode(told.content, type=Machine)


def read_drive(config_drive: Path) -> Machine:
    """What the config drive that is mounted there says. Raises `UserDataError`."""
    place = config_drive / _DRIVE
    try:
        return parse(place.read_bytes())
    except (OSError, ValueError, msgspec.MsgspecError) as error:
        raise UserDataError(place, str(error)) from None


def read_machine(path: Path) -> Machine:
    """What cloud-init has written. Raises `UserDataError`."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Machine)
    except (OSError, msgspec.MsgspecError) as error:
        raise UserDataError(path, str(error)) from None
