"""What an operator does by hand, past the engine: nobody of ours makes these calls to the simulated cloud."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from aggregates.effects import Effect, PortAbsent, PortGroupAbsent, ServerAbsent
from engine.clouds.simulated.faults import Call

Calling = Callable[[Call], Awaitable[Any]]


async def remove(effect: Effect, call: Calling) -> None:
    """Make it true where what stays would keep all the rest from being removed: servers have ports, ports groups."""
    match effect:
        case ServerAbsent():
            for server in await call(_by_hand("list_servers", name=effect.name)):
                await call(_by_hand("delete_server", id=server.id))
        case PortAbsent():
            for port in await call(_by_hand("list_ports", name=effect.name)):
                await call(_by_hand("delete_port", id=port.id))
        case PortGroupAbsent():
            await call(_by_hand("update_port", id=effect.port_id, security_groups=()))


def _by_hand(call: str, /, **args: Any) -> Call:
    return Call(name=call, args=args, caller="by hand")
