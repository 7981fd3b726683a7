# deadline: 480
# A leak too fast to be outrun: it ends at memory_max at the latest, only what is in flight on the
# instance fails, and after the third replacement in a row the guard speaks up.
demo web 10000 2 <<'T'
max_memory_restart = "60M"
memory_max = "90M"
min_uptime = "300s"
max_restarts = 30
stable_for = "200ms"
T
systemctl start pmr@web
wait_for 60 "both are online" online web 2
load_start 10000
step "leak"
deadline=$(($(milliseconds) + 400000))
until logged . PMR_EVENT=memory-limit-too-low; do
    [ "$(milliseconds)" -lt "$deadline" ] || fail "the guard never spoke"
    get 10000 '/leak?mb=20' >/dev/null 2>&1 || true
    for events in "$(unit_group web)"/i-*/memory.peak; do
        at_most "$events" "$(cat "$events" 2>/dev/null || echo 0)" $((90 * 1024 * 1024))
    done
done
wait_for 60 "both are online" online web 2
load_goes_on 20
equal "active state" "$(show web ActiveState)" active
load_stop 1000000
