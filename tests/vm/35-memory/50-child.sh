# deadline: 240
# What a child holds counts, and the time from the crossing to the decision stands in the journal.
cat >/run/vm-test-leak.py <<'P'
import os, sys, time
kept, told = [], False
if os.fork():
    os.wait()
while True:
    kept.append(b"x" * (1 << 20))
    anon = len(kept)
    if not told and anon >= 100:
        told = True
        print("crossed", int(time.clock_gettime(time.CLOCK_MONOTONIC) * 1000), flush=True)
    time.sleep(0.1)
P
app child <<'T'
command = ["/usr/bin/python3", "/run/vm-test-leak.py"]
max_memory_restart = "100M"
memory_max = "400M"
ready = "exec"
T
systemctl start pmr@child
group=$(echo "$(unit_group child)"/i-0.*)
equal "memory.high" "$(cat "$group/memory.high")" $((100 * 1024 * 1024))
wakes() { awk '/ctxt/ { sum += $2 } END { print sum }' "/proc/$(supervisor child)/status"; }
before=$(wakes)
sleep 5
figure "context switches of the supervisor in 5 s" "$(($(wakes) - before))"
wait_for 150 "it is found" logged . PMR_EVENT=memory-above
crossed=$(journal -t child:0 -o cat | sed -n 's/^crossed //p' | head -n 1)
found=$(journal PMR_EVENT=memory-above -o json | head -n 1 | sed -n 's/.*"__MONOTONIC_TIMESTAMP":"\([0-9]*\).*/\1/p')
source=$(journal PMR_EVENT=memory-above -o json | head -n 1 | sed -n 's/.*"_SOURCE_MONOTONIC_TIMESTAMP":"\([0-9]*\).*/\1/p')
echo "crossed at $crossed ms, found at $((found / 1000)) ms ($source)"
journal PMR_EVENT=memory-above -o cat
wait_for 60 "it is replaced" eval '[ "$(pids child)" != "" ] && [ ! -d "$group" ]'
journal -u pmr@child -o short-monotonic | tail -n 30
equal "restarts by a crash" "$(journal PMR_EVENT=failed PMR_EVENT=oom-killed -o cat | wc -l)" 0
