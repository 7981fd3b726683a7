# deadline: 900
# systemd that is busy for longer than its own watchdog interval (a thousand units, read again and
# again): reloads of an app, a supervisor that is killed and `pmr restart` are not held up by it, the
# watchdog is fed, and no request fails.
test_cleanup() {
    kill "$reloader" 2>/dev/null || true
    systemctl stop vm-many.target
    rm -f /run/systemd/system/vm-many*
    systemctl daemon-reload
}
reloader=
step "a thousand units"
# A unit is read again if something that is active names it.
{
    printf '[Unit]\n'
    for number in {1..1000}; do
        printf 'After=vm-many-%s.service\n' "$number"
        printf '[Unit]\nDescription=%s\nAfter=network.target\n[Service]\nExecStart=/bin/true\n' \
            "$number" >"/run/systemd/system/vm-many-$number.service"
    done
} >/run/systemd/system/vm-many.target
systemctl daemon-reload
systemctl start vm-many.target
holds "they are loaded" eval '[ "$(systemctl list-units --all --plain --no-legend "vm-many-*" | wc -l)" = 1000 ]'
demo web 10000 2 <<<'stable_for = "500ms"'
systemctl start pmr@web
wait_for 60 "both are online" online web 2
main=$(keeper web) group=$(unit_group web)
load_start 10000
step "daemon-reload without end"
(
    trap 'exit 0' TERM
    while :; do
        before=$(milliseconds)
        systemctl daemon-reload || true
        echo $(($(milliseconds) - before)) >>/run/vm-test-reloads
    done
) &
reloader=$!
began=$(milliseconds)
# Files and signals are looked at meanwhile, and not systemd.
supervisor_of() { pgrep -P "$main" -f '^pmr supervise'; }
rounds=0
until [ "$rounds" -ge 2 ] && [ "$(milliseconds)" -gt $((began + 40000)) ]; do
    rounds=$((rounds + 1))
    before=$(pids web)
    holds "pmr reload returns 0" timeout 180 pmr reload web --wait
    differs "the pids" "$(pids web)" "$before"
    old=$(supervisor_of)
    kill -KILL "$old"
    wait_for 60 "another supervisor answers" eval '[ "$(supervisor_of)" != "$old" ] && online web 2'
    before=$(pmr pid web | head -n 1)
    holds "pmr restart returns 0" timeout 180 pmr restart web 0
    differs "the pid of slot 0" "$(pmr pid web | head -n 1)" "$before"
    load_goes_on 10
done
load_stop 0
longest_answer "systemd busy"
step "a crash"
load_start 10000
victim=$(pmr pid web | head -n 1)
kill -KILL "$victim"
wait_for 60 "it is restarted" eval '[ "$(pmr pid web | head -n 1)" != "$victim" ] && online web 2'
load_goes_on 20
load_stop 2
kill "$reloader" || true
wait "$reloader" || true
reloads=$(wc -l </run/vm-test-reloads)
figure "daemon-reloads meanwhile" "$reloads"
figure "longest daemon-reload" "$(sort -n /run/vm-test-reloads | tail -n 1)" ms
# How long that is, is the machine's; under emulation more than the watchdog's 30 s.
figure "systemd busy" "$(awk '{ sum += $1 } END { print sum }' /run/vm-test-reloads)" ms
equal "active state" "$(show web ActiveState)" active
equal "the keeper" "$(keeper web)" "$main"
equal "restarts by systemd" "$(show web NRestarts)" 0
matches_not "the journal" "$(journal -u pmr@web -o cat)" '[Ww]atchdog timeout'
wait_for 60 "STATUS is right" status_text web '^2/2 online'
holds "stop returns 0" systemctl stop pmr@web
holds "the group is gone" test ! -e "$group"
