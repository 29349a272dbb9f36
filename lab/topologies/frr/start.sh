#!/bin/bash
# Runs FRR in the foreground, the daemons that /etc/frr/daemons names with the configuration in /etc/frr/frr.conf. watchfrr
# starts them and starts them again when they die.
install -d -o frr -g frr -m 775 /var/run/frr
. /usr/lib/frr/frrcommon.sh
# shellcheck disable=SC2046 # one word for each daemon is meant
exec /usr/lib/frr/watchfrr --log stdout $(daemon_list)
