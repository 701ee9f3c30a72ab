"""The lifecycle of an instance, declared once: states and transitions, with guards by name (`guards.py`).

Top states are the words that users see. Inner states are waiting points, each owing one effect (`instance.py` says
which); `undo_` states compensate. `failed` is declared where there is a way back; past a point of no return there is
none, and what cannot be paid parks.
"""

from __future__ import annotations

from typing import Any

from statemachine import State, StateChart

from aggregates.guards import Guards


class InstanceLifecycle(Guards, StateChart[Any]):
    """BUILD to ACTIVE, out of it into one operation at a time and back, until DELETED."""

    allow_event_without_transition = False
    catch_errors_as_events = False

    class BUILD(State.Compound):
        """The instance is being made, or what was made of it undone."""

        build_quota = State(initial=True)
        build_server_group = State()
        build_security_group = State()
        build_rules = State()
        build_port = State()
        build_management_port = State()
        build_volume = State()
        build_credentials = State()
        build_server = State()
        build_address = State()
        build_attachment = State()
        build_database = State()
        build_health = State()
        build_surplus = State()
        undo_build_server = State()
        undo_build_address = State()
        undo_build_volume = State()
        undo_build_management_port = State()
        undo_build_port = State()
        undo_build_security_group = State()
        undo_build_server_group = State()
        undo_build_credentials = State()
        undo_build_quota = State()

    class REBOOT(State.Compound):
        """The database, or the server with it, is being restarted."""

        restart_database = State(initial=True)
        restart_health = State()
        reboot_stop = State()
        reboot_server = State()
        reboot_agent = State()
        reboot_start = State()
        reboot_health = State()

    class RESIZE(State.Compound):
        """The volume grows, or the server changes its flavor."""

        resize_volume_quota = State(initial=True)
        resize_volume_stop = State()
        resize_volume_detach = State()
        resize_volume_extend = State()
        resize_volume_attach = State()
        resize_volume_grow = State()
        resize_volume_start = State()
        resize_volume_health = State()
        undo_resize_volume_attach = State()
        undo_resize_volume_start = State()
        undo_resize_volume_quota = State()
        resize_flavor_quota = State()
        resize_flavor_stop = State()
        resize_flavor_server = State()
        resize_flavor_agent = State()
        resize_flavor_start = State()
        resize_flavor_health = State()
        resize_flavor_confirm = State()
        undo_resize_flavor_server = State()
        undo_resize_flavor_agent = State()
        undo_resize_flavor_start = State()
        undo_resize_flavor_quota = State()

    class MIGRATE(State.Compound):
        """The server moves to another host."""

        migrate_stop = State(initial=True)
        migrate_server = State()
        migrate_agent = State()
        migrate_start = State()
        migrate_health = State()
        migrate_confirm = State()
        undo_migrate_server = State()
        undo_migrate_agent = State()
        undo_migrate_start = State()

    class REBUILD(State.Compound):
        """The server is made anew from an image; volume and data stay."""

        rebuild_stop = State(initial=True)
        rebuild_snapshot = State()
        rebuild_server = State()
        rebuild_agent = State()
        rebuild_database = State()
        rebuild_health = State()
        rebuild_snapshot_deleted = State()
        undo_rebuild_snapshot = State()

    class UPDATE(State.Compound):
        """Who can reach the database is being changed."""

        update_security_group = State(initial=True)
        update_rules_added = State()
        update_rules_removed = State()
        update_port = State()
        update_address_created = State()
        update_address_deleted = State()
        update_surplus = State()
        undo_update_address = State()
        undo_update_port = State()
        undo_update_security_group = State()
        undo_update_rules_removed = State()
        undo_update_rules_added = State()

    class STOP(State.Compound):
        """The database, then its server, is being stopped."""

        stop_database = State(initial=True)
        stop_server = State()

    class START(State.Compound):
        """The server, then its database, is being started."""

        start_server = State(initial=True)
        start_agent = State()
        start_database = State()
        start_health = State()

    class SHUTDOWN(State.Compound):
        """Everything that the instance holds is being removed. There is no way back."""

        delete_database = State(initial=True)
        delete_server = State()
        delete_address = State()
        delete_port = State()
        delete_management_port = State()
        delete_snapshot = State()
        delete_volume = State()
        delete_security_group = State()
        delete_server_group = State()
        delete_credentials = State()
        delete_quota = State()

    ACTIVE = State()
    SHUTOFF = State()
    ERROR = State()
    FAILED = State()
    DELETED = State(final=True)

    # Commands. A guest whose server is off, or is being turned off, has stopped its database and could not be asked.
    restart_requested = ACTIVE.to(REBOOT.restart_database) | ERROR.to(REBOOT.restart_database)
    reboot_requested = ACTIVE.to(REBOOT.reboot_stop) | ERROR.to(REBOOT.reboot_stop)
    volume_resize_requested = ACTIVE.to(RESIZE.resize_volume_quota)
    flavor_resize_requested = ACTIVE.to(RESIZE.resize_flavor_quota)
    migration_requested = ACTIVE.to(MIGRATE.migrate_stop)
    rebuild_requested = (
        ACTIVE.to(REBUILD.rebuild_stop)
        | ERROR.to(REBUILD.rebuild_snapshot, cond="wants_snapshot")
        | ERROR.to(REBUILD.rebuild_server)
    )
    access_update_requested = (
        ACTIVE.to(UPDATE.update_security_group, cond="adopts_security_group")
        | ACTIVE.to(UPDATE.update_rules_added, cond="admits_more")
        | ACTIVE.to(UPDATE.update_rules_removed, cond="admits_less")
        | ACTIVE.to(UPDATE.update_address_created, cond="becomes_public")
        | ACTIVE.to(UPDATE.update_address_deleted)
    )
    stop_requested = ACTIVE.to(STOP.stop_database)
    start_requested = SHUTOFF.to(START.start_server)
    deletion_requested = (
        ACTIVE.to(SHUTDOWN.delete_database, cond="has_server")
        | ACTIVE.to(SHUTDOWN.delete_server)
        | BUILD.to(SHUTDOWN.delete_database, cond="has_server")
        | BUILD.to(SHUTDOWN.delete_server)
        | REBOOT.to(SHUTDOWN.delete_database, cond="has_server")
        | REBOOT.to(SHUTDOWN.delete_server)
        | RESIZE.to(SHUTDOWN.delete_database, cond="has_server")
        | RESIZE.to(SHUTDOWN.delete_server)
        | MIGRATE.to(SHUTDOWN.delete_database, cond="has_server")
        | MIGRATE.to(SHUTDOWN.delete_server)
        | REBUILD.to(SHUTDOWN.delete_database, cond="has_server")
        | REBUILD.to(SHUTDOWN.delete_server)
        | UPDATE.to(SHUTDOWN.delete_database, cond="has_server")
        | UPDATE.to(SHUTDOWN.delete_server)
        | STOP.stop_server.to(SHUTDOWN.delete_server)
        | STOP.to(SHUTDOWN.delete_database, cond="has_server")
        | STOP.to(SHUTDOWN.delete_server)
        | START.start_server.to(SHUTDOWN.delete_server)
        | START.to(SHUTDOWN.delete_database, cond="has_server")
        | START.to(SHUTDOWN.delete_server)
        | SHUTOFF.to(SHUTDOWN.delete_server)
        | ERROR.to(SHUTDOWN.delete_database, cond="has_server")
        | ERROR.to(SHUTDOWN.delete_server)
        | FAILED.to(SHUTDOWN.delete_server)
    )

    # Effects paid.
    quota_reserved = (
        BUILD.build_quota.to(BUILD.build_server_group, cond="wants_server_group")
        | BUILD.build_quota.to(BUILD.build_security_group, cond="wants_security_group")
        | BUILD.build_quota.to(BUILD.build_port)
        | RESIZE.resize_volume_quota.to(RESIZE.resize_volume_stop, cond="extends_offline")
        | RESIZE.resize_volume_quota.to(RESIZE.resize_volume_extend)
        | RESIZE.resize_flavor_quota.to(RESIZE.resize_flavor_stop)
    )
    quota_released = (
        BUILD.undo_build_quota.to(FAILED)
        | RESIZE.undo_resize_volume_quota.to(ACTIVE)
        | RESIZE.undo_resize_flavor_quota.to(ACTIVE)
        | SHUTDOWN.delete_quota.to(DELETED)
    )
    server_group_created = BUILD.build_server_group.to(
        BUILD.build_security_group, cond="wants_security_group"
    ) | BUILD.build_server_group.to(BUILD.build_port)
    security_group_created = (
        BUILD.build_security_group.to(BUILD.build_rules, cond="admits_any")
        | BUILD.build_security_group.to(BUILD.build_port)
        | UPDATE.update_security_group.to(UPDATE.update_rules_added, cond="admits_more")
        | UPDATE.update_security_group.to(UPDATE.update_port)
    )
    access_rules_added = (
        BUILD.build_rules.to(BUILD.build_port)
        | UPDATE.update_rules_added.to(UPDATE.update_port, cond="adopts_security_group")
        | UPDATE.update_rules_added.to(UPDATE.update_rules_removed, cond="admits_less")
        | UPDATE.update_rules_added.to(UPDATE.update_address_created, cond="becomes_public")
        | UPDATE.update_rules_added.to(UPDATE.update_address_deleted, cond="ceases_public")
        | UPDATE.update_rules_added.to(ACTIVE)
        | UPDATE.undo_update_rules_removed.to(UPDATE.undo_update_rules_added)
    )
    access_rules_removed = (
        UPDATE.update_rules_removed.to(UPDATE.update_address_created, cond="becomes_public")
        | UPDATE.update_rules_removed.to(UPDATE.update_address_deleted, cond="ceases_public")
        | UPDATE.update_rules_removed.to(ACTIVE)
        | UPDATE.undo_update_rules_added.to(ACTIVE)
    )
    port_created = BUILD.build_port.to(BUILD.build_management_port, cond="wants_management_port") | BUILD.build_port.to(
        BUILD.build_volume
    )
    management_port_created = BUILD.build_management_port.to(BUILD.build_volume)
    port_secured = (
        UPDATE.update_port.to(UPDATE.update_address_created, cond="becomes_public")
        | UPDATE.update_port.to(UPDATE.update_surplus, cond="has_unanswered_calls")
        | UPDATE.update_port.to(ACTIVE)
    )
    port_unsecured = UPDATE.undo_update_port.to(UPDATE.undo_update_security_group)
    floating_address_created = (
        BUILD.build_address.to(BUILD.build_attachment)
        | UPDATE.update_address_created.to(UPDATE.update_surplus, cond="has_unanswered_calls")
        | UPDATE.update_address_created.to(ACTIVE)
    )
    volume_created = BUILD.build_volume.to(BUILD.build_credentials)
    snapshot_created = REBUILD.rebuild_snapshot.to(REBUILD.rebuild_server)
    snapshot_deleted = (
        REBUILD.rebuild_snapshot_deleted.to(ACTIVE)
        | REBUILD.undo_rebuild_snapshot.to(ERROR)
        | SHUTDOWN.delete_snapshot.to(SHUTDOWN.delete_volume)
    )
    credentials_issued = BUILD.build_credentials.to(BUILD.build_server)
    server_created = BUILD.build_server.to(BUILD.build_address, cond="wants_address") | BUILD.build_server.to(
        BUILD.build_attachment
    )
    volume_attached = (
        BUILD.build_attachment.to(BUILD.build_database)
        | RESIZE.resize_volume_attach.to(RESIZE.resize_volume_grow)
        | RESIZE.undo_resize_volume_attach.to(RESIZE.undo_resize_volume_start)
    )
    volume_detached = RESIZE.resize_volume_detach.to(RESIZE.resize_volume_extend)
    database_prepared = BUILD.build_database.to(BUILD.build_health)
    database_healthy = (
        BUILD.build_health.to(BUILD.build_surplus, cond="has_unanswered_calls")
        | BUILD.build_health.to(ACTIVE)
        | REBOOT.restart_health.to(ACTIVE)
        | REBOOT.reboot_health.to(ACTIVE)
        | RESIZE.resize_volume_health.to(ACTIVE)
        | RESIZE.resize_flavor_health.to(RESIZE.resize_flavor_confirm)
        | REBUILD.rebuild_health.to(REBUILD.rebuild_snapshot_deleted, cond="may_have_snapshot")
        | REBUILD.rebuild_health.to(ACTIVE)
        | MIGRATE.migrate_health.to(MIGRATE.migrate_confirm)
        | START.start_health.to(ACTIVE)
    )
    surplus_removed = BUILD.build_surplus.to(ACTIVE) | UPDATE.update_surplus.to(ACTIVE)
    database_restarted = REBOOT.restart_database.to(REBOOT.restart_health)
    database_stopped = (
        REBOOT.reboot_stop.to(REBOOT.reboot_server)
        | RESIZE.resize_volume_stop.to(RESIZE.resize_volume_detach)
        | RESIZE.resize_flavor_stop.to(RESIZE.resize_flavor_server)
        | MIGRATE.migrate_stop.to(MIGRATE.migrate_server)
        | REBUILD.rebuild_stop.to(REBUILD.rebuild_snapshot, cond="wants_snapshot")
        | REBUILD.rebuild_stop.to(REBUILD.rebuild_server)
        | STOP.stop_database.to(STOP.stop_server)
        | SHUTDOWN.delete_database.to(SHUTDOWN.delete_server)
    )
    database_started = (
        REBOOT.reboot_start.to(REBOOT.reboot_health)
        | RESIZE.resize_volume_start.to(RESIZE.resize_volume_health)
        | RESIZE.undo_resize_volume_start.to(RESIZE.undo_resize_volume_quota)
        | RESIZE.resize_flavor_start.to(RESIZE.resize_flavor_health)
        | RESIZE.undo_resize_flavor_start.to(RESIZE.undo_resize_flavor_quota)
        | MIGRATE.migrate_start.to(MIGRATE.migrate_health)
        | MIGRATE.undo_migrate_start.to(ACTIVE)
        | START.start_database.to(START.start_health)
    )
    database_rebuilt = REBUILD.rebuild_database.to(REBUILD.rebuild_health)
    server_rebooted = REBOOT.reboot_server.to(REBOOT.reboot_agent)
    server_rebuilt = REBUILD.rebuild_server.to(REBUILD.rebuild_agent)
    server_resized = RESIZE.resize_flavor_server.to(RESIZE.resize_flavor_agent)
    server_migrated = MIGRATE.migrate_server.to(MIGRATE.migrate_agent)
    server_stopped = STOP.stop_server.to(SHUTOFF)
    server_started = START.start_server.to(START.start_agent)
    server_reverted = RESIZE.undo_resize_flavor_server.to(
        RESIZE.undo_resize_flavor_agent
    ) | MIGRATE.undo_migrate_server.to(MIGRATE.undo_migrate_agent)
    agent_answered = (
        REBOOT.reboot_agent.to(REBOOT.reboot_start)
        | RESIZE.resize_flavor_agent.to(RESIZE.resize_flavor_start)
        | RESIZE.undo_resize_flavor_agent.to(RESIZE.undo_resize_flavor_start)
        | REBUILD.rebuild_agent.to(REBUILD.rebuild_database)
        | MIGRATE.migrate_agent.to(MIGRATE.migrate_start)
        | MIGRATE.undo_migrate_agent.to(MIGRATE.undo_migrate_start)
        | START.start_agent.to(START.start_database)
    )
    flavor_resize_confirmed = RESIZE.resize_flavor_confirm.to(ACTIVE)
    migration_confirmed = MIGRATE.migrate_confirm.to(ACTIVE)
    volume_extended = RESIZE.resize_volume_extend.to(
        RESIZE.resize_volume_attach, cond="extends_offline"
    ) | RESIZE.resize_volume_extend.to(RESIZE.resize_volume_grow)
    file_system_grown = RESIZE.resize_volume_grow.to(
        RESIZE.resize_volume_start, cond="extends_offline"
    ) | RESIZE.resize_volume_grow.to(ACTIVE)
    server_deleted = (
        BUILD.undo_build_server.to(BUILD.undo_build_address, cond="wants_address")
        | BUILD.undo_build_server.to(BUILD.undo_build_volume)
        | SHUTDOWN.delete_server.to(SHUTDOWN.delete_address, cond="may_have_address")
        | SHUTDOWN.delete_server.to(SHUTDOWN.delete_port)
    )
    floating_address_deleted = (
        BUILD.undo_build_address.to(BUILD.undo_build_volume)
        | UPDATE.update_address_deleted.to(ACTIVE)
        | UPDATE.undo_update_address.to(UPDATE.undo_update_port, cond="adopts_security_group")
        | UPDATE.undo_update_address.to(UPDATE.undo_update_rules_removed)
        | SHUTDOWN.delete_address.to(SHUTDOWN.delete_port)
    )
    volume_deleted = (
        BUILD.undo_build_volume.to(BUILD.undo_build_management_port, cond="wants_management_port")
        | BUILD.undo_build_volume.to(BUILD.undo_build_port)
        | SHUTDOWN.delete_volume.to(SHUTDOWN.delete_security_group, cond="may_have_security_group")
        | SHUTDOWN.delete_volume.to(SHUTDOWN.delete_server_group, cond="wants_server_group")
        | SHUTDOWN.delete_volume.to(SHUTDOWN.delete_credentials)
    )
    management_port_deleted = (
        BUILD.undo_build_management_port.to(BUILD.undo_build_port)
        | SHUTDOWN.delete_management_port.to(SHUTDOWN.delete_snapshot, cond="may_have_snapshot")
        | SHUTDOWN.delete_management_port.to(SHUTDOWN.delete_volume)
    )
    port_deleted = (
        BUILD.undo_build_port.to(BUILD.undo_build_security_group, cond="wants_security_group")
        | BUILD.undo_build_port.to(BUILD.undo_build_server_group, cond="wants_server_group")
        | BUILD.undo_build_port.to(BUILD.undo_build_credentials)
        | SHUTDOWN.delete_port.to(SHUTDOWN.delete_management_port, cond="wants_management_port")
        | SHUTDOWN.delete_port.to(SHUTDOWN.delete_snapshot, cond="may_have_snapshot")
        | SHUTDOWN.delete_port.to(SHUTDOWN.delete_volume)
    )
    security_group_deleted = (
        BUILD.undo_build_security_group.to(BUILD.undo_build_server_group, cond="wants_server_group")
        | BUILD.undo_build_security_group.to(BUILD.undo_build_credentials)
        | UPDATE.undo_update_security_group.to(ACTIVE)
        | SHUTDOWN.delete_security_group.to(SHUTDOWN.delete_server_group, cond="wants_server_group")
        | SHUTDOWN.delete_security_group.to(SHUTDOWN.delete_credentials)
    )
    server_group_deleted = BUILD.undo_build_server_group.to(
        BUILD.undo_build_credentials
    ) | SHUTDOWN.delete_server_group.to(SHUTDOWN.delete_credentials)
    credentials_revoked = BUILD.undo_build_credentials.to(BUILD.undo_build_quota) | SHUTDOWN.delete_credentials.to(
        SHUTDOWN.delete_quota
    )

    # An effect failed for good.
    failed = (
        BUILD.build_quota.to(BUILD.undo_build_quota)
        | BUILD.build_server_group.to(BUILD.undo_build_server_group)
        | BUILD.build_security_group.to(BUILD.undo_build_security_group)
        | BUILD.build_rules.to(BUILD.undo_build_security_group)
        | BUILD.build_port.to(BUILD.undo_build_port)
        | BUILD.build_management_port.to(BUILD.undo_build_management_port)
        | BUILD.build_volume.to(BUILD.undo_build_volume)
        | BUILD.build_credentials.to(BUILD.undo_build_volume)
        | BUILD.build_server.to(ERROR, cond="keeps_on_failure")
        | BUILD.build_server.to(BUILD.undo_build_server)
        | BUILD.build_address.to(ERROR, cond="keeps_on_failure")
        | BUILD.build_address.to(BUILD.undo_build_server)
        | BUILD.build_attachment.to(ERROR, cond="keeps_on_failure")
        | BUILD.build_attachment.to(BUILD.undo_build_server)
        | BUILD.build_database.to(ERROR, cond="keeps_on_failure")
        | BUILD.build_database.to(BUILD.undo_build_server)
        | BUILD.build_health.to(ERROR, cond="keeps_on_failure")
        | BUILD.build_health.to(BUILD.undo_build_server)
        | REBOOT.to(ERROR)
        | RESIZE.resize_volume_quota.to(RESIZE.undo_resize_volume_quota)
        | RESIZE.resize_volume_stop.to(RESIZE.undo_resize_volume_attach)
        | RESIZE.resize_volume_detach.to(RESIZE.undo_resize_volume_attach)
        | RESIZE.resize_volume_extend.to(RESIZE.undo_resize_volume_attach, cond="extends_offline")
        | RESIZE.resize_volume_extend.to(RESIZE.undo_resize_volume_quota)
        | RESIZE.resize_flavor_quota.to(RESIZE.undo_resize_flavor_quota)
        | RESIZE.resize_flavor_stop.to(RESIZE.undo_resize_flavor_server)
        | RESIZE.resize_flavor_server.to(RESIZE.undo_resize_flavor_server)
        | RESIZE.resize_flavor_agent.to(RESIZE.undo_resize_flavor_server)
        | RESIZE.resize_flavor_start.to(RESIZE.undo_resize_flavor_server)
        | RESIZE.resize_flavor_health.to(RESIZE.undo_resize_flavor_server)
        | MIGRATE.migrate_stop.to(MIGRATE.undo_migrate_server)
        | MIGRATE.migrate_server.to(MIGRATE.undo_migrate_server)
        | MIGRATE.migrate_agent.to(MIGRATE.undo_migrate_server)
        | MIGRATE.migrate_start.to(MIGRATE.undo_migrate_server)
        | MIGRATE.migrate_health.to(MIGRATE.undo_migrate_server)
        | REBUILD.rebuild_stop.to(ERROR)
        | REBUILD.rebuild_snapshot.to(REBUILD.undo_rebuild_snapshot)
        | REBUILD.rebuild_server.to(ERROR)
        | UPDATE.update_security_group.to(UPDATE.undo_update_security_group)
        | UPDATE.update_port.to(UPDATE.undo_update_port)
        | UPDATE.update_rules_added.to(UPDATE.undo_update_security_group, cond="adopts_security_group")
        | UPDATE.update_rules_added.to(UPDATE.undo_update_rules_removed)
        | UPDATE.update_rules_removed.to(UPDATE.undo_update_rules_removed)
        | UPDATE.update_address_created.to(UPDATE.undo_update_address)
        | STOP.to(ERROR)
        | START.to(ERROR)
        | SHUTDOWN.delete_database.to(SHUTDOWN.delete_server)
    )

    # A command ends the operation where there is a way back. A volume being extended cannot be made small again.
    cancel_requested = (
        BUILD.build_quota.to(BUILD.undo_build_quota)
        | BUILD.build_server_group.to(BUILD.undo_build_server_group)
        | BUILD.build_security_group.to(BUILD.undo_build_security_group)
        | BUILD.build_rules.to(BUILD.undo_build_security_group)
        | BUILD.build_port.to(BUILD.undo_build_port)
        | BUILD.build_management_port.to(BUILD.undo_build_management_port)
        | BUILD.build_volume.to(BUILD.undo_build_volume)
        | BUILD.build_credentials.to(BUILD.undo_build_volume)
        | BUILD.build_server.to(BUILD.undo_build_server)
        | BUILD.build_address.to(BUILD.undo_build_server)
        | BUILD.build_attachment.to(BUILD.undo_build_server)
        | BUILD.build_database.to(BUILD.undo_build_server)
        | BUILD.build_health.to(BUILD.undo_build_server)
        | RESIZE.resize_volume_quota.to(RESIZE.undo_resize_volume_quota)
        | RESIZE.resize_volume_stop.to(RESIZE.undo_resize_volume_attach)
        | RESIZE.resize_volume_detach.to(RESIZE.undo_resize_volume_attach)
        | RESIZE.resize_flavor_quota.to(RESIZE.undo_resize_flavor_quota)
        | RESIZE.resize_flavor_stop.to(RESIZE.undo_resize_flavor_server)
        | RESIZE.resize_flavor_server.to(RESIZE.undo_resize_flavor_server)
        | RESIZE.resize_flavor_agent.to(RESIZE.undo_resize_flavor_server)
        | RESIZE.resize_flavor_start.to(RESIZE.undo_resize_flavor_server)
        | RESIZE.resize_flavor_health.to(RESIZE.undo_resize_flavor_server)
        | UPDATE.update_security_group.to(UPDATE.undo_update_security_group)
        | UPDATE.update_port.to(UPDATE.undo_update_port)
        | UPDATE.update_rules_added.to(UPDATE.undo_update_security_group, cond="adopts_security_group")
        | UPDATE.update_rules_added.to(UPDATE.undo_update_rules_removed)
        | UPDATE.update_rules_removed.to(UPDATE.undo_update_rules_removed)
        | UPDATE.update_address_created.to(UPDATE.undo_update_address)
        | MIGRATE.migrate_stop.to(MIGRATE.undo_migrate_server)
        | MIGRATE.migrate_server.to(MIGRATE.undo_migrate_server)
        | MIGRATE.migrate_agent.to(MIGRATE.undo_migrate_server)
        | MIGRATE.migrate_start.to(MIGRATE.undo_migrate_server)
        | MIGRATE.migrate_health.to(MIGRATE.undo_migrate_server)
    )

    # An operator gives up what is parked; where every failure ends the operation nothing parks.
    operation_abandoned = ERROR.from_(BUILD, RESIZE, MIGRATE, REBUILD, UPDATE, SHUTDOWN)
