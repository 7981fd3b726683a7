# deadline: 240
# 1 GB of page cache is no leak: it is reclaimed, and nobody is replaced for it.
truncate -s 1G /var/tmp/vm-big
test_cleanup() { rm -f /var/tmp/vm-big; }
app reader <<'T'
command = ["/bin/sh", "-c", "cat /var/tmp/vm-big >/dev/null && touch /run/vm-test-read && exec sleep infinity"]
max_memory_restart = "100M"
ready = "exec"
T
systemctl start pmr@reader
pid=$(pids reader)
group=/sys/fs/cgroup$(cut -d: -f3 "/proc/$pid/cgroup")
wait_for 150 "the file is read" test -e /run/vm-test-read
matches "its page cache was charged to it" "$(grep -E '^pgfault|^file ' "$group/memory.stat")" '^file [0-9]{7,}'
at_most "memory.peak" "$(cat "$group/memory.peak")" $((125 * 1024 * 1024))
equal "pid" "$(pids reader)" "$pid"
equal "restarts" "$(field reader 0 restarts)" 0
if logged . PMR_EVENT=memory-above; then fail "page cache counts as a leak"; fi
equal "OOM kills" "$(sed -n 's/^oom_kill //p' "$group/memory.events")" 0
