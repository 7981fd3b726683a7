# deadline: 240
# All instances over the limit at the same time, under load: one at a time is replaced, the new one
# before the old one goes; the others wait for their turn, and no request fails.
leaking web 10000 3 40 60 /run/vm-test-leak <<'S'
max_memory_restart = "60M"
memory_max = "200M"
S
systemctl start pmr@web
wait_for 60 "all are online" online web 3
load_start 10000
before=$(pids web)
step "all leak"
touch /run/vm-test-leak
few=3 looks=0
deadline=$(($(milliseconds) + 150000))
until [ "$(journal PMR_EVENT=roll-done -o cat | wc -l)" -ge 3 ]; do
    [ "$(milliseconds)" -lt "$deadline" ] || fail "not replaced three times"
    status=$(pmr status web) || continue
    count=$(grep -cE '^web +[0-9]+ .* online ' <<<"$status" || true)
    [ "$count" -ge "$few" ] || few=$count
    looks=$((looks + 1))
done
load_goes_on 20
load_stop 0
longest_answer "all over their limit"
figure "slots online at least, of 3" "$few"
equal "slots that were online at each of $looks looks, at least" "$few" 3
for pid in $before; do holds "an instance of before is gone" test ! -e "/proc/$pid"; done
wait_for 60 "all are online" online web 3
equal "instances over their limit" "$(decisions | wc -l)" 3
# One has its turn at once, and the others are told of while they wait; who leaks slowly may come to
# its limit when it can have its turn.
waited=$(journal PMR_EVENT=memory-waits -o cat | wc -l)
at_most "those that waited" "$waited" 2
[ "$waited" -ge 1 ] || fail "nobody has waited"
equal "one replacement after the other" \
    "$(journal PMR_EVENT=memory-above PMR_EVENT=roll-done -o cat | grep -oE 'replacing it|done' | xargs)" \
    "replacing it done replacing it done replacing it done"
equal "restarts by a crash" "$(journal PMR_EVENT=failed PMR_EVENT=oom-killed -o cat | wc -l)" 0
