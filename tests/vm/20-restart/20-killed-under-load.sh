# kill -9 of an instance: what is in flight on it fails, no more, and nothing hangs.
demo web 10000 2 </dev/null
systemctl start pmr@web
load_start 10000 4
for _ in 1 2 3; do
    wait_for 60 "both are online" online web 2
    victim=$(pmr pid web | head -n 1)
    kill -KILL "$victim"
    wait_for 60 "it is gone" test ! -e "/proc/$victim"
    load_goes_on 30
done
wait_for 60 "both are online" online web 2
# Four clients: each has at most one request on the victim.
load_stop 12
longest_answer "instances killed"
