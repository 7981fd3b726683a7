# kill -9 of the supervisor, five times under load: no app is touched, no request fails.
demo web 10000 2 </dev/null
systemctl start pmr@web
wait_for 60 "both are online" online web 2
load_start 10000
before=$(pids web) main=$(keeper web) longest=0
for _ in 1 2 3 4 5; do
    old=$(supervisor web)
    began=$(milliseconds)
    kill -KILL "$old"
    wait_for 60 "there is another supervisor" another_supervisor web "$old"
    wait_for 60 "it answers" online web 2
    took=$(($(milliseconds) - began))
    [ "$took" -le "$longest" ] || longest=$took
    load_goes_on 10
done
equal "pids of the instances" "$(pids web)" "$before"
equal "the keeper" "$(keeper web)" "$main"
wait_for 60 "STATUS is right again" status_text web '^2/2 online'
load_stop 0
longest_answer "supervisors killed"
figure "another supervisor answers, longest of 5" "$longest" ms
step "an instance of before is still restarted"
kill -KILL "$(pmr pid web | head -n 1)"
wait_for 60 "a restart is counted" field_is web 0 restarts 1
