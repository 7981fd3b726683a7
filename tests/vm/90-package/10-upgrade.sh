# deadline: 480
# A newer package is installed under load, and the older one again: every keeper goes on as the other
# binary, no process of an app is replaced, no request fails.
[ -e /vm/pmr.deb ] || skip "pmr was not installed from a .deb here"
newer=/var/tmp/vm-test-newer
test_cleanup() {
    cmp -s /usr/bin/pmr "$newer/usr/bin/pmr" && dpkg -i /vm/pmr.deb
    rm -rf "$newer" "$newer.deb"
}
installed() { dpkg-query -W -f '${Version}' pmr; }
step "a newer package"
old=$(installed)
dpkg-deb -R /vm/pmr.deb "$newer"
sed -i 's/^Version: .*/Version: 99.0.0-1/' "$newer/DEBIAN/control"
# Another file, and the same program: the loader does not look at what follows its sections.
echo newer >>"$newer/usr/bin/pmr"
# It is installed once, so nothing is gained by a small one.
dpkg-deb -Znone -b "$newer" "$newer.deb" >/dev/null
demo web 10000 2 </dev/null
demo other 10001 1 </dev/null
systemctl start pmr@web pmr@other
wait_for 60 "both are online" online web 2
load_start 10000
before=$(pids web) other=$(pids other) main=$(keeper web)

# changed_to VERSION DEB BINARY
changed_to() {
    local name binary=$3
    step "dpkg -i, $(installed) to $1"
    holds "dpkg -i returns 0" dpkg -i "$2"
    equal "the version that is installed" "$(installed)" "$1"
    for name in web other; do
        holds "the keeper of $name runs it" cmp -s "/proc/$(keeper $name)/exe" "$binary"
        wait_for 60 "$name has a supervisor of it" \
            eval 'cmp -s "/proc/$(supervisor $name)/exe" "$binary"'
    done
    equal "the keeper" "$(keeper web)" "$main"
    equal "pids of web" "$(pids web)" "$before"
    equal "pids of other" "$(pids other)" "$other"
    equal "restarts by systemd" "$(show web NRestarts)" 0
    wait_for 60 "STATUS is right" status_text web '^2/2 online'
    load_goes_on 20
}
cp /usr/bin/pmr /var/tmp/vm-test-older
changed_to 99.0.0-1 "$newer.deb" "$newer/usr/bin/pmr"
differs "the binary" "$(sha256sum </usr/bin/pmr)" "$(sha256sum </var/tmp/vm-test-older)"
changed_to "$old" /vm/pmr.deb /var/tmp/vm-test-older
rm /var/tmp/vm-test-older
load_stop 0
longest_answer "two changes of the package"
step "an instance is still restarted"
kill -KILL "$(pmr pid web | head -n 1)"
wait_for 60 "a restart is counted" field_is web 0 restarts 1
