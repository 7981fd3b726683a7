# deadline: 480
# A start, a reload and a stop that take longer than the unit's timeouts succeed, since the keeper
# asks for more time while there is progress.
mkdir -p /run/systemd/system/pmr@slow.service.d
printf '[Service]\nTimeoutStartSec=8\nTimeoutStopSec=8\n' >/run/systemd/system/pmr@slow.service.d/times.conf
systemctl daemon-reload
cat >/run/vm-test-slow <<'T'

trap 'sleep 12; echo "drained"; exit 0' TERM
sleep 12
systemd-notify --ready
while :; do sleep 0.2; done
T
app slow <<'T'
command = ["/bin/bash", "/run/vm-test-slow"]
instances = 2
ready = "notify"
listen_timeout = "60s"
kill_timeout = "60s"
stable_for = "100ms"
T
step "start"
holds "start returns 0" systemctl start pmr@slow
wait_for 60 "both are online" online slow 2
before=$(pids slow)
step "reload"
holds "reload returns 0" systemctl reload pmr@slow
wait_for 60 "both are online" online slow 2
differs "the pids" "$(pids slow)" "$before"
step "stop"
holds "stop returns 0" systemctl stop pmr@slow
equal "result" "$(show slow Result)" success
# Two by the reload and two by the stop: each was waited for, and none was killed.
wait_for 60 "all four have drained" logged_times 4 '^drained$' -u pmr@slow
