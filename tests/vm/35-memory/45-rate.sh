# deadline: 480
# Two instances that leak 100 MB a second each, as soon as they run: they end at memory_max at the
# latest, only what is in flight on one that the kernel ends fails, and when replacing does not help
# the guard says so, as an error. Under emulation they may be slower: the figures have the rate.
leaking web 10000 2 100 200 <<'S'
max_memory_restart = "200M"
memory_max = "260M"
min_uptime = "300s"
max_restarts = 1000
exp_backoff_restart_delay = 0
S
systemctl start pmr@web
wait_for 60 "it serves" serves 10000
GROUP=$(unit_group web) HIGHEST=0
clients=3
load_start 10000 $clients
kills() { journal PMR_EVENT=failed PMR_EVENT=oom-killed -o cat | grep -ciE 'OOM|out of memory' || true; }
step "until the guard has spoken, and the kernel has ended two after that"
deadline=$(($(milliseconds) + 400000))
guard() { logged . PMR_EVENT=memory-limit-too-low -p err; }
until guard && [ "$(kills)" -ge 2 ]; do
    [ "$(milliseconds)" -lt "$deadline" ] || fail "guard: $(guard && echo spoke), kills: $(kills)"
    for _ in 1 2 3 4 5 6 7 8 9 10; do
        watch_peaks
        sleep 0.05
    done
done
load_goes_on 20
load_stop 1000000
longest_answer "two that leak 100 MB/s"
count=$(kills)
equal "active state" "$(show web ActiveState)" active
equal "restarts by systemd" "$(show web NRestarts)" 0
systemctl stop pmr@web
at_most "failed requests of $clients clients after $count kills" "$(load_count failed)" $((clients * count))
figure "OOM kills" "$count"
figure "failed requests, of $((clients * count)) allowed" "$(load_count failed)"
[ "$HIGHEST" -gt $((200 * 1024 * 1024)) ] || fail "no instance was seen above its limit"
at_most "memory.peak" "$HIGHEST" $((260 * 1024 * 1024))
figure "highest memory.peak, of 260 allowed" "$((HIGHEST / 1024 / 1024))" MiB
decision_figures web
journal PMR_EVENT=memory-limit-too-low -o cat
matches_not "failures" "$(journal PMR_EVENT=failed -o cat | grep -viE 'OOM|out of memory')" .
