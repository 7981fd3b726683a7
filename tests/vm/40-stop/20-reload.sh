# `systemctl reload`: all instances are replaced under load without a failed request; one that does
# not come up fails the reload, and what served goes on.
demo web 10000 2 <<<'stable_for = "500ms"'
systemctl start pmr@web
wait_for 60 "both are online" online web 2
load_start 10000
before=$(pids web)
step "a good reload"
holds "reload returns 0" systemctl reload pmr@web
equal "active state" "$(show web ActiveState)" active
for pid in $before; do holds "an instance of before is gone" test ! -e "/proc/$pid"; done
wait_for 60 "both are online" online web 2
before=$(pids web)
step "a config with a mistake"
cp /etc/pmr/web.toml /run/vm-test.toml
echo 'instanses = 3' >>/etc/pmr/web.toml
if systemctl reload pmr@web; then fail "reload with a bad config returns 0"; fi
equal "active state" "$(show web ActiveState)" active
equal "pids" "$(pids web)" "$before"
step "a version that does not come up"
sed 's,^command = .*,command = ["/bin/false"],' /run/vm-test.toml >/etc/pmr/web.toml
if systemctl reload pmr@web; then fail "reload to a broken version returns 0"; fi
equal "active state" "$(show web ActiveState)" active
wait_for 60 "both are online" online web 2
equal "pids" "$(pids web)" "$before"
load_goes_on 20
load_stop 0
longest_answer "reloads"
