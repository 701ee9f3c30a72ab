"""What each stable code means, and what to do next. A test holds it to the codes that the program can say."""

from __future__ import annotations

CODES: dict[str, tuple[str, str]] = {
    "apply_slow": (
        "A replica that is to become the source has not applied all that it received.",
        "Nothing: it is retried.",
    ),
    "data_present": (
        "An instance that is to be seeded as a replica has a database already.",
        "Use an empty one, or `follow_source` with repair `seed`.",
    ),
    "diverged": (
        "The instance has writes that its new source does not know.",
        "Have it rewound or seeded anew, which gives them up.",
    ),
    "generation_stale": (
        "The replication set has had another change of source since.",
        "Read the set again, and decide anew.",
    ),
    "has_replicas": ("Replicas follow the instance that is to stand alone.", "Dismiss them first."),
    "not_replica": ("An instance that follows nobody is to be promoted.", "Name a replica of the set."),
    "not_running": ("The database is stopped.", "Start it first."),
    "not_source": (
        "A replica, or a fenced source, was asked for what only a source can do.",
        "Ask the source of the set.",
    ),
    "other_replication_set": ("The instance is a member of another replication set.", "Detach it there first."),
    "position_not_reached": (
        "A replica has not applied all up to the position in the time given.",
        "Nothing: it is retried; look at its lag.",
    ),
    "promotion_slow": ("PostgreSQL did not end its recovery in time.", "Nothing: it is retried; else read its log."),
    "replication_broken": ("A replica cannot apply what its source sends.", "Read the message; seed it anew."),
    "seed_timeout": (
        "Copying the source's data took too long.",
        "Nothing: it is retried; look at the network and the source's load.",
    ),
    "source_is_self": ("An instance is to follow itself.", "Name another source."),
    "source_unreachable": (
        "A replica does not reach its source.",
        "See that the source runs, has admitted the replica, and can be reached.",
    ),
    "abandoned": (
        "Somebody gave the operation up where it was parked.",
        "Look at its last event for what is left; delete the instance to have it removed.",
    ),
    "address_unusable": (
        "The database cannot listen on the instance's address.",
        "Free the address or the port; the agent tries again by itself.",
    ),
    "address_unknown": (
        "The machine has no network interface with the MAC of the instance's port and an address.",
        "See that its network is up and that the server has its port; the agent is started again.",
    ),
    "agent_runs": ("Another agent serves this guest's directory.", "End one of the two."),
    "ambiguous_name": ("Several instances have this name.", "Name the id of one; the message lists them."),
    "broker_away": (
        "The guests' credentials, which lie on the broker, cannot be reached.",
        "Nothing: it is tried again; look at the broker.",
    ),
    "broker_address_unknown": (
        "The embedded broker is to listen on what is no address of this machine.",
        "Say an address or name by which machines find it.",
    ),
    "broker_config_refused": ("The embedded broker refuses its configuration.", "Read the reason; undo the change."),
    "broker_elsewhere": ("The embedded broker runs on another port than wanted.", "Nothing: it is started anew."),
    "broker_ended": ("The embedded broker ended while it started.", "Read its log in the state directory."),
    "broker_locked": (
        "A process that is no broker of ours holds the broker's lock.",
        "Stop what else uses this state directory.",
    ),
    "broker_missing": (
        "There is no `nats-server` on this machine.",
        "Install `holdfast[embedded]`, or name a broker with `--nats`.",
    ),
    "broker_not_durable": (
        "The broker may acknowledge a command that a power cut then loses.",
        "Give the stream three replicas or `sync_interval: always`, or declare the broker durable.",
    ),
    "broker_not_ready": ("The embedded broker runs and does not become healthy.", "Read its log; look at its disk."),
    "broker_not_reloaded": ("The embedded broker did not take its new configuration in time.", "Start it anew."),
    "broker_outdated": ("The embedded broker runs another program than installed.", "Nothing: it is started anew."),
    "broker_port_taken": ("Another program listens on the broker's port.", "Stop it, or choose another port."),
    "broker_refused": ("The broker refused to store the command; it was not stored.", "Read its reason."),
    "broker_unauthorised": ("The broker refuses our credentials.", "Give it a user that this broker knows."),
    "broker_unavailable": ("A command of the engine's own could not be sent.", "Nothing: it is tried again."),
    "broker_unkillable": ("The embedded broker does not end, not even killed.", "Look at its disk."),
    "broker_untrusted": (
        "What answers as the broker is not trusted: its certificate is by a CA unknown to us, or it offers no TLS.",
        "Name the file of the CA that signed its certificate, or correct the address.",
    ),
    "broker_tls_incomplete": (
        "Only some of the files are named that TLS on the embedded broker needs.",
        "Name its certificate, its key and the CA.",
    ),
    "broker_without_tls": (
        "The embedded broker is to listen on a network without TLS.",
        "Give it a certificate, or leave it on the loopback.",
    ),
    "broker_unreachable": ("No broker took the connection in time.", "Start the broker, or correct the address."),
    "call_in_flight": (
        "A call made before may still be carried out: a worker ended while it made it, or its answer is missing.",
        "Nothing: it is looked again, and called again when no call can be under way.",
    ),
    "cancelled": (
        "The operation was cancelled, by `cancel_operation` or by a deletion.",
        "Look at the operation's `cancelled_by`.",
    ),
    "cannot_apply": (
        "A read model cannot take an event, so it stops there rather than show something else.",
        "Upgrade, then `holdfast rebuild`; the log is whole.",
    ),
    "cannot_mount": ("The local cloud may not mount the volume.", "Run it as root, or leave the limit of size off."),
    "cloud_busy": ("The cloud takes no more calls for now.", "Nothing: it is tried again when the cloud says."),
    "cloud_error": ("The cloud refused or broke; the message is its own.", "Read the message."),
    "cloud_forbidden": (
        "The cloud does not let the engine's user do that.",
        "Give it [the right](../how-to/give-holdfast-its-rights-on-openstack.md).",
    ),
    "cloud_misconfigured": (
        "The cloud's configuration names what the cloud has not, or its credentials are incomplete.",
        "Correct the configuration: `holdfast cloud check` says what is missing.",
    ),
    "cloud_timeout": (
        "The cloud did not answer a call in time, or was not done in time with what it was told.",
        "Nothing: what is there is looked for, and what is missing is tried again.",
    ),
    "cloud_unauthorised": ("The cloud refuses the engine's credentials.", "Give the engine others; it is tried again."),
    "cloud_unreachable": ("The cloud takes no connection, or broke it.", "Nothing: it is tried again."),
    "conflict": (
        "Another operation runs, the id is taken, `expected_version` is outdated, or a resource is in another's hands.",
        "Wait until the operation named has ended, or look again and decide anew.",
    ),
    "connection_ended": (
        "The broker ended the connection for good: it refuses the credentials that it took before.",
        "Give it a user that this broker knows, and start the process anew.",
    ),
    "credentials_revoked": (
        "The instance's credentials are gone, so no machine may be started for it.",
        "Delete the instance, and create it anew.",
    ),
    "credentials_unreadable": ("A file with credentials cannot be read.", "Name the right file, or give us the right."),
    "database_error": ("The database failed while it was prepared, in a way that may pass.", "Nothing: it is retried."),
    "database_refused": ("The database refused what it was asked for.", "Change the argument that it names."),
    "database_silent": ("The database does not answer.", "Nothing: it is retried; else read its log."),
    "databases_unsupported": ("The datastore has no databases to create.", "Leave `databases` out."),
    "datastore_incomplete": ("The datastore is installed without a part that is needed.", "Install the whole."),
    "data_missing": (
        "A server was made anew, and where its volume is to be mounted there are no data.",
        "See that the volume is mounted there, then retry the operation.",
    ),
    "datastore_missing": ("The datastore is not on the guest's machine.", "Install it."),
    "datastore_unknown": ("There is no datastore of this name.", "Use one that the message names."),
    "deadline_exceeded": (
        "The operation was not done by its deadline, and what it had made was undone.",
        "Read the message: it is the last error. Try again, or with a later deadline.",
    ),
    "duplicate_command": (
        "Another command was decided under this command id.",
        "Give each command an id of its own; repeat one only with the very same body.",
    ),
    "enrolment_contended": ("Others changed the guest's credentials at the same time.", "Nothing: it is tried again."),
    "expired": ("The command's deadline had passed when it was decided.", "Send it anew, with a later deadline."),
    "file_system_small": ("The guest's file system is smaller than its volume.", "Nothing: it is retried."),
    "forbidden_state": ("The command is not allowed in this state.", "See [commands.md](commands.md)."),
    "guest_error": ("The guest agent failed; the message is its own.", "Read the message."),
    "guest_timeout": ("The guest was not done, or not healthy, in time.", "Read the database's log."),
    "guest_unreachable": ("The guest agent does not answer.", "See whether its server runs and reaches the broker."),
    "host_unsupported": ("The datastore cannot bind a user to this host.", "Use `%`, or what the message names."),
    "image_missing": (
        "The cloud has no image for this version of the datastore.",
        "Upload one with the properties that the message names, or name one in the cloud's configuration.",
    ),
    "in_use": ("A server still has the resource.", "Nothing: it is retried until the server is gone."),
    "install_timeout": ("A program of the datastore did not end in time.", "Nothing: it is retried."),
    "internal_error": ("A defect of the engine.", "Report it, with the traceback of its dead letter or from the log."),
    "invalid_argument": ("An argument is wrong.", "The message names it and what is allowed."),
    "malformed": ("The message is no command.", "See the envelope in [commands.md](commands.md)."),
    "malformed_answer": ("An answer cannot be read.", "Use client and engine of one version."),
    "malformed_request": (
        "A request to or from a guest agent is not of the form that is documented.",
        "Give agent and engine the same version.",
    ),
    "name_taken": (
        "Somebody else's resource has the name, or the MAC address, that ours would have; it is left alone.",
        "Rename or remove it.",
    ),
    "no_address": (
        "The local cloud has no address left, OpenStack's network gives none, or the instance has none to connect to.",
        "Delete what is not needed; give the network a subnet; or wait until the instance is ACTIVE.",
    ),
    "no_engine": ("Nobody serves this state directory.", "Start the engine."),
    "no_responders": ("Nobody answers this query.", "Start the engine."),
    "no_stream": ("The broker has no command stream.", "Start the engine: it makes the stream."),
    "no_valid_host": (
        "No host of the cloud has room for the server, or fits its group.",
        "Choose another flavor, zone or host, or give the cloud more room.",
    ),
    "not_carried_out": (
        "A last look found that what no try has had answered did not come about.",
        "Nothing: the operation fails, or is parked, with the words of the last try.",
    ),
    "not_decided": ("A command of the engine's own was not decided in time.", "Nothing: it is tried again."),
    "not_found": ("The project has nothing of this id.", "Correct id or project; a read model may be a moment behind."),
    "not_replayable": (
        "The dead letter holds no command that can be sent again.",
        "Have its publisher send a good one.",
    ),
    "not_prepared": ("The guest was asked to act before it was prepared.", "Nothing: its operation prepares it."),
    "overloaded": ("Too many queries are being answered.", "Ask again later."),
    "parameter_unknown": ("A parameter may not be set.", "Leave it out of `overrides`."),
    "parked": (
        "The operation cannot go on by itself: what is owed cannot be paid, and there is no way back.",
        "Read the operation's error, and remove its cause. A deletion is accepted, unless it is one itself.",
    ),
    "program_failed": ("A program of the datastore failed; the message ends with its words.", "Read them."),
    "program_unreachable": ("The guest's user may not run the datastore's program.", "Put it where the user can."),
    "projector_running": ("Another process writes these read models.", "End one of the two."),
    "quota_exceeded": (
        "The quota has no room: the project's, or the service user's own at the cloud. The operation ends.",
        "Delete something, or ask for a higher quota.",
    ),
    "rate_limited": (
        "More machines present themselves at once than are answered.",
        "Nothing: the agent asks again; look who sends so much.",
    ),
    "region_unavailable": (
        "What the instance's region offers is not known, since it has not answered since the worker began.",
        "Send the command again, with an id of its own, when the region answers: see `holdfast regions`.",
    ),
    "region_unknown": (
        "The instance lies in a region that the cloud's configuration has no more; nothing is done elsewhere.",
        "Put the region back into the configuration, start the workers anew, and retry the operation.",
    ),
    "runs_as_root": ("Databases are not run as root.", "Start the agent with `--run-as uid:gid`."),
    "secret_in_clear": (
        "A command held a secret in clear; it was not carried out, and the secret counts as known.",
        "Change the secret, hand the new one to `secrets.put`, and send the reference.",
    ),
    "secret_not_found": ("There is no secret under this reference.", "Put it again, then send the new reference."),
    "secret_unreadable": ("A stored secret cannot be opened.", "Restore it with its key, or put the secret again."),
    "seed_damaged": ("A file of credentials holds no seed.", "Delete it: a new one is made at the next start."),
    "start_failed": ("The database dies when it starts; the message ends with its log.", "Read the log."),
    "start_timeout": ("The database does not answer after its start.", "Nothing: it is retried; else read its log."),
    "state_directory_closed": (
        "The guests' user cannot pass through the state directory.",
        "Choose another directory, or open the way to it.",
    ),
    "stop_failed": ("The database's process does not end.", "Look at the machine's disks."),
    "store_unavailable": (
        "The event store could not be reached before the process ended.",
        "Look at the database; nothing that was acknowledged is lost.",
    ),
    "store_in_use": ("Another process writes this SQLite store.", "Stop it, or use a PostgreSQL store."),
    "store_refused": (
        "The event store cannot be opened as it is, and waiting would not help.",
        "Correct `--store`, or give its user the right or the database that the message names.",
    ),
    "stream_full": ("The broker's stream is full; the command was not stored.", "Let the engine catch up; try again."),
    "stream_mismatch": ("A stream has another configuration than needed.", "Change it as the message says."),
    "stream_refused": ("The broker does not take a stream.", "Give it the room or the right that it names."),
    "timeout": (
        "No answer within the time given. What was asked for may still happen.",
        "Ask again: the command's id stays good.",
    ),
    "token_expired": (
        "The machine presented itself too late.",
        "Delete the instance, and create it anew; look why its machine took so long.",
    ),
    "token_refused": (
        "Who asked holds no token of this instance, or the instance is gone.",
        "See that the machine has its own user data; else somebody tries.",
    ),
    "token_used": (
        "The token has let in another key, or a newer machine has enrolled.",
        "If the instance's own machine was refused, somebody has read its user data: delete the instance.",
    ),
    "too_large": ("A command or an answer is larger than a message may be.", "Send less, or ask for less."),
    "unacknowledged": (
        "Whether the broker stored the command is not known.",
        "Ask for the command by its id, or send the very same again.",
    ),
    "unauthorised": ("The broker refuses the credentials, or the subject.", "Use credentials of the project."),
    "unknown_command": ("There is no such command for this kind.", "See [commands.md](commands.md)."),
    "unknown_event": ("The log has an event of a newer version.", "Upgrade this process."),
    "unknown_query": ("There is no such query.", "The message names those that there are."),
    "unsupported": ("The argument, or what it asks for, is not supported here.", "Leave it out."),
    "user_data_unreadable": (
        "The machine has no user data of ours.",
        "Mount its config drive, or start the server through Holdfast.",
    ),
    "vault_key_damaged": ("The vault's key is damaged.", "Restore it."),
    "vault_key_exposed": ("Others may read the vault's key.", "`chmod 600`, and change the secrets in the vault."),
    "vault_key_missing": ("The vault's key is gone, and secrets are there.", "Restore it, or put the secrets again."),
    "version_missing": ("The machine has another version of the datastore.", "Install the one, or ask for the other."),
    "version_unknown": ("The datastore's program does not tell its version.", "Install it anew."),
    "volume_ambiguous": (
        "Several disks of the machine may be its volume.",
        "Name the right one in the image's configuration.",
    ),
    "volume_away": (
        "The machine's volume is not mounted.",
        "Attach it, and see what holdfast-volume.service says.",
    ),
    "volume_foreign": (
        "The disk that should be the volume holds what was not made here.",
        "Attach the instance's own volume.",
    ),
    "volume_held": (
        "Somebody on the machine holds the volume, which is to be unmounted.",
        "End the processes that are named, then retry.",
    ),
    "wrong_facts": (
        "A cloud or a guest answered with other facts than the event records; nothing of it was recorded.",
        "The operation takes its way back. Report it with the message: it is a defect of that cloud or agent.",
    ),
}
