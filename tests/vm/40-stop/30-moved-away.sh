# deadline: 180
# An app whose main process moves itself to another cgroup, as root can: it is said that its limits
# do not hold there, and it is stopped, killed and started again as any other, with what it started
# there.
elsewhere=/sys/fs/cgroup/vm-test-elsewhere
test_cleanup() {
    [ ! -e "$elsewhere" ] || echo 1 >"$elsewhere/cgroup.kill"
    wait_for 60 "the group is empty" grep -q 'populated 0' "$elsewhere/cgroup.events"
    rmdir "$elsewhere"
}
mkdir "$elsewhere"
app web <<S
command = ["/bin/sh", "-c", "echo \$\$ >$elsewhere/cgroup.procs && exec pmr demo-backend"]
listen = 10000
instances = 2
exec_mode = "cluster"
ready = "exec"
kill_timeout = "2s"
memory_max = "100M"
S
there() { [ "$(processes_in "$elsewhere" | wc -w)" = "$1" ]; }
systemctl start pmr@web
wait_for 60 "both are online" online web 2
wait_for 60 "both have moved" there 2
holds "it serves" serves 10000
equal "what is there" "$(processes_in "$elsewhere")" "$(pmr pid web | sort -n | xargs)"
step "it is noticed"
for slot in 0 1; do
    pid=$(pmr pid web | sed -n "$((slot + 1))p")
    wait_for 60 "the journal says so" logged "slot $slot \(pid $pid\) has moved itself to $elsewhere" \
        -u pmr@web PMR_EVENT=warning
done
matches "status" "$(pmr status web)" 'web: NOT enforced here: memory_max'
matches "describe" "$(pmr describe web)" 'memory_max.* NOT enforced: slot [01] has left its group'
old=$(supervisor web)
kill -KILL "$old"
wait_for 60 "another supervisor answers" eval 'another_supervisor web "$old" && online web 2'
wait_for 60 "that one knows, too" eval 'pmr describe web | grep -q "has left its group"'
step "a crash"
kill -KILL "$(pmr pid web | head -n 1)"
wait_for 60 "it is restarted" field_is web 0 restarts 1
wait_for 60 "both have moved" there 2
step "a reload, under load"
load_start 10000
before=$(pids web)
holds "reload returns 0" systemctl reload pmr@web
for pid in $before; do holds "an instance of before is gone" test ! -e "/proc/$pid"; done
wait_for 60 "both are online" online web 2
load_goes_on 20
load_stop 0
wait_for 60 "both have moved" there 2
step "stop"
group=$(unit_group web)
holds "stop returns 0" systemctl stop pmr@web
equal "result" "$(show web Result)" success
holds "the unit's group is gone" test ! -e "$group"
holds "nothing is left there" there 0
# By its identifier: for the journal, what runs there is of no unit. Two of the reload, two now.
equal "instances that ended as asked" \
    "$(journal -t web:0 -t web:1 -o cat | grep -c 'ends on SIGTERM')" 4
step "one that ignores SIGTERM and has left a daemon"
holds "start returns 0" systemctl start pmr@web
wait_for 60 "both have moved" there 2
get 10000 /stubborn
get 10000 /daemon
wait_for 60 "the daemon is there" there 3
holds "stop returns 0" systemctl stop pmr@web
equal "result" "$(show web Result)" success
holds "the unit's group is gone" test ! -e "$group"
holds "nothing is left there" there 0
