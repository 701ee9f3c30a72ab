"""The lifecycle of an instance, declared once: states, transitions, guards and nothing else.

Top states are the words that users see. Inner states are waiting points, each owing one effect (`instance.py` says
which); `undo_` states compensate. `failed` is declared where there is a way back; past a point of no return there is
none, and what cannot be paid parks.
"""

from __future__ import annotations

from typing import Any

from statemachine import State, StateChart


class InstanceLifecycle(StateChart[Any]):
    """BUILD to ACTIVE, out of it into one operation at a time and back, until DELETED."""

    allow_event_without_transition = False
    catch_errors_as_events = False

    class BUILD(State.Compound):
        """The instance is being made, or what was made of it undone."""

        build_quota = State(initial=True)
        build_port = State()
        build_volume = State()
        build_credentials = State()
        build_server = State()
        build_attachment = State()
        build_database = State()
        build_health = State()
        build_surplus = State()
        undo_build_server = State()
        undo_build_volume = State()
        undo_build_port = State()
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
        resize_volume_extend = State()
        resize_volume_grow = State()
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
        delete_port = State()
        delete_volume = State()
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
        BUILD.build_quota.to(BUILD.build_port)
        | RESIZE.resize_volume_quota.to(RESIZE.resize_volume_extend)
        | RESIZE.resize_flavor_quota.to(RESIZE.resize_flavor_stop)
    )
    quota_released = (
        BUILD.undo_build_quota.to(FAILED)
        | RESIZE.undo_resize_volume_quota.to(ACTIVE)
        | RESIZE.undo_resize_flavor_quota.to(ACTIVE)
        | SHUTDOWN.delete_quota.to(DELETED)
    )
    port_created = BUILD.build_port.to(BUILD.build_volume)
    volume_created = BUILD.build_volume.to(BUILD.build_credentials)
    credentials_issued = BUILD.build_credentials.to(BUILD.build_server)
    server_created = BUILD.build_server.to(BUILD.build_attachment)
    volume_attached = BUILD.build_attachment.to(BUILD.build_database)
    database_prepared = BUILD.build_database.to(BUILD.build_health)
    database_healthy = (
        BUILD.build_health.to(BUILD.build_surplus, cond="has_unanswered_calls")
        | BUILD.build_health.to(ACTIVE)
        | REBOOT.restart_health.to(ACTIVE)
        | REBOOT.reboot_health.to(ACTIVE)
        | RESIZE.resize_flavor_health.to(RESIZE.resize_flavor_confirm)
        | MIGRATE.migrate_health.to(MIGRATE.migrate_confirm)
        | START.start_health.to(ACTIVE)
    )
    surplus_removed = BUILD.build_surplus.to(ACTIVE)
    database_restarted = REBOOT.restart_database.to(REBOOT.restart_health)
    database_stopped = (
        REBOOT.reboot_stop.to(REBOOT.reboot_server)
        | RESIZE.resize_flavor_stop.to(RESIZE.resize_flavor_server)
        | MIGRATE.migrate_stop.to(MIGRATE.migrate_server)
        | STOP.stop_database.to(STOP.stop_server)
        | SHUTDOWN.delete_database.to(SHUTDOWN.delete_server)
    )
    database_started = (
        REBOOT.reboot_start.to(REBOOT.reboot_health)
        | RESIZE.resize_flavor_start.to(RESIZE.resize_flavor_health)
        | RESIZE.undo_resize_flavor_start.to(RESIZE.undo_resize_flavor_quota)
        | MIGRATE.migrate_start.to(MIGRATE.migrate_health)
        | MIGRATE.undo_migrate_start.to(ACTIVE)
        | START.start_database.to(START.start_health)
    )
    server_rebooted = REBOOT.reboot_server.to(REBOOT.reboot_agent)
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
        | MIGRATE.migrate_agent.to(MIGRATE.migrate_start)
        | MIGRATE.undo_migrate_agent.to(MIGRATE.undo_migrate_start)
        | START.start_agent.to(START.start_database)
    )
    flavor_resize_confirmed = RESIZE.resize_flavor_confirm.to(ACTIVE)
    migration_confirmed = MIGRATE.migrate_confirm.to(ACTIVE)
    volume_extended = RESIZE.resize_volume_extend.to(RESIZE.resize_volume_grow)
    file_system_grown = RESIZE.resize_volume_grow.to(ACTIVE)
    server_deleted = BUILD.undo_build_server.to(BUILD.undo_build_volume) | SHUTDOWN.delete_server.to(
        SHUTDOWN.delete_port
    )
    port_deleted = BUILD.undo_build_port.to(BUILD.undo_build_credentials) | SHUTDOWN.delete_port.to(
        SHUTDOWN.delete_volume
    )
    volume_deleted = BUILD.undo_build_volume.to(BUILD.undo_build_port) | SHUTDOWN.delete_volume.to(
        SHUTDOWN.delete_credentials
    )
    credentials_revoked = BUILD.undo_build_credentials.to(BUILD.undo_build_quota) | SHUTDOWN.delete_credentials.to(
        SHUTDOWN.delete_quota
    )

    # An effect failed for good.
    failed = (
        BUILD.build_quota.to(BUILD.undo_build_quota)
        | BUILD.build_port.to(BUILD.undo_build_port)
        | BUILD.build_volume.to(BUILD.undo_build_volume)
        | BUILD.build_credentials.to(BUILD.undo_build_volume)
        | BUILD.build_server.to(ERROR, cond="keeps_on_failure")
        | BUILD.build_server.to(BUILD.undo_build_server)
        | BUILD.build_attachment.to(ERROR, cond="keeps_on_failure")
        | BUILD.build_attachment.to(BUILD.undo_build_server)
        | BUILD.build_database.to(ERROR, cond="keeps_on_failure")
        | BUILD.build_database.to(BUILD.undo_build_server)
        | BUILD.build_health.to(ERROR, cond="keeps_on_failure")
        | BUILD.build_health.to(BUILD.undo_build_server)
        | REBOOT.to(ERROR)
        | RESIZE.resize_volume_quota.to(RESIZE.undo_resize_volume_quota)
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
        | STOP.to(ERROR)
        | START.to(ERROR)
        | SHUTDOWN.delete_database.to(SHUTDOWN.delete_server)
    )

    # A command ends the operation where there is a way back. A volume being extended cannot be made small again.
    cancel_requested = (
        BUILD.build_quota.to(BUILD.undo_build_quota)
        | BUILD.build_port.to(BUILD.undo_build_port)
        | BUILD.build_volume.to(BUILD.undo_build_volume)
        | BUILD.build_credentials.to(BUILD.undo_build_volume)
        | BUILD.build_server.to(BUILD.undo_build_server)
        | BUILD.build_attachment.to(BUILD.undo_build_server)
        | BUILD.build_database.to(BUILD.undo_build_server)
        | BUILD.build_health.to(BUILD.undo_build_server)
        | RESIZE.resize_volume_quota.to(RESIZE.undo_resize_volume_quota)
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
    )

    # An operator gives up what is parked; where every failure ends the operation nothing parks.
    operation_abandoned = ERROR.from_(BUILD, RESIZE, MIGRATE, SHUTDOWN)

    def keeps_on_failure(self, subject: Any) -> bool:
        """The publisher asked to keep what was made, to look at it."""
        return bool(subject.keep_on_failure)

    def has_unanswered_calls(self, subject: Any) -> bool:
        """A call may have made something of which no answer told. A plan is made before there are calls."""
        return subject is not None and subject.unanswered_until is not None

    def has_server(self, subject: Any) -> bool:
        """There is a guest that can be asked to stop its database."""
        return subject.server_id is not None and not subject.server_gone
