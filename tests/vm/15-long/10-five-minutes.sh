# deadline: 900
# What takes minutes, side by side and with the unit as it is shipped (TimeoutStartSec=90,
# TimeoutStopSec=90, WatchdogSec=30): every supervisor of one app is stopped (SIGSTOP) for five
# minutes; ten instances take 105 s each to boot, and 120 s to stop; a reload takes 120 s.
# What waits is a sleeping shell, which costs nothing.
cat >/run/vm-test-slow <<'S'
# slow BOOT DRAIN: seconds each.
trap 'kill "$idle" 2>/dev/null; sleep "$2"; echo drained; exit 0' TERM
sleep "$1"
systemd-notify --ready
sleep infinity &
idle=$!
wait "$idle"
S
app slow <<'S'
command = ["/bin/bash", "/run/vm-test-slow", "105", "120"]
instances = 10
ready = "notify"
listen_timeout = "300s"
kill_timeout = "300s"
S
app roll <<'S'
command = ["/bin/bash", "/run/vm-test-slow", "0", "0"]
instances = 1
ready = "notify"
listen_timeout = "300s"
stable_for = "100ms"
S
# timed FILE COMMAND...: its status and how long it took, in FILE.
timed() {
    local file=$1 began status=0
    shift
    began=$(milliseconds)
    "$@" || status=$?
    echo "$status $((($(milliseconds) - began) / 1000))" >"$file"
}

# took_at_least FILE SECONDS WHAT: the command that was timed has returned 0, and not too early.
took_at_least() {
    local status seconds
    read -r status seconds <"$1"
    equal "status of $3" "$status" 0
    [ "$seconds" -ge "$2" ] || fail "$3 took only $seconds s"
    figure "$3 that needs $2 s" "$seconds" s
}

slow_app() {
    timed /run/vm-test-start systemctl start pmr@slow
    pids slow >/run/vm-test-slow-pids
    pmr status slow >/run/vm-test-slow-status
    timed /run/vm-test-stop systemctl stop pmr@slow
}

slow_reload() {
    timed /run/vm-test-reload systemctl reload pmr@roll
}

demo web 10000 2 </dev/null
systemctl start pmr@web
systemctl start pmr@roll
wait_for 60 "web is online" online web 2
wait_for 60 "roll is online" online roll 1
for property in TimeoutStartUSec=1min\ 30s TimeoutStopUSec=1min\ 30s WatchdogUSec=30s; do
    equal "${property%=*}" "$(show web "${property%=*}")" "${property#*=}"
done
before=$(pids web) main=$(keeper web) rolled=$(pids roll)
load_start 10000
step "every supervisor of web is stopped from now on"
python3 /vm/lib/hold.py "$main" /run/vm-test-held &
holder=$!
test_cleanup() { kill "$holder" 2>/dev/null || true; }
wait_for 60 "the first is" test -s /run/vm-test-held
first=$(head -n 1 /run/vm-test-held)
began=$(milliseconds)
slow_app &
sed -i 's/"0", "0"/"120", "0"/' /etc/pmr/roll.toml
slow_reload &
wait_for 60 "the first is replaced" eval '[ "$(wc -l </run/vm-test-held)" -ge 2 ]'
holds "the first is gone" test ! -e "/proc/$first"
load_goes_on 30
load_stop 0
longest_answer "supervisor stopped"

step "five minutes"
all_is_well() {
    equal "active state" "$(show web ActiveState)" active
    equal "the keeper" "$(keeper web)" "$main"
    holds "web serves" serves 10000
    [ "$(milliseconds)" -ge "$((began + 300000))" ]
}
until all_is_well; do sleep 5; done
load_start 10000
load_goes_on 30
held=$(wc -l </run/vm-test-held)
figure "supervisors stopped in 300 s" "$held"
[ "$held" -ge 6 ] || fail "the heartbeat has replaced only $held"
for pid in $before; do holds "an instance of before lives" test -d "/proc/$pid"; done

step "let go"
kill "$holder"
wait "$holder" || true
kill -CONT "$(tail -n 1 /run/vm-test-held)" 2>/dev/null || true
wait_for 60 "a supervisor answers" online web 2
equal "pids of the instances" "$(pids web)" "$before"
equal "the keeper" "$(keeper web)" "$main"
equal "restarts by systemd" "$(show web NRestarts)" 0
wait_for 60 "STATUS is right again" status_text web '^2/2 online'
load_goes_on 20
load_stop 0
longest_answer "supervisor let go"
victim=$(pmr pid web | head -n 1)
kill -KILL "$victim"
wait_for 60 "a crash is still noticed" eval '[ "$(pids web | wc -w)" = 2 ] && [ ! -e "/proc/$victim" ]'
wait_for 60 "both are online" online web 2

step "ten slow boots and stops"
wait_for 120 "they are over" test -s /run/vm-test-stop
took_at_least /run/vm-test-start 105 "a start of ten"
equal "instances that were online then" "$(grep -c ' online ' /run/vm-test-slow-status)" 10
took_at_least /run/vm-test-stop 120 "a stop of ten"
equal "result" "$(show slow Result)" success
equal "active state" "$(show slow ActiveState)" inactive
# Each said so at the end of its own stop, so none was killed.
wait_for 60 "all ten have drained" logged_times 10 '^drained$' -u pmr@slow

step "a slow reload"
wait_for 120 "it is over" test -s /run/vm-test-reload
took_at_least /run/vm-test-reload 120 "a reload"
differs "the pid" "$(pids roll)" "$rolled"
equal "active state" "$(show roll ActiveState)" active
equal "restarts by systemd" "$(show roll NRestarts)" 0
