# Without a bus: apps serve and are restarted, and the command line does what the sockets allow.
demo web 10000 2 </dev/null
systemctl start pmr@web
wait_for 60 "both are online" online web 2
load_start 10000
before=$(pids web)
test_cleanup() { systemctl start dbus.socket dbus.service; }
step "the bus is stopped"
systemctl stop dbus.socket dbus.service
wait_for 60 "it is gone" eval '! systemctl is-active dbus.service'
holds "status works" online web 2
holds "restart works" pmr restart web
differs "the pids" "$(pids web)" "$before"
kill -KILL "$(pmr pid web | head -n 1)"
wait_for 60 "the crash is restarted" eval '[ "$(restarts web)" -ge 1 ]'
load_goes_on 10
if said=$(pmr enable web 2>&1); then fail "enable without a bus returns 0"; fi
matches "what is said" "$said" '[Bb]us'
step "the bus is back"
systemctl start dbus.socket dbus.service
holds "stop works" pmr stop web
load_stop_with 1000000 .
