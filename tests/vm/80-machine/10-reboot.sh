# deadline: 240
# Two enabled apps start at boot; one that is not enabled does not.
if [ "$PHASE" = 1 ]; then
    demo web 10000 2 </dev/null
    demo other 10001 1 </dev/null
    demo third 10002 1 </dev/null
    systemctl enable pmr@web pmr@other
    systemctl start pmr@web
    wait_for 10 "both are online" online web 2
    cat /proc/sys/kernel/random/boot_id >/var/lib/vm-boot
    reboot_now
fi
test_cleanup() { systemctl disable pmr@web pmr@other; }
differs "the boot" "$(cat /proc/sys/kernel/random/boot_id)" "$(cat /var/lib/vm-boot)"
wait_for 60 "web is active" is web ActiveState active
wait_for 60 "other is active" is other ActiveState active
holds "web serves" serves 10000
holds "other serves" serves 10001
equal "third" "$(show third ActiveState)" inactive
holds "web was stopped in order" logged 'web instance 0 .* ends on SIGTERM' -b -1 -u pmr@web
holds "it was no failure" eval '! logged "Failed with result" -b -1 -u pmr@web'
