# deadline: 900
# Instances come and go under load, by reloads and by another number of them, and supervisors are
# killed meanwhile: no connection fails, and all the time it is somebody's turn.

# another INSTANCES: the supervisor is killed, and the next one answers for so many.
another() {
    local old
    old=$(supervisor web)
    kill -KILL "$old"
    wait_for 60 "there is another supervisor" another_supervisor web "$old"
    wait_for 60 "it answers" online web "$1"
}

# rounds WAY COUNT: supervisors, reloads and numbers of instances, so often.
rounds() {
    local way=$1
    step "$way"
    balanced "$way" 2 </dev/null
    load_start 10000 4
    for _ in $(seq "$2"); do
        another 2
        before=$(pids web)
        holds "reload returns 0" systemctl reload pmr@web
        for pid in $before; do holds "an instance of before is gone" test ! -e "/proc/$pid"; done
        holds "pmr scale returns 0" pmr scale web 3
        wait_for 60 "the third is online" online web 3
        another 3
        holds "pmr scale returns 0" pmr scale web 2
        wait_for 60 "the third is gone" online web 2
        load_goes_on 50
    done
    load_stop 0
    figure "connections meanwhile, $way" "$(load_count answered)"
    longest_answer "supervisors killed, reloads, $way"
    equal "restarts" "$(restarts web)" 0
    turns 40 2
    step "$way, a supervisor dies"
    old=$(supervisor web)
    kill -KILL "$old"
    turns 40 2
    wait_for 60 "there is another supervisor" another_supervisor web "$old"
    wait_for 60 "it answers" online web 2
    turns 40 2
    systemctl stop pmr@web
}
rounds bind 3
rounds inherit 1

step "node"
balanced node 2 </dev/null
load_start 10000 4
before=$(pids web)
another 2
holds "reload returns 0" systemctl reload pmr@web
for pid in $before; do holds "an instance of before is gone" test ! -e "/proc/$pid"; done
load_goes_on 50
load_stop 0
longest_answer "supervisor killed, reload, node"
equal "restarts" "$(restarts web)" 0
turns 40 2
