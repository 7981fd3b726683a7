# daemon-reload and daemon-reexec under load: nothing is touched, groups and limits stay.
demo web 10000 2 </dev/null
systemctl start pmr@web
wait_for 60 "both are online" online web 2
load_start 10000
before=$(pids web) main=$(keeper web) group=$(unit_group web)
controllers=$(cat "$group/cgroup.subtree_control")
for _ in 1 2; do
    step "daemon-reload"
    systemctl daemon-reload
    load_goes_on 10
    step "daemon-reexec"
    systemctl daemon-reexec
    wait_for 60 "systemd is back" systemctl is-active pmr@web
    load_goes_on 10
done
equal "pids of the instances" "$(pids web)" "$before"
equal "the keeper" "$(keeper web)" "$main"
equal "controllers" "$(cat "$group/cgroup.subtree_control")" "$controllers"
load_stop 0
longest_answer "daemon-reexec"
step "a crash is still noticed, and a stop still works"
kill -KILL "$(pmr pid web | head -n 1)"
wait_for 60 "a restart is counted" field_is web 0 restarts 1
holds "stop returns 0" systemctl stop pmr@web
holds "the group is gone" test ! -e "$group"
