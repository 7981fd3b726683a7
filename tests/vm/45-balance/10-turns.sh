# deadline: 900
# Connections go to the instances strictly in turn, however those get their sockets: 2,000 of them
# with 2, 3 and 4 instances where the socket is inherited, and fewer for the other ways, for which the
# program in the kernel is the same.

# in_turn WAY INSTANCES COUNT
in_turn() {
    step "$1, $2 instances"
    balanced "$1" "$2" </dev/null
    turns "$3" "$2"
    systemctl stop pmr@web
}
for instances in 2 3 4; do in_turn inherit "$instances" 2000; done
in_turn bind 2 500
in_turn node 2 200
