# deadline: 480
# The .rpm on a running machine: its scripts start nothing, let an app go on under a new binary, and
# stop and disable it at the end. rpm knows nothing of Debian's packages: no dependency is looked at.
[ -e /vm/pmr.rpm ] || skip "no .rpm was built"
[ -e /vm/pmr.deb ] || skip "pmr was not installed from a .deb here"
test_cleanup() {
    ! rpm -q pmr >/dev/null 2>&1 || rpm -e --nodeps pmr
    dpkg -i /vm/pmr.deb >/dev/null
}
demo web 10000 2 </dev/null
holds "the .deb goes" dpkg -r pmr
step "rpm -i"
holds "rpm -i returns 0" rpm -i --nodeps /vm/pmr.rpm
equal "nothing was started" "$(show web ActiveState)" inactive
holds "group pmr is there" getent group pmr
holds "enable --now returns 0" systemctl enable --now pmr@web
wait_for 60 "both are online" online web 2
load_start 10000
before=$(pids web) main=$(keeper web) old=$(supervisor web)
step "rpm -U"
holds "rpm -U returns 0" rpm -U --force --nodeps /vm/pmr.rpm
wait_for 60 "there is another supervisor" another_supervisor web "$old"
matches_not "the binary" "$(readlink "/proc/$(keeper web)/exe")" deleted
equal "the keeper" "$(keeper web)" "$main"
equal "pids of web" "$(pids web)" "$before"
equal "restarts by systemd" "$(show web NRestarts)" 0
load_goes_on 20
load_stop 0
longest_answer "rpm -U"
group=$(unit_group web)
step "rpm -e"
holds "rpm -e returns 0" rpm -e --nodeps pmr
holds "the group is gone" test ! -e "$group"
holds "the binary is gone" test ! -e /usr/bin/pmr
holds "the config is there" test -e /etc/pmr/web.toml
holds "it is not enabled" test ! -L /etc/systemd/system/multi-user.target.wants/pmr@web.service
