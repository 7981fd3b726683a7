# A burst past memory_max: ended by the kernel in that instance alone, reported, and restarted.
demo web 10000 2 <<'T'
memory_max = "100M"
T
systemctl start pmr@web
wait_for 60 "both are online" online web 2
for pid in $(pids web); do
    group=/sys/fs/cgroup$(cut -d: -f3 "/proc/$pid/cgroup")
    equal "memory.max" "$(cat "$group/memory.max")" $((100 * 1024 * 1024))
    equal "memory.oom.group" "$(cat "$group/memory.oom.group")" 1
done
load_start 10000
before=$(pids web)
step "burst"
if get 10000 '/leak?mb=400' 2>/dev/null; then fail "400 MB were had within a cap of 100 MB"; fi
wait_for 60 "a restart is counted" restarts_are web 1
wait_for 60 "both are online" online web 2
equal "instances of before that live" "$(for pid in $before; do ls -d "/proc/$pid"; done 2>/dev/null | wc -l)" 1
wait_for 60 "the journal says why" logged 'OOM|out of memory' -u pmr@web PMR_EVENT=oom-killed PMR_EVENT=failed
equal "active state" "$(show web ActiveState)" active
load_goes_on 20
# Each of the two clients may have had one request on it.
load_stop 2
