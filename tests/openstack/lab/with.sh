#!/usr/bin/env bash
# Runs a command while the lab is up: with.sh COMMAND... A lab that is up already stays so; one that is started for the
# command is stopped after it. Ends as the command does.
. "$(dirname "$0")/common.sh"

if ! is_up keystone || [ ! -e "$OS_LAB_DIR/clouds.yaml" ]; then
    trap '"$LAB/down.sh"' EXIT
    "$LAB/install.sh"
    "$LAB/up.sh"
fi
export OS_CLIENT_CONFIG_FILE=$OS_LAB_DIR/clouds.yaml
"$@"
