# deadline: 480
# Limits changed by a reload and by `pmr set`: the kernel has them, and no process was replaced for
# it. A first max_memory_restart has its trip-wire at once, and a leak is found by it.
demo web 10000 2 <<'T'
memory_max = "100M"
tasks_max = 100
T
systemctl start pmr@web
wait_for 60 "both are online" online web 2
before=$(pids web)
limit() { cat "$(unit_group web)"/i-"$1".*/"$2"; }
limit_is() { [ "$(limit "$1" "$2")" = "$3" ]; }
equal "memory.max" "$(limit 0 memory.max)" $((100 * 1024 * 1024))
equal "pids.max" "$(limit 1 pids.max)" 100
equal "memory.high" "$(limit 0 memory.high)" max
step "reload"
sed -i 's/^memory_max.*/memory_max = "200M"/; s/^tasks_max.*/tasks_max = 60/' /etc/pmr/web.toml
holds "reload returns 0" systemctl reload pmr@web
equal "memory.max" "$(limit 0 memory.max)" $((200 * 1024 * 1024))
equal "pids.max" "$(limit 1 pids.max)" 60
equal "pids" "$(pids web)" "$before"

# first_limit: both have a wire at 60 MB, and no process was replaced for it.
first_limit() {
    for slot in 0 1; do
        wait_for 60 "slot $slot has a wire" limit_is "$slot" memory.high $((60 * 1024 * 1024))
    done
    equal "pids" "$(pids web)" "$before"
}
step "a first max_memory_restart, by a reload"
cp /etc/pmr/web.toml /run/vm-test.toml
sed -i '1i max_memory_restart = "60M"' /etc/pmr/web.toml
holds "reload returns 0" systemctl reload pmr@web
first_limit
step "none any more"
cp /run/vm-test.toml /etc/pmr/web.toml
holds "reload returns 0" systemctl reload pmr@web
wait_for 60 "there is no wire" eval 'limit_is 0 memory.high max && limit_is 1 memory.high max'
equal "pids" "$(pids web)" "$before"
step "a first one by pmr set"
holds "pmr set returns 0" pmr set web max_memory_restart=60M
first_limit
if logged . PMR_EVENT=memory-above; then fail "somebody leaks already"; fi
get 10000 '/leak?mb=80' >/dev/null
wait_for 60 "the leak is found" logged 'over max_memory_restart 60M: replacing it' PMR_EVENT=memory-above
wait_for 60 "it is replaced" logged . PMR_EVENT=roll-done
differs "the pids" "$(pids web)" "$before"
