# deadline: 480
# Who may do what, as systemd, polkit and pmr's own groups have it. A command that is denied says so
# and ends with 5; it never waits for a password where nobody can be asked.
for name in vm-nobody vm-viewer vm-admin; do
    id "$name" >/dev/null 2>&1 || useradd --system "$name"
done
usermod --append --groups pmr vm-viewer
usermod --append --groups pmr-admin vm-admin
test_cleanup() { systemctl unmask --runtime polkit; }
demo web 10000 2 </dev/null
demo other 10001 1 </dev/null
systemctl start pmr@web
wait_for 60 "both are online" online web 2
before=$(pids web)

# as USER ARGUMENTS: `pmr ARGUMENTS`, in $told and $status. 124: it hung.
as() {
    local user=$1
    shift
    status=0
    told=$(runuser -u "$user" -- timeout 90 pmr "$@" 2>&1) || status=$?
    echo "$user, pmr $*: $status, $told"
}

# denied USER PATTERN ARGUMENTS
denied() {
    local user=$1 pattern=$2
    shift 2
    as "$user" "$@"
    equal "status of pmr $* by $user" "$status" 5
    matches "what is said" "$told" "$pattern"
}

by_systemd='systemd lets only root do this, or whom polkit allows it'
by_pmr='only root, the app.s user and group .pmr-admin. may do this'
nobody_may() {
    denied vm-nobody "cannot start .other.: $by_systemd" start other
    denied vm-nobody "cannot stop .web.: $by_systemd" stop web
    denied vm-nobody "$by_pmr" restart web
    denied vm-nobody "$by_pmr" reload web
    denied vm-nobody "cannot enable .other.: $by_systemd" enable other
    denied vm-viewer "$by_systemd" stop web
}
step "somebody without rights"
nobody_may
denied vm-nobody 'only root, the app.s user and the groups' describe web
step "group pmr may look, and no more"
as vm-viewer status web
equal "status of pmr status" "$status" 0
equal "slots that are shown" "$(grep -cE '^web +[0-9]+ .* online ' <<<"$told")" 2
denied vm-viewer "$by_pmr" restart web
step "polkit does not run, and cannot be started"
systemctl mask --runtime --now polkit
nobody_may
systemctl unmask --runtime polkit
equal "pids" "$(pids web)" "$before"
equal "other" "$(show other ActiveState)" inactive
step "group pmr-admin may change what runs, over the socket"
load_start 10000
as vm-admin restart web
equal "status of pmr restart" "$status" 0
wait_for 60 "both are online" online web 2
for pid in $before; do holds "an instance of before is gone" test ! -e "/proc/$pid"; done
load_stop_with 0 refused
denied vm-admin "$by_systemd" start other
