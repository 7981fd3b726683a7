# What a person asks journalctl for: the unit, one instance, one kind of event, an explanation.
demo web 10000 2 </dev/null
systemctl start pmr@web
wait_for 60 "both are online" online web 2
get 10000 '/log?lines=3'
slot=0
wait_for 60 "the lines have come" logged 'line 3 of 3 to stderr' -u pmr@web
logged 'line 3 of 3' -t web:0 || slot=1
step "one instance"
wait_for 60 "-t shows the lines of the instance" logged 'line 3 of 3 to stdout' -t "web:$slot"
if logged 'line' -t "web:$((1 - slot))"; then fail "the other slot has them too"; fi
wait_for 60 "stderr is an error" logged 'line 3 of 3 to stderr' -t "web:$slot" -p err
if logged 'line 3 of 3 to stdout' -t "web:$slot" -p err; then fail "stdout is an error"; fi
pid=$(pmr pid web | sed -n "$((slot + 1))p")
wait_for 60 "the lines are of the instance's own process" logged 'line 3 of 3' "_PID=$pid"
step "events"
wait_for 60 "two entries of PMR_EVENT=online" logged_times 2 . PMR_EVENT=online
wait_for 60 "they are the app's" logged 'online' PMR_EVENT=online PMR_APP=web PMR_INSTANCE=1
wait_for 60 "they are the unit's" logged 'web:1 online' -u pmr@web PMR_EVENT=online
generation=$(journal PMR_EVENT=online PMR_INSTANCE=1 -o json | grep -oE '"PMR_GENERATION" ?: ?"[0-9]+"')
matches "the generation" "$generation" '"[0-9]+"$'
step "explained"
journalctl --list-catalog >/run/vm-test-catalog 2>/dev/null
holds "the catalog is installed" grep -q 'An instance of' /run/vm-test-catalog
matches "the explanation" "$(journal -x PMR_EVENT=online)" "An instance of web is online"
get 10000 /crash 2>/dev/null || true
wait_for 60 "the crash is an event" logged 'exit' -u pmr@web -p warning
