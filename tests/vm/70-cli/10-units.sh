# `pmr start`, `stop`, `enable`, `disable`, `status` act on units and wait for them.
demo web 10000 2 </dev/null
demo other 10001 1 </dev/null
step "start"
holds "pmr start returns 0" pmr start web
equal "active state" "$(show web ActiveState)" active
wait_for 60 "both are online" online web 2
step "status shows both"
status=$(pmr status)
matches "status" "$status" '^web +0 .* online '
matches "status" "$status" '^other '
step "enable"
holds "pmr enable returns 0" pmr enable other
equal "is-enabled" "$(systemctl is-enabled pmr@other)" enabled
holds "pmr disable returns 0" pmr disable other
equal "is-enabled" "$(systemctl is-enabled pmr@other || true)" disabled
step "stop"
holds "pmr stop returns 0" pmr stop web
equal "active state" "$(show web ActiveState)" inactive
step "a start that fails"
echo 'instanses = 3' >>/etc/pmr/other.toml
if said=$(pmr start other 2>&1); then fail "start of a bad config returns 0"; fi
matches "what is said" "$said" 'instanses'
systemctl start pmr@other 2>/dev/null || true
matches "status" "$(pmr status)" '^other .*failed'
