# deadline: 240
# The supervisor dies again and again while an instance leaks: it is replaced all the same.
demo web 10000 2 <<'T'
max_memory_restart = "100M"
memory_max = "600M"
stable_for = "3s"
T
systemctl start pmr@web
wait_for 60 "both are online" online web 2
load_start 10000
# However the two share these, one of them is over its limit at the end.
get 10000 '/leak?mb=60' >/dev/null
get 10000 '/leak?mb=60' >/dev/null
for _ in 1 2 3 4 5 6; do
    kill -KILL "$(supervisor web)" || true
    get 10000 '/leak?mb=10' >/dev/null
    get 10000 '/leak?mb=10' >/dev/null
    sleep 1.5
done
wait_for 90 "an instance is replaced" logged . PMR_EVENT=roll-done
wait_for 60 "both are online" online web 2
load_goes_on 20
load_stop 0
equal "restarts by a crash" "$(journal PMR_EVENT=failed PMR_EVENT=oom-killed -o cat | wc -l)" 0
