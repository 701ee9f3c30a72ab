"""The hook by which nova-compute tells one installation's machines what happens to servers.

Every hook is told of every server, and of several installations on the lab one plays the machine: that it is another's
is seen without starting an interpreter.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from tests.openstack.services import CHECKOUT

_HOOK = """#!/bin/sh
told=$(cat)
of() {{ printf %s "$told" | sed -n 's/^{{.*"'"$1"'": "\\([^"]*\\)".*$/\\1/p'; }}
case $1 in
spawn) grep -qsF {broker} "$(of dir)/config-drive/openstack/latest/user_data" || exit 0 ;;
*) [ -e {machines}/"$(of uuid)" ] || exit 0 ;;
esac
cd {checkout} && printf %s "$told" | {python} -m tests.openstack.machine {machines} "$1" --broker {broker}
"""


def write_hook(path: Path, machines: Path, broker: str) -> None:
    """Have the machines whose agents are told of this broker be played, and kept in this directory."""
    words = {"checkout": str(CHECKOUT), "python": sys.executable, "machines": str(machines), "broker": broker}
    path.write_text(_HOOK.format(**{name: shlex.quote(word) for name, word in words.items()}))
    path.chmod(0o755)
