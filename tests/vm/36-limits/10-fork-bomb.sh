# A fork bomb against tasks_max: the kernel holds it there, the neighbour serves, a stop ends it all.
app bomb <<'T'
command = ["/bin/sh", "-c", "bomb() { bomb | bomb & }; while :; do bomb; sleep 1; done 2>/dev/null"]
tasks_max = 40
ready = "exec"
kill_timeout = "1s"
T
demo web 10000 2 </dev/null
systemctl start pmr@web
systemctl start pmr@bomb
group=$(unit_group bomb)
instance=$(echo "$group"/i-0.*)
equal "pids.max" "$(cat "$instance/pids.max")" 40
wait_for 60 "forks are refused" grep -qE '^max [1-9]' "$instance/pids.events"
at_most "tasks" "$(cat "$instance/pids.current")" 40
holds "the neighbour serves" serves 10000
step "stop"
holds "stop returns 0" systemctl stop pmr@bomb
holds "the group is gone" test ! -e "$group"
holds "the neighbour serves" serves 10000
