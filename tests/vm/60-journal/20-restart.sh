# journald restarted while lines come: none is lost, and nobody notices. Killed: what it had read and
# not written is lost with it, but nobody notices either, and what is written next comes.
demo web 10000 2 </dev/null
systemctl start pmr@web
wait_for 60 "both are online" online web 2
load_start 10000
before=$(pids web)
lines() { journal -u pmr@web -o cat | grep -c "$1"; }
step "restart"
get 10000 '/log?lines=200' &
request=$!
systemctl restart systemd-journald
holds "the request that writes is answered" wait "$request"
wait_for 60 "all lines to stdout came" eval '[ "$(lines "of 200 to stdout")" = 200 ]'
wait_for 60 "all lines to stderr came" eval '[ "$(lines "of 200 to stderr")" = 200 ]'
load_goes_on 10
step "kill"
get 10000 '/log?lines=200' &
request=$!
systemctl kill -s KILL systemd-journald
wait_for 60 "journald is back" systemctl is-active systemd-journald
holds "the request that writes is answered" wait "$request"
get 10000 '/log?lines=7'
wait_for 60 "what is written then comes" logged 'line 7 of 7 to stderr' -u pmr@web
load_goes_on 10
equal "pids" "$(pids web)" "$before"
load_stop 0
longest_answer "journald killed"
