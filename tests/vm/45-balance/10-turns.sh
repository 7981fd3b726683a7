# Connections go to the instances strictly in turn, whether they inherit their sockets or bind them;
# and of those that wait at an instance that is killed, none is refused or lost.
# deadline: 240

# turns COUNT: which instance answers each of so many requests, one after the other.
turns() {
    python3 - 10000 "$1" <<'T'
import re, sys, urllib.request
for _ in range(int(sys.argv[2])):
    with urllib.request.urlopen(f"http://127.0.0.1:{sys.argv[1]}/", timeout=20) as page:
        print(re.search(r"instance (\d+)", page.read().decode())[1], end="")
T
}

for way in inherit bind; do
    step "$way"
    key=$([ "$way" = bind ] && echo port || echo listen)
    app web <<T
command = ["/usr/bin/pmr", "demo-backend"]
$key = 10000
instances = 2
stable_for = 100
T
    systemctl start pmr@web
    wait_for 20 "both are online" online web 2
    described=$(pmr describe web)
    matches "describe" "$described" "adapter +$way:"
    matches "describe" "$described" 'balance +round-robin, steered by the kernel'
    matches "the order of answers" "$(turns 60)" '^((01){30}|(10){30})$'

    step "kill -9 under load"
    load_start 10000 4
    for _ in 1 2 3; do
        wait_for 20 "both are online" online web 2
        victim=$(pmr pid web | head -n 1)
        kill -KILL "$victim"
        wait_for 20 "it is gone" test ! -e "/proc/$victim"
        load_goes_on 20
    done
    # What is in flight on it fails: at most one request of each client.
    load_stop_with 0 'refused|no answer|timed out'
    at_most "failed requests" "$(load_count failed)" 12
    wait_for 20 "both are online" online web 2

    step "a supervisor dies"
    old=$(supervisor web)
    kill -KILL "$old"
    matches "the order of answers" "$(turns 20)" '^((01){10}|(10){10})$'
    wait_for 30 "there is another supervisor" another_supervisor web "$old"
    wait_for 30 "it answers" online web 2
    matches "the order of answers" "$(turns 20)" '^((01){10}|(10){10})$'
    systemctl stop pmr@web
done
