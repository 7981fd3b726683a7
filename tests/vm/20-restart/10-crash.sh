# A crash under load: started again, and only the request that crashed it fails.
demo web 10000 2 </dev/null
systemctl start pmr@web
load_start 10000
before=$(pids web)
step "crash"
if get 10000 /crash 2>/dev/null; then fail "the demo does not crash"; fi
wait_for 60 "a restart is counted" restarts_are web 1
wait_for 60 "both are online" online web 2
differs "the pids" "$(pids web)" "$before"
load_goes_on 50
# Two clients: each has at most one request on the instance that crashes.
load_stop 2
longest_answer "a crash"
equal "the unit was never restarted" "$(show web NRestarts)" 0
