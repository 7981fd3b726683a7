# deadline: 480
# Two instances that leak 10 MB a second each against a limit of 200 MB, under load: replaced again
# and again, never two at a time, and no request fails.
leaking web 10000 2 10 200 <<'S'
max_memory_restart = "200M"
memory_max = "600M"
S
systemctl start pmr@web
wait_for 60 "both are online" online web 2
GROUP=$(unit_group web) HIGHEST=0
equal "memory.max" "$(cat "$GROUP"/i-0.*/memory.max)" $((600 * 1024 * 1024))
load_start 10000
before=$(pids web)
step "three replacements"
rolls() { [ "$(journal "PMR_EVENT=$1" -o cat | wc -l)" -ge "$2" ]; }
deadline=$(($(milliseconds) + 200000))
until rolls roll-done 3; do
    [ "$(milliseconds)" -lt "$deadline" ] || fail "not replaced three times"
    for _ in 1 2 3 4 5 6 7 8; do
        watch_peaks
        sleep 0.1
    done
done
for pid in $before; do holds "an instance of before is gone" test ! -e "/proc/$pid"; done
load_goes_on 20
load_stop 0
longest_answer "two that leak 10 MB/s"
entry=$(journal PMR_EVENT=memory-above -o cat | head -n 1)
echo "$entry"
matches "the entry" "$entry" 'anon .*file .*kernel'
rolling=$(journal PMR_EVENT=roll-begun PMR_EVENT=roll-done -o cat)
echo "$rolling"
at_most "memory.peak" "$HIGHEST" $((600 * 1024 * 1024))
figure "highest memory.peak, of 600 allowed" "$((HIGHEST / 1024 / 1024))" MiB
decision_figures web
equal "restarts by a crash" "$(journal PMR_EVENT=failed PMR_EVENT=oom-killed -o cat | wc -l)" 0
equal "restarts by systemd" "$(show web NRestarts)" 0
