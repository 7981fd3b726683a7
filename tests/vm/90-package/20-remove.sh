# deadline: 480
# The package removed: apps are stopped, configs stay. Purged, installed again, and started.
[ -e /vm/pmr.deb ] || skip "pmr was not installed from a .deb here"
test_cleanup() { [ -e /usr/bin/pmr ] || dpkg -i /vm/pmr.deb; }
demo web 10000 2 </dev/null
systemctl start pmr@web
wait_for 60 "both are online" online web 2
group=$(unit_group web)
step "dpkg -r"
holds "dpkg -r returns 0" dpkg -r pmr
holds "the group is gone" test ! -e "$group"
holds "the binary is gone" test ! -e /usr/bin/pmr
holds "the config is there" test -e /etc/pmr/web.toml
wait_for 60 "each was asked to end" logged 'web instance 0 .* ends on SIGTERM'
step "dpkg --purge"
holds "dpkg --purge returns 0" dpkg --purge pmr
step "dpkg -i"
holds "dpkg -i returns 0" dpkg -i /vm/pmr.deb
equal "nothing was started" "$(show web ActiveState)" inactive
holds "start returns 0" systemctl start pmr@web
holds "it serves" serves 10000
