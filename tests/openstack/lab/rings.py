"""Makes Swift's rings: one device and one replica of each.

rings.py FOLDER ADDRESS KIND:PORT...
"""

import sys
from pathlib import Path

from swift.common.ring import RingBuilder

PART_POWER = 6  # 64 partitions are plenty


def main(folder: Path, address: str, *servers: str) -> None:
    """Write KIND.ring.gz for each of the servers."""
    for server in servers:
        kind, port = server.split(":")
        place = {"ip": address, "port": int(port), "replication_ip": address, "replication_port": int(port)}
        builder = RingBuilder(PART_POWER, replicas=1, min_part_hours=0)
        builder.add_dev({"id": 0, "region": 1, "zone": 1, "device": "d1", "weight": 1, "meta": "", **place})
        builder.rebalance()
        builder.get_ring().save(str(folder / f"{kind}.ring.gz"))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
