# deadline: 240
# A leak of 10 MB a second against a limit of 200 MB, with two instances under load: replaced at the
# limit, not later, and no request fails.
demo web 10000 2 <<'T'
max_memory_restart = "200M"
min_uptime = "1s"
stable_for = "500ms"
T
systemctl start pmr@web
wait_for 10 "both are online" online web 2
load_start 10000
before=$(pids web)
step "leak"
above() { logged . PMR_EVENT=memory-above; }
deadline=$(($(milliseconds) + 150000))
until above; do
    [ "$(milliseconds)" -lt "$deadline" ] || fail "no instance was ever found above its limit"
    get 10000 '/leak?mb=10' >/dev/null
    sleep 0.5
done
step "found"
wait_for 60 "an instance is replaced" eval '[ "$(pids web)" != "$before" ]'
wait_for 60 "both are online" online web 2
wait_for 60 "the replacement is done" logged . PMR_EVENT=ended
entry=$(journal PMR_EVENT=memory-above -o cat | head -n 1)
echo "$entry"
matches "the entry" "$entry" 'anon .*file .*kernel'
load_goes_on 20
load_stop 0
equal "restarts by a crash" "$(journal PMR_EVENT=failed -o cat | wc -l)" 0
