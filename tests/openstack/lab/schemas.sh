# shellcheck shell=bash
# The databases and what is in them before any service can start. Sourced after services.sh.

databases() {
    local name
    for name in "${DATABASES[@]}"; do
        echo "CREATE DATABASE IF NOT EXISTS \`$name\` CHARACTER SET utf8mb3;"
    done
    echo "CREATE USER IF NOT EXISTS 'lab'@'$IP' IDENTIFIED BY '$PASSWORD'; GRANT ALL ON *.* TO 'lab'@'$IP';"
}

manage() { # manage NAME COMMAND...: one step, with a log of its own
    local name=$1
    shift
    "$@" >>"$LOGS/$name.log" 2>&1 </dev/null || died "$name" "$name failed"
}

migrate_keystone() {
    local keystone=(keystone-manage --config-file "$CONF/keystone/keystone.conf") me=(--keystone-user "$USER_NAME" --keystone-group "$(id -gn)")
    mkdir -p "$DATA/fernet-keys" "$DATA/credential-keys"
    manage migrate-keystone "${keystone[@]}" db_sync
    manage migrate-keystone "${keystone[@]}" fernet_setup "${me[@]}"
    manage migrate-keystone "${keystone[@]}" credential_setup "${me[@]}"
    manage migrate-keystone "${keystone[@]}" bootstrap --bootstrap-password "$PASSWORD" --bootstrap-region-id RegionOne \
        --bootstrap-public-url "$AUTH_URL" --bootstrap-internal-url "$AUTH_URL" --bootstrap-admin-url "$AUTH_URL"
}

migrate_nova() {
    local nova_manage=(nova-manage "${nova_db[@]}")
    manage migrate-nova "${nova_manage[@]}" api_db sync
    manage migrate-nova "${nova_manage[@]}" db sync --local_cell
    manage migrate-nova "${nova_manage[@]}" --config-file "$CONF/nova/cell0.conf" db sync --local_cell
    manage migrate-nova "${nova_manage[@]}" cell_v2 map_cell0 --database_connection "$DB_URL/nova_cell0?charset=utf8"
    manage migrate-nova "${nova_manage[@]}" cell_v2 create_cell --name cell1
}

migrate_others() {
    manage migrate-placement placement-manage --config-file "$CONF/placement/placement.conf" db sync
    manage migrate-glance glance-manage --config-file "$CONF/glance/glance-api.conf" db_sync
    manage migrate-cinder cinder-manage "${cinder[@]}" db sync
}

schemas() { # once; a lab whose first start was broken off is to be purged
    local done_=$DATA/schemas.done each pids=()
    [ -e "$done_" ] && return
    log "schemas"
    databases | sql
    manage migrate-neutron neutron-db-manage --config-file "$CONF/neutron/neutron.conf" upgrade heads &
    pids+=($!)
    migrate_nova &
    pids+=($!)
    { migrate_keystone && migrate_others; } &
    pids+=($!)
    for each in "${pids[@]}"; do wait "$each" || die "make openstack-down PURGE=1, and start again"; done
    touch "$done_"
}

rings() { # of Swift
    [ -e "$CONF/swift/account.ring.gz" ] && return
    mkdir -p "$DATA/swift/d1"
    manage rings python "$LAB/rings.py" "$CONF/swift" "$IP" "object:$P_OBJECT" "container:$P_CONTAINER" "account:$P_ACCOUNT"
}
