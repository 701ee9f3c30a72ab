"""A simulated cloud: an API with a ledger, fences and faults, the adapter in front of it, and guests to go with it.

It shows what clouds do to their callers, never what disks, networks or databases do.
"""

from engine.clouds.simulated.api import BARE, CATALOGUE, CloudApi
from engine.clouds.simulated.cloud import SimulatedCloud
from engine.clouds.simulated.faults import FAULTS, Fault, Faults
from engine.clouds.simulated.guests import GUEST_FAULTS, GuestFault, SimulatedAgents, SimulatedGuests
from engine.clouds.simulated.resources import Entry

__all__ = [
    "BARE",
    "CATALOGUE",
    "FAULTS",
    "GUEST_FAULTS",
    "CloudApi",
    "Entry",
    "Fault",
    "Faults",
    "GuestFault",
    "SimulatedAgents",
    "SimulatedCloud",
    "SimulatedGuests",
]
