# deadline: 480
# Instances that hang (SIGSTOP). All at once: that is too much work for all that anybody can tell, so
# nobody is taken out, and who waits is answered when they go on. One of two, under load: at most
# what it had accepted is never answered, since what waits for it moves on, and so do those to come;
# and it is given connections again when it goes on.

# all_hang WAY
all_hang() {
    step "$1, all hang"
    balanced "$1" 2 </dev/null
    before=$(pids web)
    clients overload 40 "$(supervisor web)"
    equal "pids" "$(pids web)" "$before"
}
all_hang inherit
systemctl stop pmr@web
all_hang bind

step "one of two hangs"
clients hang 8 20
wait_for 60 "the journal says so" \
    logged '^web:0 does not accept: what waited moves to the others$' PMR_EVENT=stalled
wait_for 60 "the journal says that it is back" \
    logged '^web:0 is given connections again$' PMR_EVENT=tried-again
equal "pids" "$(pids web)" "$before"
