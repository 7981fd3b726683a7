# The apps of a user: systemctl --user, lingering, the controllers that are delegated there.
id vm-user >/dev/null 2>&1 || useradd --create-home --shell /bin/bash vm-user
test_cleanup() {
    loginctl disable-linger vm-user
    loginctl terminate-user vm-user 2>/dev/null || true
    rm -rf /home/vm-user/.config/pmr
}
loginctl enable-linger vm-user
uid=$(id -u vm-user)
wait_for 60 "the user's manager runs" systemctl is-active "user@$uid.service"
as_user() {
    runuser -u vm-user -- env XDG_RUNTIME_DIR="/run/user/$uid" HOME=/home/vm-user "$@"
}
wait_for 60 "it has a bus" test -S "/run/user/$uid/bus"
as_user mkdir -p /home/vm-user/.config/pmr
as_user tee /home/vm-user/.config/pmr/mine.toml >/dev/null <<'T'
command = ["/usr/bin/pmr", "demo-backend"]
listen = 10010
instances = 2
exec_mode = "cluster"
ready = "exec"
T
step "start"
holds "start returns 0" as_user systemctl --user start pmr@mine
holds "it serves" serves 10010
wait_for 60 "status shows it" eval '[ "$(as_user pmr status mine | grep -c " online ")" = 2 ]'
pid=$(as_user pmr pid mine | head -n 1)
matches "the group" "$(cat "/proc/$pid/cgroup")" 'user@[0-9]+.service/.*pmr@mine.service/i-0'
equal "whose it is" "$(stat -c %U "/proc/$pid")" vm-user
matches "level" "$(as_user pmr describe mine)" 'level +full'
step "a crash"
as_user kill -KILL "$pid"
wait_for 60 "it is restarted" eval '[ "$(as_user pmr pid mine | head -n 1)" != "$pid" ] && serves 10010'
step "stop"
holds "stop returns 0" as_user systemctl --user stop pmr@mine
if serves 10010 2>/dev/null; then fail "it still serves"; fi
