# deadline: 480
# One instance writes as fast as journald takes it, 100 MB or half a minute long: lines of another
# app still arrive, and the supervisor has no work with it, since no line passes through it.
app flood <<'S'
command = ["/bin/sh", "-c", "timeout 30 yes \"$(printf '%020000d' 7)\" | head -c 100000000; touch /run/vm-test-flooded; exec sleep infinity"]
ready = "exec"
S
demo web 10000 2 </dev/null
systemctl start pmr@web
wait_for 60 "both are online" online web 2
load_start 10000
# CPU time in ms: of a process, and of a group.
process_ms() { echo $(($(cut -d' ' -f1 "/proc/$1/schedstat") / 1000000)); }
group_ms() { echo $(($(sed -n 's/^usage_usec //p' "$1/cpu.stat") / 1000)); }
step "flood"
began=$(milliseconds)
systemctl start pmr@flood
supervisor=$(supervisor flood) keeper=$(keeper flood)
group=$(echo "$(unit_group flood)"/i-0.*)
own=$(process_ms "$supervisor") kept=$(process_ms "$keeper") spent=$(group_ms "$group")
wait_for 60 "lines of it come" logged '^0+7$' -t flood:0
asked=$(milliseconds)
get 10000 '/log?lines=1' >/dev/null
wait_for 60 "a line of another app comes" logged 'line 1 of 1 to stdout' -u pmr@web
figure "a line of another app comes after" "$(($(milliseconds) - asked))" ms
wait_for 60 "status is answered" online flood 1
# How much of the flood was over by then, is the machine's: so it is asked for lines until the end.
until [ -e /run/vm-test-flooded ]; do get 10000 '/log?lines=1' >/dev/null; done
took=$(($(milliseconds) - began))
own=$(($(process_ms "$supervisor") - own)) kept=$(($(process_ms "$keeper") - kept))
spent=$(($(group_ms "$group") - spent))
written=$(journal -t flood:0 -o cat | wc -c)
figure "flood" "$(awk "BEGIN { printf \"%.1f\", $written / 1000 / $took }")" MB/s
figure "CPU time of the flooding instance" "$spent" ms
figure "CPU time of its supervisor" "$own" ms
figure "CPU time of its keeper" "$kept" ms
at_most "CPU time of the supervisor in ms" "$own" $((spent / 3))
at_most "CPU time of the keeper in ms" "$kept" $((spent / 3))
between=$(journal -t flood:0 -t web:0 -t web:1 -o cat | awk '
    length($0) > 10000 { between += waiting; waiting = 0; flooding = 1 }
    /line 1 of 1 to stdout/ { waiting += flooding }
    END { print between + 0 }')
figure "lines of another app among those of the flood" "$between"
[ "$between" -ge 1 ] || fail "no line of another app has come before the end of the flood"
load_goes_on 10
load_stop 0
longest_answer "journal flooded"
equal "restarts of web" "$(restarts web)" 0
equal "the supervisor" "$(supervisor flood)" "$supervisor"
