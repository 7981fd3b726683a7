# deadline: 480
# A binary that cannot run is put in the place of pmr's: `pmr upgrade` says why and fails, and keeper,
# supervisor and instances go on as before, under load. Also a supervisor that dies then is replaced.
good=/var/tmp/vm-test-pmr
cp /usr/bin/pmr "$good"
# By a rename, as packages do it: the file of a process that runs cannot be written.
place() { mv "$1" /usr/bin/pmr; }
test_cleanup() {
    [ ! -e "$good" ] || place "$good"
    rm -f /var/tmp/vm-test-bad
}
demo web 10000 2 </dev/null
systemctl start pmr@web
wait_for 60 "both are online" online web 2
load_start 10000
before=$(pids web) main=$(keeper web) old=$(supervisor web)

# refused WHAT PATTERN: /var/tmp/vm-test-bad is no upgrade.
refused() {
    local told status=0
    step "$1"
    chmod 755 /var/tmp/vm-test-bad
    place /var/tmp/vm-test-bad
    told=$(timeout 180 "$good" upgrade web 2>&1) || status=$?
    echo "$status: $told"
    equal "status of upgrade" "$status" 1
    matches "what is said" "$told" "nothing was changed.*($2)"
    equal "the keeper" "$(keeper web)" "$main"
    equal "the supervisor" "$(supervisor web)" "$old"
    load_goes_on 10
}
printf '\177ELF and no more of it' >/var/tmp/vm-test-bad
refused "not a program" 'Exec format error'
cp "$good" /var/tmp/vm-test-bad
# e_machine of the ELF header: AArch64.
printf '\267\000' | dd of=/var/tmp/vm-test-bad bs=1 seek=18 conv=notrunc status=none
refused "of another machine" 'Exec format error'
LC_ALL=C sed 's/libc\.so\.6/libc.so.9/g' "$good" >/var/tmp/vm-test-bad
refused "without a library" 'libc\.so\.9'
cp /bin/false /var/tmp/vm-test-bad
refused "another program" 'exit status: 1'

step "a supervisor that dies meanwhile"
kill -KILL "$old"
another() { pgrep -P "$main" -f '^pmr supervise' | grep -vqx "$old"; }
wait_for 60 "there is another supervisor" another
wait_for 60 "it answers" eval '[ "$("$good" status web | grep -c " online ")" = 2 ]'
holds "it is of the good binary" cmp -s "/proc/$(supervisor web)/exe" "$good"
load_goes_on 10

step "the good one again"
cp "$good" /var/tmp/vm-test-good
place /var/tmp/vm-test-good
holds "upgrade returns 0" pmr upgrade web
matches_not "the binary" "$(readlink "/proc/$(keeper web)/exe")" deleted
equal "the keeper" "$(keeper web)" "$main"
equal "pids of web" "$(pids web)" "$before"
equal "restarts by systemd" "$(show web NRestarts)" 0
load_goes_on 10
load_stop 0
longest_answer "bad upgrades"
