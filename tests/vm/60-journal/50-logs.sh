# `pmr logs` of units: several, one slot, a level, JSON, what comes, an app that does not run, and who
# may read. `pmr describe` shows what a failed instance said last.
# deadline: 480
demo web 10000 2 </dev/null
app api <<'CONFIG'
command = ["sh", "-c", "echo hello; echo trouble >&2; while :; do sleep 1; done"]
CONFIG
systemctl start pmr@web pmr@api
wait_for 60 "web is online" online web 2
wait_for 60 "api is online" online api 1
for _ in 1 2 3 4 5 6 7 8; do get 10000 '/log?lines=2' >/dev/null; done
wait_for 60 "lines of slot 1" logged 'line 2 of 2 to stderr' -t web:1
step "one app, with what pmr did"
shown=$(pmr logs web -n 100)
matches "the lines of an instance" "$shown" '^1\|web \| .*line 2 of 2 to stdout'
matches "pmr's own" "$shown" '^pmr \| web:1 online after'
matches "systemd's" "$shown" '^systemd \| Start(ing|ed) pmr@web'
equal "lines" "$(pmr logs web -n 3 | wc -l)" 3
step "one slot, one level"
shown=$(pmr logs web 1 -n 100)
matches_not "slot 1" "$shown" '^(0\||systemd)|web:0'
shown=$(pmr logs web --level err -n 100)
matches "errors" "$shown" 'to stderr'
matches_not "errors" "$shown" 'to stdout|online'
step "several apps, JSON"
shown=$(pmr logs all --since 10min --json)
equal "objects" "$(grep -c '^{"version":1,"at_ms":[0-9]*,"app":"' <<<"$shown")" "$(wc -l <<<"$shown")"
matches "api" "$shown" '"app":"api","origin":"app","slot":0,"generation":1,"level":"err","event":null,"text":"trouble"'
matches "an event" "$shown" '"app":"web","origin":"pmr","slot":1,"generation":[0-9]+,"level":"info","event":"online"'
step "what comes"
pmr logs /^w/ -f -n 0 >/run/vm-test-followed &
follower=$!
test_cleanup() { kill "$follower" 2>/dev/null || true; }
says_a_line() { get 10000 '/log?lines=1' >/dev/null && [ -s /run/vm-test-followed ]; }
wait_for 60 "it follows" says_a_line
get 10000 /crash 2>/dev/null || true
wait_for 60 "the crash is followed" grep -qE '^pmr \| web:[01] .*restarting' /run/vm-test-followed
wait_for 60 "what the next one says, too" grep -qE '^pmr \| web:[01] online' /run/vm-test-followed
kill "$follower"
wait "$follower" || true
wait_for 60 "journalctl has gone with it" eval '! pgrep -f "^journalctl"'
step "what it said last"
wait_for 60 "describe shows it" eval 'pmr describe web | grep -q "TypeError: Cannot read"'
step "what the one that crashed last said last, and no other"
# Its lives are counted in a file; the third goes on.
app lives <<'S'
command = ["sh", "-c", "echo >>/run/vm-test-lives; n=$(wc -l </run/vm-test-lives); echo \"words of life $n\" >&2; [ $n -lt 3 ] && exit 3; exec sleep infinity"]
ready = "exec"
S
systemctl start pmr@lives || true
wait_for 60 "the third life" eval '[ "$(wc -l </run/vm-test-lives)" = 3 ] && online lives 1'
wait_for 60 "describe shows the second" eval 'pmr describe lives | grep -q "last stderr .*words of life 2"'
matches_not "describe" "$(pmr describe lives)" 'words of life [13]'
step "who may read"
useradd --system vm-nobody
useradd --system --groups systemd-journal vm-reader
told=$(runuser -u vm-nobody -- pmr logs web 2>&1) && fail "anybody may read: $told"
matches "what is said" "$told" 'you may not read that'
matches "what a member of systemd-journal sees" "$(runuser -u vm-reader -- pmr logs web -n 100)" \
    'line 2 of 2'
step "an app that does not run"
systemctl stop pmr@web
matches "its lines" "$(pmr logs web -n 100)" '^pmr \| web all is over'
told=$(pmr logs nosuch 2>&1) && fail "an app that is not there: $told"
matches "what is said" "$told" 'no app named `nosuch`'
