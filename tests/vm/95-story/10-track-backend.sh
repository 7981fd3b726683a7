# deadline: 480
# What somebody who runs PM2 today does: the ecosystem file imported, a Node backend with two
# instances, a request that crashes it, a reload, a stop.
# A node that was never read from the disk takes longer to start than a config may take.
holds "node starts" node -e 0
step "import"
holds "import returns 0" pmr import /vm/fixtures/track-backend/ecosystem.config.js -o /etc/pmr --force
# And an emulated one longer than an app usually may.
sed -i '1i listen_timeout = "120s"' /etc/pmr/track-backend.toml
holds "start returns 0" systemctl start pmr@track-backend
serves_project() { get 10000 /api/projects/1 >/dev/null; }
wait_for 180 "both are online" online track-backend 2
wait_for 60 "it serves" serves_project
equal "memory.max of an instance" "$(cat "$(unit_group track-backend)"/i-0.*/memory.max)" \
    $((1280 * 1024 * 1024))
step "the missing null check"
if get 10000 /api/projects/55 2>/dev/null; then fail "project 55 is answered"; fi
wait_for 60 "a restart is counted" restarts_are track-backend 1
holds "the other one serves" serves_project
wait_for 180 "both are online" online track-backend 2
wait_for 60 "its TypeError is in the journal" logged 'TypeError' -u pmr@track-backend -p err
step "reload"
before=$(pids track-backend)
holds "reload returns 0" systemctl reload pmr@track-backend
wait_for 180 "both are online" online track-backend 2
for pid in $before; do holds "an instance of before is gone" test ! -e "/proc/$pid"; done
step "stop"
holds "stop returns 0" systemctl stop pmr@track-backend
equal "result" "$(show track-backend Result)" success
