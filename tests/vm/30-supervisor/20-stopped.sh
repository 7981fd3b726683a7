# deadline: 240
# A supervisor that is stopped (SIGSTOP) is replaced by the heartbeat; the watchdog of systemd is fed
# all the time, and no app is touched.
mkdir -p /run/systemd/system/pmr@web.service.d
# The heartbeat's patience is WatchdogSec/4; a test needs not wait for the usual one.
printf '[Service]\nWatchdogSec=20\n' >/run/systemd/system/pmr@web.service.d/watchdog.conf
systemctl daemon-reload
demo web 10000 2 </dev/null
systemctl start pmr@web
load_start 10000
before=$(pids web) main=$(keeper web) old=$(supervisor web)
step "SIGSTOP"
began=$(milliseconds)
kill -STOP "$old"
wait_for 60 "there is another supervisor" another_supervisor web "$old"
wait_for 60 "it answers" online web 2
figure "another supervisor answers, WatchdogSec=20" "$(($(milliseconds) - began))" ms
holds "the old one is gone" test ! -e "/proc/$old"
step "longer than the watchdog"
wait_for 60 "WatchdogSec has passed" eval '[ "$(milliseconds)" -gt "$((began + 21000))" ]'
equal "pids of the instances" "$(pids web)" "$before"
equal "the keeper" "$(keeper web)" "$main"
equal "restarts by systemd" "$(show web NRestarts)" 0
load_stop 0
longest_answer "supervisor stopped"
