#!/usr/bin/env bash
# Stops what up.sh started. `down.sh --purge` takes all data away too, and leaves the virtualenv.
. "$(dirname "$0")/common.sh"
only_one 30

stopping=()
for each in "$PIDS"/*; do
    case ${each##*/} in
    mariadb | rabbitmq | epmd | '*') ;;
    *)
        stop "${each##*/}" &
        stopping+=($!)
        ;;
    esac
done
for each in "${stopping[@]}"; do wait "$each"; done
for each in rabbitmq epmd mariadb; do stop $each 300; done
[ "${1:-}" != --purge ] || rm -rf "$DATA" "$CONF" "$LOGS" "$PIDS" "$HOOKS" "$OS_LAB_DIR/clouds.yaml"
log "down"
