# deadline: 480
# All instances are killed, and there is nobody for half a second: who comes meanwhile waits, and is
# answered by those that are started.

# nobody WAY ROUNDS
nobody() {
    step "$1, $2 rounds"
    balanced "$1" 2 <<'S'
restart_delay = 500
max_restarts = 1000
min_uptime = 1
S
    clients nobody "$2" 100
    wait_for 120 "both are online" online web 2
    equal "restarts" "$(restarts web)" $((2 * $2))
    systemctl stop pmr@web
}
nobody inherit 3
nobody bind 3
