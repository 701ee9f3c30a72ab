"""The same life on a broker that we do not run: it asks us about each guest, and knows no user of any instance."""

from __future__ import annotations

from pathlib import Path

import nkeys  # type: ignore[import-untyped]
import pytest
from openstack.connection import Connection

from tests.openstack.ledger import holdings
from tests.openstack.services import Lab
from tests.openstack.site import PASSWORD, running_site
from tests.support.broker import running_broker
from tests.support.broker_users import Key, asks_about_guests

pytestmark = pytest.mark.timeout(600)


def test_a_machine_is_let_in_by_callout(lab: Lab, service: Connection, admin: Connection, tmp_path: Path) -> None:
    engine, enrol, issuer = Key(), Key(), Key(nkeys.PREFIX_BYTE_ACCOUNT)
    engine_seed = engine.write(tmp_path / "engine.nk")
    with running_broker(tmp_path / "broker", asks_about_guests(engine, enrol, issuer)) as broker:
        connecting = ("--nats", broker.url, "--seed", str(engine_seed))
        arguments = (
            *connecting,
            "--durable-broker",
            "--guest-seed", str(enrol.write(tmp_path / "enrol.nk")),
            "--callout-seed", str(issuer.write(tmp_path / "callout.nk")),
        )  # fmt: skip
        with running_site(lab, service, *arguments, broker=broker.url) as site:
            wanted = ["--datastore", "redis", "--version", "6.2", "--flavor", "lab.small", "--user", "app"]
            site.said("create", "ours", *wanted, "--password-env", "DB_PASSWORD", *connecting)
            shown = site.said("show", "ours", *connecting)
            site.database(shown).write("key", PASSWORD)
            site.said("reboot", "ours", *connecting)
            assert site.database(shown).read("key") == PASSWORD
            site.said("delete", "ours", *connecting)
            assert holdings(admin, shown["id"]) == []
            assert "guest_enrolled" in site.made.log.read_text()
