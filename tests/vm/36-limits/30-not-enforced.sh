# deadline: 180
# Limits that the kernel does not take here: the app runs all the same, and `status`, `describe` and
# the journal say which of them do not hold, and why.
drop_in() {
    mkdir -p /run/systemd/system/pmr@web.service.d
    printf '[Service]\n%s\n' "$1" >/run/systemd/system/pmr@web.service.d/limits.conf
    systemctl daemon-reload
}
test_cleanup() {
    rm -rf /run/systemd/system/pmr@web.service.d
    systemctl daemon-reload
}
demo web 10000 2 <<'S'
memory_max = "100M"
tasks_max = 60
S
# Without groups there is no hook at bind either.
sed -i 's/^port = /listen = /' /etc/pmr/web.toml

# said KEYS REASON: everywhere where somebody may look.
said() {
    matches "status" "$(pmr status web)" "NOT enforced here: $1"
    matches "describe" "$(pmr describe web)" "memory_max.* NOT enforced: $2"
    matches "JSON" "$(pmr status web --json)" '"enforced": ?false'
    wait_for 60 "the journal says so" logged "not enforced: $1 \($2" -u pmr@web PMR_EVENT=warning
}

step "without a memory controller"
drop_in "$(printf 'Delegate=\nDelegate=pids\nMemoryAccounting=no')"
holds "start returns 0" systemctl start pmr@web
wait_for 60 "both are online" online web 2
group=$(unit_group web)
matches_not "controllers of the unit" "$(cat "$group/cgroup.controllers")" memory
said memory_max 'no memory controller in level tracking'
wait_for 60 "the level is an entry" logged 'level tracking: .*without memory' -u pmr@web
equal "pids.max" "$(cat "$group"/i-0.*/pids.max)" 60
matches_not "what is said of tasks_max" "$(pmr describe web)" 'tasks_max.*NOT'
holds "it serves" serves 10000
kill -KILL "$(pmr pid web | head -n 1)"
wait_for 60 "a crash is restarted" field_is web 0 restarts 1
holds "stop returns 0" systemctl stop pmr@web
holds "the group is gone" test ! -e "$group"

step "no file of a cgroup can be written"
drop_in ProtectControlGroups=yes
holds "start returns 0" systemctl start pmr@web
wait_for 60 "both are online" online web 2
group=$(unit_group web)
said 'memory_max, tasks_max' 'no groups in level bare'
holds "it serves" serves 10000
# No group of its own holds it, and it is found by its session.
get 10000 /daemon
victim=$(pmr pid web | head -n 1)
kill -KILL "$victim"
wait_for 60 "a crash is restarted" field_is web 0 restarts 1
holds "stop returns 0" systemctl stop pmr@web
equal "result" "$(show web Result)" success
holds "the group is gone" test ! -e "$group"

step "as it is shipped"
rm /run/systemd/system/pmr@web.service.d/limits.conf
systemctl daemon-reload
holds "start returns 0" systemctl start pmr@web
wait_for 60 "both are online" online web 2
matches_not "status" "$(pmr status web)" 'NOT enforced'
equal "memory.max" "$(cat "$(unit_group web)"/i-0.*/memory.max)" $((100 * 1024 * 1024))
