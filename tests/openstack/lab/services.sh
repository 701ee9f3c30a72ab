# shellcheck shell=bash
# Each service of the lab: what it is started with, and when it is ready. Sourced after common.sh.

# What the templates of etc/ want to know.
export LAB CONF DATA VENV HOOKS IP PASSWORD AUTH_URL P_GLANCE P_SWIFT P_ACCOUNT P_CONTAINER P_OBJECT
export DB_URL=mysql+pymysql://lab:$PASSWORD@$IP:$P_MARIADB
export RABBITMQ_URL=rabbit://lab:$PASSWORD@$IP:$P_RABBITMQ//lab
USER_NAME=$(id -un)
export USER_NAME

export PATH=$VENV/bin:$PATH:/usr/sbin
export PYTHONPATH=$LAB/plugins PYTHONWARNINGS=ignore
unset PYTHONDONTWRITEBYTECODE

# In the order in which they are started; they are stopped the other way round.
INFRASTRUCTURE=(mariadb epmd rabbitmq)
SERVICES=(keystone placement nova-conductor glance neutron nova-api nova-scheduler cinder-api cinder-scheduler
    cinder-volume swift-account swift-container swift-object swift-proxy)
for host in "${COMPUTE_HOSTS[@]}"; do SERVICES+=("nova-compute-$host"); done

nova=(--config-file "$CONF/nova/nova.conf")
nova_db=("${nova[@]}" --config-file "$CONF/nova/nova-db.conf")
cinder=(--config-file "$CONF/cinder/cinder.conf")

run() { # run NAME: start it, if it is not up
    case $1 in
    mariadb)
        is_free mariadb "$P_MARIADB"
        # Without a thought of durability: the data is there to be thrown away.
        start mariadb mariadbd --no-defaults --datadir="$DATA/mariadb" --user="$USER_NAME" --socket="$DB_SOCKET" \
            --pid-file="$DATA/mariadb.pid" --bind-address="$IP" --port="$P_MARIADB" --max-connections=500 \
            --skip-log-bin --skip-name-resolve --performance-schema=0 --innodb-flush-log-at-trx-commit=0 \
            --innodb-doublewrite=0 --character-set-server=utf8mb4 --collation-server=utf8mb4_general_ci
        ;;
    epmd)
        is_free epmd "$P_EPMD"
        start epmd "${rabbitmq_environment[@]}" "$(command -v epmd || printf '%s\n' /usr/lib/erlang/erts-*/bin/epmd | head -1)"
        ;;
    rabbitmq)
        is_free rabbitmq "$P_RABBITMQ"
        start rabbitmq "${rabbitmq_environment[@]}" /usr/lib/rabbitmq/bin/rabbitmq-server
        ;;
    keystone) wsgi keystone "$P_KEYSTONE" keystone.wsgi.api OS_KEYSTONE_CONFIG_DIR="$CONF/keystone" ;;
    placement) wsgi placement "$P_PLACEMENT" placement.wsgi.api OS_PLACEMENT_CONFIG_DIR="$CONF/placement" ;;
    glance) wsgi glance "$P_GLANCE" glance.wsgi.api OS_GLANCE_CONFIG_DIR="$CONF/glance" ;;
    neutron)
        wsgi neutron "$P_NEUTRON" neutron.wsgi.api OS_NEUTRON_CONFIG_DIR="$CONF/neutron" OS_NEUTRON_CONFIG_FILES=neutron.conf
        ;;
    nova-api)
        wsgi nova-api "$P_NOVA" nova.wsgi.osapi_compute OS_NOVA_CONFIG_DIR="$CONF/nova" \
            OS_NOVA_CONFIG_FILES="$VENV/etc/nova/api-paste.ini;nova.conf;nova-db.conf"
        ;;
    cinder-api) wsgi cinder-api "$P_CINDER" cinder.wsgi.api UWSGI_PYARGV="${cinder[*]}" ;;
    nova-conductor | nova-scheduler) start "$1" "$1" "${nova_db[@]}" ;;
    nova-compute-*)
        local host=${1#nova-compute-}
        mkdir -p "$DATA/nova-$host"
        start "$1" env OS_DEFAULT__HOST="$host" OS_DEFAULT__STATE_PATH="$DATA/nova-$host" nova-compute "${nova[@]}"
        ;;
    cinder-scheduler | cinder-volume) start "$1" "$1" "${cinder[@]}" ;;
    swift-*) start "$1" "$1-server" "$CONF/swift/${1#swift-}-server.conf" ;;
    *) die "there is no service $1; there are ${INFRASTRUCTURE[*]} ${SERVICES[*]}" ;;
    esac
}

ready() { # ready NAME: wait until it serves
    case $1 in
    mariadb) until_so mariadb sql -e 'select 1' ;;
    epmd) until_so epmd listens "$P_EPMD" ;;
    rabbitmq) until_so rabbitmq speaks_amqp ;;
    keystone) until_so keystone answers "$P_KEYSTONE" /v3 ;;
    placement) until_so placement answers "$P_PLACEMENT" / ;;
    glance) until_so glance answers "$P_GLANCE" /versions ;;
    neutron) until_so neutron answers "$P_NEUTRON" / ;;
    nova-api) until_so nova-api answers "$P_NOVA" / ;;
    cinder-api) until_so cinder-api answers "$P_CINDER" / ;;
    nova-compute-*) until_so "$1" reports_host "${1#nova-compute-}" ;;
    nova-*) until_so "$1" reports "$1" nova "$1" lab ;;
    cinder-scheduler) until_so "$1" reports "$1" cinder cinder-scheduler lab ;;
    cinder-volume) until_so "$1" reports "$1" cinder cinder-volume lab@files ;;
    swift-account) until_so "$1" listens "$P_ACCOUNT" ;;
    swift-container) until_so "$1" listens "$P_CONTAINER" ;;
    swift-object) until_so "$1" listens "$P_OBJECT" ;;
    swift-proxy) until_so "$1" answers "$P_SWIFT" /healthcheck ;;
    esac
}

wsgi() { # wsgi NAME PORT MODULE [VARIABLE=VALUE...]: one process; its requests are listed in NAME.requests
    local name=$1 port=$2 module=$3 tab=$'\t'
    shift 3
    is_free "$name" "$port"
    start "$name" env "$@" uwsgi --http-socket "$IP:$port" --module "$module:application" --virtualenv "$VENV" \
        --master --processes 1 --threads 6 --enable-threads --lazy-apps --need-app --die-on-term \
        --worker-reload-mercy 3 --buffer-size 65535 --listen 100 --so-keepalive --add-header "Connection: close" \
        --chunked-input-limit 0 --chunked-input-timeout 60 --req-logger "file:$LOGS/$name.requests" \
        --log-format "%(tmsecs)${tab}%(method)${tab}%(uri)${tab}%(status)${tab}%(msecs)${tab}%(uagent)"
}

speaks_amqp() {
    python - "${RABBITMQ_URL/rabbit:/amqp:}" <<'PY'
import sys, kombu
kombu.Connection(sys.argv[1], connect_timeout=3).ensure_connection(max_retries=1)
PY
}

reports() { # reports NAME DATABASE BINARY HOST: it has said in the database, since it was started, that it is up
    local since column=last_seen_up
    [ "$2" = nova ] || column=updated_at
    since=$(stat -c %Y "$PIDS/$1")
    [ "$(sql -e "select count(*) from $2.services where host = '$4' and \`binary\` = '$3' and deleted = 0
        and greatest(coalesce($column, 0), created_at) >= '1970-01-01' + interval $since second")" = 1 ]
}

reports_host() { # reports_host HOST: it reports, and the scheduler has found it
    reports "nova-compute-$1" nova nova-compute "$1" &&
        [ "$(sql -e "select count(*) from nova_api.host_mappings where host = '$1'")" = 1 ]
}

# RabbitMQ takes all that it should know from the environment.
rabbitmq_environment=(env "HOME=$DATA/rabbitmq" RABBITMQ_NODENAME=lab@localhost "RABBITMQ_NODE_IP_ADDRESS=$IP"
    "RABBITMQ_NODE_PORT=$P_RABBITMQ" "RABBITMQ_DIST_PORT=$P_RABBITMQ_NODES" "RABBITMQ_MNESIA_BASE=$DATA/rabbitmq/mnesia"
    "RABBITMQ_LOG_BASE=$LOGS" "RABBITMQ_PID_FILE=$DATA/rabbitmq/pid" RABBITMQ_CONF_ENV_FILE=/dev/null
    "RABBITMQ_CONFIG_FILE=$CONF/rabbitmq/rabbitmq.conf" "RABBITMQ_ENABLED_PLUGINS_FILE=$CONF/rabbitmq/enabled_plugins"
    "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS=-kernel inet_dist_use_interface {127,0,0,1}"
    "ERL_EPMD_ADDRESS=$IP" "ERL_EPMD_PORT=$P_EPMD")
