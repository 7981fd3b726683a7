# Start, READY, serve; STATUS says what is so; stop leaves nothing.
demo web 10000 2 </dev/null
step "start"
holds "start returns 0" systemctl start pmr@web
equal "active state" "$(show web ActiveState)" active
holds "serves when started" serves 10000
wait_for 60 "both are online" online web 2
wait_for 60 "STATUS says so" status_text web '^2/2 online, gen [0-9]+, 0 restarts/h$'
step "who runs where"
equal "the main process" "$(cat "/proc/$(keeper web)/comm")" pmr-keeper
group=$(unit_group web)
for slot in 0 1; do
    pid=$(pmr pid web | sed -n "$((slot + 1))p")
    matches "the group of slot $slot" "$(cat "/proc/$pid/cgroup")" "pmr@web.service/i-$slot\.[0-9]+$"
    equal "oom_score_adj of slot $slot" "$(cat "/proc/$pid/oom_score_adj")" 0
    matches_not "the environment of slot $slot" "$(tr '\0' '\n' <"/proc/$pid/environ")" \
        '^(WATCHDOG_|FDSTORE|MAINPID|MEMORY_PRESSURE|LISTEN_PIDFD)'
done
equal "oom_score_adj of the keeper" "$(cat "/proc/$(keeper web)/oom_score_adj")" -900
matches "the group of the keeper" "$(cat "/proc/$(keeper web)/cgroup")" 'pmr@web.service/supervisor$'
matches "controllers for the instances" "$(cat "$group/cgroup.subtree_control")" memory
step "stop"
holds "stop returns 0" systemctl stop pmr@web
equal "active state" "$(show web ActiveState)" inactive
equal "result" "$(show web Result)" success
holds "the group is gone" test ! -e "$group"
holds "the runtime directory is gone" test ! -e /run/pmr/web
