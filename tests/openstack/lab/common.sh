# shellcheck shell=bash
# What the lab's scripts share: where things are, how a process is started, stopped and waited for.
set -euo pipefail

LAB=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
CHECKOUT=$(cd "$LAB/../../.." && pwd)

# Everything that the lab makes is below OS_LAB_DIR; the virtualenv may be shared by several labs.
export OS_LAB_DIR=${OS_LAB_DIR:-$CHECKOUT/.openstack-lab}
case $OS_LAB_DIR in /*) ;; *) OS_LAB_DIR=$PWD/$OS_LAB_DIR ;; esac
VENV=${OS_LAB_VENV:-$OS_LAB_DIR/venv}
CONF=$OS_LAB_DIR/etc
LOGS=$OS_LAB_DIR/log
PIDS=$OS_LAB_DIR/pid
DATA=$OS_LAB_DIR/data
HOOKS=$OS_LAB_DIR/hooks.d
PATIENCE=${OS_LAB_TIMEOUT:-180} # seconds to wait for one service

# All listen on loopback, at the well-known port plus the offset, so that labs run side by side.
IP=127.0.0.1
OFFSET=${OS_LAB_PORT_OFFSET:-10000}
P_KEYSTONE=$((5000 + OFFSET))
P_PLACEMENT=$((8778 + OFFSET))
P_GLANCE=$((9292 + OFFSET))
P_NOVA=$((8774 + OFFSET))
P_CINDER=$((8776 + OFFSET))
P_NEUTRON=$((9696 + OFFSET))
P_SWIFT=$((8080 + OFFSET))
P_OBJECT=$((6200 + OFFSET))
P_CONTAINER=$((6201 + OFFSET))
P_ACCOUNT=$((6202 + OFFSET))
P_MARIADB=$((3306 + OFFSET))
P_RABBITMQ=$((5700 + OFFSET))
P_RABBITMQ_NODES=$((5701 + OFFSET))
P_EPMD=$((4369 + OFFSET))
AUTH_URL=http://$IP:$P_KEYSTONE/v3

PASSWORD=labpass            # of every user and service: nothing here is worth a secret
COMPUTE_HOSTS=(fake1 fake2) # two, since a resize and a migration go to the other one
DATABASES=(keystone placement glance nova_api nova_cell0 nova cinder neutron)

# A path to a socket must not be longer than 107 bytes.
DB_SOCKET=$DATA/mariadb.sock
[ "${#DB_SOCKET}" -lt 100 ] || DB_SOCKET=/tmp/holdfast-lab-$(printf %s "$OS_LAB_DIR" | cksum | cut -d' ' -f1).sock

began=$(date +%s)
log() { printf '[lab %4ds] %s\n' "$(($(date +%s) - began))" "$*" >&2; }
die() {
    printf '[lab] %s\n' "$*" >&2
    exit 1
}

only_one() { # nobody else starts or stops this lab meanwhile
    mkdir -p "$OS_LAB_DIR"
    chmod 700 "$OS_LAB_DIR"
    exec 9>"$OS_LAB_DIR/.lock"
    flock -w "${1:-5}" 9 || die "somebody else is starting or stopping the lab in $OS_LAB_DIR: wait until that is done"
}

# --- processes ------------------------------------------------------------------------------------------------------
# A pid file says "PID STARTED", the latter by the kernel's clock: a pid that was given away again is not taken for ours.

started_at() { # in ticks since boot: the 22nd field, counted behind the name, which may have blanks
    local stat
    stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
    read -r -a stat <<<"${stat##*) }"
    [ "${stat[0]}" != Z ] && echo "${stat[19]}"
}

is_up() {
    local pid started
    read -r pid started 2>/dev/null <"$PIDS/$1" && [ "$(started_at "$pid")" = "$started" ]
}

start() { # start NAME COMMAND...: in the background, a process group of its own
    local name=$1 pid
    shift
    is_up "$name" && return
    (
        exec 9>&-
        cd "$DATA"
        exec setsid "$@"
    ) >>"$LOGS/$name.log" 2>&1 </dev/null &
    pid=$!
    disown "$pid"
    echo "$pid $(started_at "$pid")" >"$PIDS/$name"
}

stop() { # stop NAME [TENTHS]: TERM to the group, KILL when it takes too long
    local name=$1 pid tenths=0
    if is_up "$name"; then
        read -r pid _ <"$PIDS/$name"
        kill -TERM -- "-$pid" 2>/dev/null || kill -TERM "$pid" 2>/dev/null || true
        while is_up "$name" && [ "$tenths" -lt "${2:-100}" ]; do
            sleep 0.1
            tenths=$((tenths + 1))
        done
        kill -KILL -- "-$pid" 2>/dev/null || true # what is left of the group
    fi
    rm -f "$PIDS/$name"
}

died() { # died NAME WHAT: say the last that it said
    tail -n 25 "$LOGS/$1.log" >&2 || true
    die "$2, see $LOGS/$1.log"
}

until_so() { # until_so NAME COMMAND...: wait until the command succeeds, while the process of that name lives
    local name=$1 end=$(($(date +%s) + PATIENCE))
    shift
    until "$@" >/dev/null 2>&1; do
        is_up "$name" || died "$name" "$name died while it started"
        [ "$(date +%s)" -lt "$end" ] || died "$name" "$name is not ready after $PATIENCE s"
        sleep 0.2
    done
}

listens() { (exec 3<>"/dev/tcp/$IP/$1") 2>/dev/null; }

answers() { # answers PORT PATH: any answer but one of a server in trouble
    local status
    status=$(
        exec 3<>"/dev/tcp/$IP/$1"
        printf 'GET %s HTTP/1.0\r\nHost: %s\r\n\r\n' "$2" "$IP" >&3
        read -r -t 5 _ status _ <&3 && echo "$status"
    ) && [ "$status" -ge 200 ] && [ "$status" -lt 500 ]
}

is_free() { # is_free NAME PORT: ours, or nobody's
    is_up "$1" || ! listens "$2" || die "port $2 ($1) is taken by another process: set OS_LAB_PORT_OFFSET to another number than $OFFSET"
}

sql() { mariadb --no-defaults -uroot --socket="$DB_SOCKET" -N -B "$@"; }
