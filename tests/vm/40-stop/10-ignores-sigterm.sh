# `systemctl stop` of an app that ignores SIGTERM and left a daemon: killed after kill_timeout, all.
demo web 10000 1 <<<'kill_timeout = "2s"'
systemctl start pmr@web
group=$(unit_group web)
get 10000 /stubborn
get 10000 /daemon
holds "the daemon is in the group" eval '[ "$(processes_in "$group" | wc -w)" -ge 4 ]'
step "stop"
before=$(milliseconds)
holds "stop returns 0" systemctl stop pmr@web
took=$(($(milliseconds) - before))
[ "$took" -ge 2000 ] || fail "it was killed after $took ms, before its kill_timeout"
# A generous end: it is the watch that the unit's own 90 s did not have to end it.
at_most "milliseconds of the stop" "$took" 60000
equal "result" "$(show web Result)" success
holds "the group is gone" test ! -e "$group"
