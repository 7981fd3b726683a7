# deadline: 480
# Two enabled apps start at boot; one that is not enabled does not, and one whose config cannot be
# used fails with 78, once.
if [ "$PHASE" = 1 ]; then
    demo web 10000 2 </dev/null
    demo other 10001 1 </dev/null
    demo third 10002 1 </dev/null
    demo broken 10003 1 <<<'instanses = 3'
    systemctl enable pmr@web pmr@other pmr@broken
    systemctl start pmr@web
    wait_for 60 "both are online" online web 2
    cat /proc/sys/kernel/random/boot_id >/var/lib/vm-boot
    reboot_now
fi
test_cleanup() { systemctl disable pmr@web pmr@other pmr@broken; }
differs "the boot" "$(cat /proc/sys/kernel/random/boot_id)" "$(cat /var/lib/vm-boot)"
wait_for 60 "web is active" is web ActiveState active
wait_for 60 "other is active" is other ActiveState active
holds "web serves" serves 10000
holds "other serves" serves 10001
equal "third" "$(show third ActiveState)" inactive
wait_for 60 "broken has failed" is broken ActiveState failed
equal "exit status of broken" "$(show broken ExecMainStatus)" 78
equal "restarts of broken" "$(show broken NRestarts)" 0
wait_for 60 "its place is in the journal" logged 'broken.toml:6:1' -b -u pmr@broken
equal "starts of broken" "$(journal -b -u pmr@broken -o cat | grep -c '^Starting pmr@broken')" 1
holds "both serve on" eval 'serves 10000 && serves 10001'
wait_for 60 "web was stopped in order" logged 'web instance 0 .* ends on SIGTERM' -b -1 -u pmr@web
holds "it was no failure" eval '! logged "Failed with result" -b -1 -u pmr@web'
