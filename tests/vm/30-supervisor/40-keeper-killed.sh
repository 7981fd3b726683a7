# kill -9 of the keeper: the listening socket comes back from systemd, so clients wait and are not
# refused; never a loop of 219/CGROUP.
demo web 10000 2 </dev/null
systemctl start pmr@web
load_start 10000
main=$(keeper web) before=$(pids web)
step "kill -9 of the keeper"
began=$(milliseconds)
kill -KILL "$main"
wait_for 60 "there is another keeper" eval '[ "$(keeper web)" != 0 ] && [ "$(keeper web)" != "$main" ]'
wait_for 60 "both are online" online web 2
figure "online again after" "$(($(milliseconds) - began))" ms
load_goes_on 30
for pid in $before; do holds "an instance of before is gone" test ! -e "/proc/$pid"; done
equal "restarts by systemd" "$(show web NRestarts)" 1
matches_not "the journal" "$(journal -u pmr@web)" '219/CGROUP|status=219'
load_stop_with 0 refused
longest_answer "keeper killed"
