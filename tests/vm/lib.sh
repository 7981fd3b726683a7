# What the tests of tests/vm are written with. A test is a script NN-GROUP/NN-NAME.sh: it is run with
# `set -eu`, ends with status 0 where all held, and is cleaned up after. Its head may say
#   # deadline: SECONDS       (240)
#   # systems: debian13       (all)
# shellcheck shell=bash

UNITS=/sys/fs/cgroup/system.slice/system-pmr.slice

fail() {
    echo "FAILED: $*"
    exit 1
}

# The test cannot be done on this system, and why.
skip() {
    echo "SKIPPED: $*"
    exit 77
}

# step TEXT: where a test is, in its output and in the journal.
step() {
    echo "-- $(cut -d' ' -f1 /proc/uptime) $*"
    logger -t vm-test -- "$*" 2>/dev/null || true
}

# figure NAME VALUE [UNIT]: something measured that no test decides on. It stands in the table at the
# end of a run, where a person reads it.
figure() { echo "FIGURE: $1: $2${3:+ $3}"; }

# equal WHAT GOT EXPECTED
equal() {
    [ "$2" = "$3" ] || fail "$1 is \`$2\`, not \`$3\`"
}

# differs WHAT GOT UNWANTED
differs() {
    [ "$2" != "$3" ] || fail "$1 is still \`$2\`"
}

# matches WHAT TEXT PATTERN: an extended regular expression is found in it.
matches() {
    grep -qE -e "$3" <<<"$2" || fail "$1 has no match of \`$3\`:
$2"
}

# matches_not WHAT TEXT PATTERN
matches_not() {
    if grep -E -e "$3" <<<"$2"; then fail "$1 has a match of \`$3\`"; fi
}

# at_most WHAT NUMBER MAX
at_most() {
    [ "$2" -le "$3" ] || fail "$1 is $2, more than $3"
}

# holds WHAT COMMAND...: the command succeeds now.
holds() {
    local what=$1
    shift
    "$@" || fail "$what: no (\`$*\`)"
}

# wait_for SECONDS WHAT COMMAND...: until it succeeds, or the test has failed.
wait_for() {
    local seconds=$1 what=$2 deadline
    shift 2
    deadline=$(($(milliseconds) + seconds * 1000))
    until "$@" >/dev/null 2>&1; do
        [ "$(milliseconds)" -lt "$deadline" ] || fail "not within $seconds s: $what (\`$*\`)"
        sleep 0.1
    done
}

milliseconds() {
    local up
    read -r up _ </proc/uptime
    echo "$((10#${up/./}))0"
}

# app NAME: its config from stdin.
app() {
    mkdir -p /etc/pmr
    cat >"/etc/pmr/$1.toml"
}

# demo NAME PORT INSTANCES: the built-in backend behind one port, with more lines of config from
# stdin. Its times are short, so that a test does not wait for them.
demo() {
    {
        printf 'command = ["/usr/bin/pmr", "demo-backend"]\n'
        printf 'port = %s\ninstances = %s\nexec_mode = "cluster"\nready = "exec"\n' "$2" "$3"
        cat
    } | app "$1"
}

# balanced WAY INSTANCES: app web behind port 10000, whose instances get their sockets this way
# (inherit, bind, node), with more lines of config from stdin. It is started.
balanced() {
    WAY=$1
    {
        case $1 in
            inherit) printf 'command = ["/usr/bin/pmr", "demo-backend"]\nlisten = 10000\n' ;;
            bind) printf 'command = ["/usr/bin/pmr", "demo-backend"]\nport = 10000\n' ;;
            # A node may take longer to start than an app may usually.
            node) printf 'script = "/vm/lib/server.js"\nport = 10000\nlisten_timeout = "120s"\n' ;;
        esac
        printf 'instances = %s\nstable_for = "100ms"\n' "$2"
        cat
    } | app web
    systemctl start pmr@web
    wait_for 120 "all are online" online web "$2"
    matches "describe" "$(pmr describe web)" "adapter +$1:"
    matches "describe" "$(pmr describe web)" 'balance +round-robin, steered by the kernel'
}

# clients COMMAND ARGUMENTS...: those of lib/clients.py, on the app of `balanced`; they say what is wrong.
clients() {
    local command=$1
    shift
    WAY=$WAY holds "$command" python3 /vm/lib/clients.py "$command" 10000 "$@"
}

# turns COUNT INSTANCES: so many connections go strictly in turn. One that a slow machine gives no CPU
# for 250 ms counts as hung, and has no turn until it is tried again, a second later at first: where
# the journal says so, it is counted again.
turns() {
    for _ in 1 2 3 4 5; do
        if WAY=$WAY python3 /vm/lib/clients.py turns 10000 "$@"; then return; fi
        wait_for 20 "somebody was out, so that is why" logged 'does not accept' PMR_EVENT=stalled
        sleep 2
    done
    fail "not in turn, five times"
}

show() { systemctl show -P "$2" "pmr@$1.service"; }
is() { [ "$(show "$1" "$2")" = "$3" ]; }
keeper() { show "$1" MainPID; }
unit_group() { echo "/sys/fs/cgroup$(show "$1" ControlGroup)"; }

# The supervisor of an app: the one child of its keeper that is called so.
supervisor() {
    local pid
    pid=$(pgrep -P "$(keeper "$1")" -f '^pmr supervise') || return 1
    [ "$(wc -w <<<"$pid")" = 1 ] && echo "$pid"
}

# another_supervisor NAME OLD
another_supervisor() {
    local pid
    pid=$(supervisor "$1") && [ "$pid" != "$2" ]
}

# pids NAME: of its instances, in the order of the slots, on one line.
pids() { pmr pid "$1" | xargs; }

# row NAME SLOT: its line of `pmr status`. Text and not JSON, since each start of a python costs a
# second under emulation; the columns are NAME ID MODE PID MEM CPU STATUS RESTARTS UPTIME.
row() { pmr status "$1" | grep -E "^$1 +$2 "; }

# field NAME SLOT pid|mem|status|restarts
field() {
    local -A column=([pid]=4 [mem]=5 [status]=7 [restarts]=8)
    row "$1" "$2" | awk -v at="${column[$3]}" '{ print $at }'
}

field_is() { [ "$(field "$1" "$2" "$3")" = "$4" ]; }

# online NAME COUNT: that many of its slots are online.
online() { [ "$(pmr status "$1" | grep -cE "^$1 +[0-9]+ .* online ")" = "$2" ]; }

# restarts NAME: of all its slots together.
restarts() { pmr status "$1" | grep -E "^$1 +[0-9]+ " | awk '{ sum += $8 } END { print sum }'; }
restarts_are() { [ "$(restarts "$1")" = "$2" ]; }

# status_text NAME PATTERN: what `systemctl status` shows as Status matches.
status_text() { show "$1" StatusText | grep -qE -e "$2"; }

# get PORT [PATH]: one request, with its own deadline.
get() { curl -sS --fail --max-time 60 "http://127.0.0.1:$1${2:-/}"; }

serves() { get "$1" / >/dev/null; }

# The journal since the test began. The cursor is that of an entry of the test's own, which no match
# finds: with --after-cursor and a match, journalctl of 252 leaves out the first entry that matches.
journal() { journalctl --no-pager --quiet --cursor="$CURSOR" "$@"; }
# logged PATTERN [ARGS...]: a line of it matches.
logged() {
    local pattern=$1
    shift
    journalctl --no-pager --quiet --cursor="$CURSOR" -o cat "$@" | grep -qE -e "$pattern"
}

# logged_times COUNT PATTERN [ARGS...]: so many lines of it match. As `logged` it is to be waited for:
# journald may read what somebody has written after his end is known.
logged_times() {
    local count=$1 pattern=$2
    shift 2
    [ "$(journal -o cat "$@" | grep -cE -e "$pattern")" = "$count" ]
}

# processes_in GROUP: and below it, on one line.
processes_in() { find "$1" -name cgroup.procs -exec cat {} + 2>/dev/null | sort -n | xargs; }

# load_start PORT [CLIENTS]: requests without end, one connection each; counts what fails.
load_start() {
    LOAD=$(mktemp -d /run/load.XXXXXX)
    python3 /vm/lib/load.py "$1" "${2:-2}" "$LOAD" &
    LOAD_PID=$!
    load_goes_on 20
}

load_count() { cat "$LOAD/$1" 2>/dev/null || echo 0; }
load_reached() { [ "$(load_count answered)" -ge "$1" ]; }

# load_goes_on COUNT [SECONDS]: so many more requests are answered from now on.
load_goes_on() {
    wait_for "${2:-60}" "$1 more requests are answered" load_reached $(($(load_count answered) + $1))
}

# load_stop MAX: ends it; at most MAX requests may have failed.
load_stop() {
    kill -TERM "$LOAD_PID"
    wait "$LOAD_PID" || fail "the load generator failed"
    LOAD_PID=
    echo "load: $(load_count answered) answered, $(load_count failed) failed," \
        "longest answer $(load_count longest_ms) ms"
    head -n 8 "$LOAD/failures"
    at_most "failed requests" "$(load_count failed)" "$1"
}

# longest_answer WHEN: of the load that was just ended, as a figure.
longest_answer() { figure "longest answer, $1" "$(load_count longest_ms)" ms; }

# load_stop_with MAX PATTERN: ends it; at most MAX failures match the pattern, others may be.
load_stop_with() {
    load_stop 1000000
    at_most "failures that match $2" "$(grep -ciE -e "$2" "$LOAD/failures" || true)" "$1"
}

# reboot_now: ends this phase; the test is run again after the boot with PHASE one higher.
reboot_now() {
    echo "$CURSOR" >/var/lib/vm-cursor
    trap - EXIT
    echo "@reboot"
    systemctl reboot
    sleep infinity
}

# Ends what a test has left, so that the next begins as the first did.
cleanup() {
    local units unit pid
    [ -z "${LOAD_PID:-}" ] || kill -KILL "$LOAD_PID" 2>/dev/null || true
    declare -F test_cleanup >/dev/null && test_cleanup
    for pid in $(pgrep -f '^/lib/systemd/systemd-journald|^/usr/lib/systemd/systemd-journald'); do
        kill -CONT "$pid" || true
    done
    units=$(systemctl list-units --all --plain --no-legend 'pmr@*' | cut -d' ' -f1)
    for unit in $units; do
        timeout 60 systemctl stop "$unit" || systemctl kill --kill-whom=all -s KILL "$unit" || true
    done
    # shellcheck disable=SC2086
    [ -z "$units" ] || systemctl reset-failed $units 2>/dev/null || true
    rm -rf /etc/pmr/*.toml /etc/systemd/system/pmr@*.service.d /run/systemd/system/pmr@*.service.d \
        /run/load.* /run/vm-test*
}

# leaking NAME PORT INSTANCES ARGUMENTS: an app of lib/leak.py, with more lines of config from stdin.
leaking() {
    local name=$1 port=$2 instances=$3 arguments
    shift 3
    arguments=$(printf ', "%s"' "$@")
    {
        printf 'command = ["/usr/bin/python3", "/vm/lib/leak.py"%s]\n' "$arguments"
        printf 'port = %s\ninstances = %s\nexec_mode = "cluster"\nready = "notify"\n' "$port" "$instances"
        cat
    } | app "$name"
}

# decisions: `GENERATION MICROSECONDS` of each instance that was found to leak, when pmr said so
# first. The journal has the moment at which its socket was given the entry.
decisions() {
    local line generation moment
    journal PMR_EVENT=memory-above PMR_EVENT=memory-waits PMR_EVENT=memory-hurry -o json |
        while read -r line; do
            generation=$(grep -oE '"PMR_GENERATION" ?: ?"[0-9]+' <<<"$line" | grep -oE '[0-9]+$')
            moment=$(grep -oE '"_SOURCE_REALTIME_TIMESTAMP" ?: ?"[0-9]+' <<<"$line" | grep -oE '[0-9]+$')
            echo "$generation $moment"
        done | sort -n -s -k 1,1 -u
}

# decision_figures NAME: from the crossing of a limit to the decision, over all instances.
decision_figures() {
    local generation moment decided rate longest=0 slowest=1000000 count=0 all
    all=$(decisions)
    while read -r generation moment rate; do
        [ "$rate" -ge "$slowest" ] || slowest=$rate
        decided=$(sed -n "s/^$generation //p" <<<"$all")
        [ -n "$decided" ] || continue
        count=$((count + 1))
        echo "generation $generation: $rate MB/s, decided $(((decided - moment) / 1000)) ms after the crossing"
        [ $((decided - moment)) -le "$longest" ] || longest=$((decided - moment))
    done < <(journal -t "$1:0" -t "$1:1" -o cat | sed -n 's/^crossed //p')
    [ "$count" -ge 1 ] || fail "no crossing has its decision"
    figure "crossing to decision, longest of $count" "$((longest / 1000))" ms
    figure "slowest leak" "$slowest" MB/s
}

# watch_peaks NAME: the highest memory.peak of its instances so far, in $HIGHEST; with the shell's own
# means, since each process costs more than the look.
watch_peaks() {
    local file peak
    for file in "$GROUP"/i-*/memory.peak; do
        { read -r peak <"$file"; } 2>/dev/null || continue
        [ "$peak" -le "$HIGHEST" ] || HIGHEST=$peak
    done
}
