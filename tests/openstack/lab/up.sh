#!/usr/bin/env bash
# Starts the lab, and fills it the first time. What is up is left alone, so that it may be run again at any time.
. "$(dirname "$0")/common.sh"
[ -x "$VENV/bin/uwsgi" ] || die "there are no services in $VENV: run install.sh first, or make openstack-up"
. "$LAB/services.sh"
. "$LAB/schemas.sh"
only_one
mkdir -p "$LOGS" "$PIDS" "$HOOKS" "$DATA"/{lock,nova,cinder,neutron,rabbitmq,images/store,images/staging,images/tasks}

echo "from oslab.nova_driver import LabDriver" >"$(echo "$VENV"/lib/python3*/site-packages/nova/virt)/oslab.py"
"$VENV/bin/python" "$LAB/render.py" "$LAB/etc" "$CONF"
mv "$CONF/clouds.yaml" "$OS_LAB_DIR/clouds.yaml"
export OS_CLIENT_CONFIG_FILE=$OS_LAB_DIR/clouds.yaml

run epmd
if [ ! -d "$DATA/mariadb/mysql" ]; then
    mariadb-install-db --no-defaults --datadir="$DATA/mariadb" --user="$USER_NAME" \
        --auth-root-authentication-method=normal --skip-test-db >"$LOGS/mariadb.log" 2>&1 || died mariadb "no data directory"
fi
run mariadb
ready epmd
run rabbitmq
ready mariadb
schemas
rings
log "database"

run keystone
ready rabbitmq
run nova-conductor
run placement
ready keystone
"$VENV/bin/python" "$LAB/fill.py" identity "placement=http://$IP:$P_PLACEMENT" "image=http://$IP:$P_GLANCE" \
    "compute=http://$IP:$P_NOVA/v2.1" "block-storage=http://$IP:$P_CINDER/v3" "network=http://$IP:$P_NEUTRON" \
    "object-store=http://$IP:$P_SWIFT/v1/AUTH_%(project_id)s"
log "keystone"

for each in "${SERVICES[@]}"; do run "$each"; done
for each in "${SERVICES[@]}"; do ready "$each"; done
log "services"
"$VENV/bin/python" "$LAB/fill.py" content "${COMPUTE_HOSTS[@]}"
log "up: OS_CLIENT_CONFIG_FILE=$OS_LAB_DIR/clouds.yaml, clouds lab-admin, lab, lab-other, lab-service"
