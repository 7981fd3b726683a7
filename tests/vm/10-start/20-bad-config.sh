# A config that cannot be used: status 78, said with its place, and no loop.
demo web 10000 2 <<<'instanses = 3'
step "start"
if systemctl start pmr@web; then fail "start of a bad config returns 0"; fi
equal "active state" "$(show web ActiveState)" failed
equal "exit status" "$(show web ExecMainStatus)" 78
equal "restarts" "$(show web NRestarts)" 0
wait_for 60 "the place is in the journal" logged 'web.toml:6:1' -u pmr@web
wait_for 60 "the hint is in the journal" logged 'instances' -u pmr@web
step "no config at all"
if systemctl start pmr@nothing; then fail "start without a config returns 0"; fi
equal "exit status" "$(show nothing ExecMainStatus)" 78
equal "restarts" "$(show nothing NRestarts)" 0
step "mended"
demo web 10000 2 </dev/null
holds "start returns 0" systemctl start pmr@web
holds "serves" serves 10000
