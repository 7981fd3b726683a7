# deadline: 240
# The package is installed anew under load: every keeper goes on as the new binary, no process of an
# app is replaced, no request fails.
[ -e /vm/pmr.deb ] || skip "pmr was not installed from a .deb here"
demo web 10000 2 </dev/null
demo other 10001 1 </dev/null
systemctl start pmr@web pmr@other
wait_for 20 "both are online" online web 2
load_start 10000
before=$(pids web) other=$(pids other) main=$(keeper web)
step "dpkg -i"
holds "dpkg -i returns 0" dpkg -i /vm/pmr.deb
for name in web other; do
    matches_not "the binary of $name" "$(readlink "/proc/$(keeper $name)/exe")" deleted
    wait_for 30 "$name has a supervisor of it" eval '! readlink "/proc/$(supervisor $name)/exe" | grep -q deleted'
done
equal "the keeper" "$(keeper web)" "$main"
equal "pids of web" "$(pids web)" "$before"
equal "pids of other" "$(pids other)" "$other"
equal "restarts by systemd" "$(show web NRestarts)" 0
wait_for 20 "STATUS is right" status_text web '^2/2 online'
load_goes_on 20
load_stop 0
step "an instance is still restarted"
kill -KILL "$(pmr pid web | head -n 1)"
wait_for 20 "a restart is counted" field_is web 0 restarts 1
