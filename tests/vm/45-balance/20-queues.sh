# deadline: 900
# An instance is stopped (SIGSTOP), 50 connections are made, of which every other one waits for it,
# and it is killed: all of them are answered by the other one. 1,500 where the socket is inherited, and
# fewer for the other ways, in which a queue is moved alike.

# queues WAY ROUNDS
queues() {
    step "$1, $2 rounds"
    balanced "$1" 2 <<'S'
max_restarts = 1000
min_uptime = 1
S
    clients queues "$2" 50
    # Each death was one, and nothing else has ended.
    wait_for 120 "the last one is online again" online web 2
    equal "restarts" "$(restarts web)" "$2"
    systemctl stop pmr@web
}
queues inherit 30
queues bind 8
queues node 3
