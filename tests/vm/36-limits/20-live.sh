# Limits changed by a reload: the kernel has them, and no process was replaced for it.
demo web 10000 2 <<'T'
memory_max = "100M"
tasks_max = 100
T
systemctl start pmr@web
wait_for 10 "both are online" online web 2
before=$(pids web)
limit() { cat "$(unit_group web)"/i-"$1".*/"$2"; }
equal "memory.max" "$(limit 0 memory.max)" $((100 * 1024 * 1024))
equal "pids.max" "$(limit 1 pids.max)" 100
step "reload"
sed -i 's/^memory_max.*/memory_max = "200M"/; s/^tasks_max.*/tasks_max = 60/' /etc/pmr/web.toml
holds "reload returns 0" systemctl reload pmr@web
equal "memory.max" "$(limit 0 memory.max)" $((200 * 1024 * 1024))
equal "pids.max" "$(limit 1 pids.max)" 60
equal "pids" "$(pids web)" "$before"
