# An app that finishes: the unit ends well and is not started again.
app job <<'T'
command = ["/bin/sh", "-c", "sleep 0.5; exit 0"]
instances = 1
autorestart = false
T
systemctl start pmr@job
wait_for 60 "the unit is inactive" is job ActiveState inactive
equal "result" "$(show job Result)" success
equal "exit status" "$(show job ExecMainStatus)" 0
equal "restarts by systemd" "$(show job NRestarts)" 0
