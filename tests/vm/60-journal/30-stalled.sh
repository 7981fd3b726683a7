# journald that takes nothing any more (SIGSTOP): apps serve and write on, crashes are restarted, the
# supervisor and the keeper wait for nobody.
demo web 10000 2 </dev/null
systemctl start pmr@web
wait_for 60 "both are online" online web 2
load_start 10000
main=$(keeper web) old=$(supervisor web)
journald=$(systemctl show -P MainPID systemd-journald)
step "SIGSTOP"
kill -STOP "$journald"
test_cleanup() { kill -CONT "$journald" 2>/dev/null || true; }
# 278 lines fill a stream of the usual size; this is twenty times that.
get 10000 '/log?lines=3000' >/dev/null
victim=$(pmr pid web | head -n 1)
kill -KILL "$victim"
wait_for 60 "the crash is restarted" restarts_are web 1
wait_for 60 "both are online" online web 2
load_goes_on 20
equal "the supervisor" "$(supervisor web)" "$old"
equal "the keeper" "$(keeper web)" "$main"
step "SIGCONT"
kill -CONT "$journald"
wait_for 60 "the lines have come" logged 'line 3000 of 3000 to stdout' -u pmr@web
# The victim's request may be in flight, of one client each.
load_stop 2
longest_answer "journald stopped"
