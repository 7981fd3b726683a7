# A crash loop: given up by the restart rules, the unit fails with 69, OnFailure= is started once.
mkdir -p /run/systemd/system/pmr@web.service.d
cat >/run/systemd/system/pmr@web.service.d/onfailure.conf <<'T'
[Unit]
OnFailure=vm-alert.service
T
cat >/run/systemd/system/vm-alert.service <<'T'
[Service]
Type=oneshot
ExecStart=/bin/sh -c 'echo "$MONITOR_UNIT $MONITOR_SERVICE_RESULT $MONITOR_EXIT_STATUS" >>/run/vm-test-alert'
T
test_cleanup() { rm -f /run/systemd/system/vm-alert.service; systemctl daemon-reload; }
systemctl daemon-reload
app web <<'T'
command = ["/bin/sh", "-c", "exit 3"]
instances = 2
ready = "exec"
max_restarts = 3
min_uptime = "10s"
T
step "start"
systemctl start pmr@web || true
wait_for 60 "the unit has failed" is web ActiveState failed
equal "result" "$(show web Result)" exit-code
equal "exit status" "$(show web ExecMainStatus)" 69
equal "restarts by systemd" "$(show web NRestarts)" 0
wait_for 60 "OnFailure= was started" test -s /run/vm-test-alert
equal "what OnFailure= was told" "$(cat /run/vm-test-alert)" "pmr@web.service exit-code 69"
matches "the failed units" "$(systemctl --failed --plain --no-legend)" 'pmr@web.service'
