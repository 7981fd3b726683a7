# journald stopped by hand and started again: no app dies of it (SIGPIPE), new instances are logged.
demo web 10000 2 </dev/null
systemctl start pmr@web
wait_for 60 "both are online" online web 2
load_start 10000
before=$(pids web)
test_cleanup() { systemctl start systemd-journald.socket systemd-journald.service; }
step "stop"
systemctl stop systemd-journald.socket systemd-journald-dev-log.socket systemd-journald-audit.socket \
    systemd-journald.service 2>/dev/null || true
equal "journald" "$(systemctl is-active systemd-journald || true)" inactive
for _ in 1 2 3 4; do get 10000 '/log?lines=20' >/dev/null; done
load_goes_on 10
step "start"
systemctl start systemd-journald.socket systemd-journald-dev-log.socket systemd-journald.service
wait_for 60 "journald is back" systemctl is-active systemd-journald
get 10000 '/log?lines=1' >/dev/null
equal "pids" "$(pids web)" "$before"
load_stop 0
step "a new instance has a new stream"
holds "restart" pmr restart web
wait_for 60 "both are online" online web 2
for _ in 1 2 3 4; do get 10000 '/log?lines=2' >/dev/null; done
wait_for 60 "its lines come" logged 'line 2 of 2 to stdout' -u pmr@web
