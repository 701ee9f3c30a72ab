#!/usr/bin/env bash
# Stops or starts one service: service.sh stop|start NAME. Yields when it is so.
. "$(dirname "$0")/common.sh"
. "$LAB/services.sh"
only_one 60

case ${1:-} in
stop) stop "$2" ;;
start)
    run "$2"
    ready "$2"
    ;;
*) die "service.sh stop|start NAME; there are ${INFRASTRUCTURE[*]} ${SERVICES[*]}" ;;
esac
