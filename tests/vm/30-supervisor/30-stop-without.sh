# A stop while every supervisor dies at once: the keeper carries it out.
demo web 10000 2 </dev/null
systemctl start pmr@web
wait_for 60 "both are online" online web 2
group=$(unit_group web)
step "supervisors die"
(
    while [ ! -e /run/vm-test-end ]; do
        pkill -KILL -f '^pmr supervise' || true
        sleep 0.05
    done
) &
killer=$!
test_cleanup() { touch /run/vm-test-end; kill "$killer" 2>/dev/null || true; }
wait_for 60 "the keeper says so" status_text web 'supervisor'
holds "it serves all the same" serves 10000
step "stop"
holds "stop returns 0" timeout 120 systemctl stop pmr@web
touch /run/vm-test-end
equal "active state" "$(show web ActiveState)" inactive
equal "result" "$(show web Result)" success
holds "the group is gone" test ! -e "$group"
wait_for 60 "both were asked to end" logged 'instance 0 .* ends on SIGTERM' -u pmr@web
wait_for 60 "both were asked to end" logged 'instance 1 .* ends on SIGTERM' -u pmr@web
