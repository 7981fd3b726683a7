//! What `status` and `describe` show.

use super::*;

#[test]
fn status_is_a_line_for_every_slot() {
    let (next, out, err) = against(done, "pmr status");
    insta::assert_snapshot!(out, @r#"
    NAME           ID  MODE      PID  MEM   CPU  STATUS        RESTARTS  UPTIME
    track-backend   0  cluster  4242  85M  1.2%  online               0  5h 12min
    track-backend   1  cluster     -    -     -  waiting 1.8s         1  -

    track-backend 1: was killed by SIGSEGV (core dumped) 200ms ago
    track-backend: NOT enforced here: memory_max
    "#);
    assert_eq!((next, err.as_str()), (Next::Done(0), ""));
    for line in ["pmr ls", "pmr list track-backend", "pmr status /^track.*d$/ all"] {
        assert_eq!(against(done, line).1, out, "{line}");
    }
}

/// A user's own app, and two of the machine with a name of their own and the same one.
#[test]
fn a_user_sees_the_own_apps_first_and_those_of_the_machine_apart() {
    let answer = |_: Call| {
        let mut app = track_backend_state();
        app.instances.truncate(1);
        app.limits.clear();
        vec![Reply::App(Box::new(app))]
    };
    let denied = |_: Call| {
        let text = "only root and the group pmr may look at it";
        vec![Reply::Fault(Fault::new(FaultKind::Denied, text))]
    };
    let both = |line: &str, other: fn(Call) -> Vec<Reply>| {
        let (own, system) = (Scratch::new("cli-own"), Scratch::new("cli-system"));
        let homes = || {
            let mut homes = vec![home(&own.0), home(&system.0)];
            homes[0].scope = Scope::User;
            homes
        };
        with_app(&own.0, "track-backend", 0, answer, || {
            with_app(&system.0, "track-backend", 0, other, || pmr_in(homes(), line))
        })
    };
    let (next, out, err) = both("pmr status", answer);
    insta::assert_snapshot!(out, @r#"
    NAME           ID  MODE      PID  MEM   CPU  STATUS  RESTARTS  UPTIME
    track-backend   0  cluster  4242  85M  1.2%  online         0  5h 12min

    apps of the machine:
    NAME           ID  MODE      PID  MEM   CPU  STATUS  RESTARTS  UPTIME
    track-backend   0  cluster  4242  85M  1.2%  online         0  5h 12min
    "#);
    assert_eq!((next, err.as_str()), (Next::Done(0), ""));
    let (_, out, _) = both("pmr status --json", answer);
    let scopes: Vec<_> = out.split("\"scope\":").skip(1).map(|it| &it[..6]).collect();
    assert_eq!(scopes, ["\"user\"", "\"syste"]);
    // One that is not a unit is shown by nobody else.
    let (next, out, err) = both("pmr status", denied);
    assert_eq!((next, out.lines().count()), (Next::Done(5), 2));
    assert!(err.contains("only root and the group pmr may"), "{err}");
}

#[test]
fn an_app_that_the_caller_may_not_look_at_is_shown_as_systemd_knows_it() {
    let known = apps::Known::new(&home(Path::new("/run/pmr")), "web".to_owned(), None);
    let row = |active: &str, text: &str| {
        let unit = UnitState {
            active_state: active.to_owned(),
            status_text: text.to_owned(),
            ..UnitState::default()
        };
        status::Idle::new(&known, Some(unit), status::Access::Denied).text()
    };
    assert_eq!(row("active", "2/2 online, gen 7\u{1b}"), "running (2/2 online, gen 7\u{fffd})");
    assert_eq!(row("active", ""), "running");
    let alone = status::Idle::new(&known, None, status::Access::Denied);
    assert_eq!(alone.text(), "no access");
}

#[test]
fn a_roll_and_a_lost_cause_are_noted() {
    let mut app = track_backend_state();
    app.roll = Some(RollState { kind: "reload".to_owned(), slot: Some(0) });
    app.instances[0].other = Some(OtherState {
        generation: 18,
        pid: Some(4300),
        status: "launching".to_owned(),
        ..OtherState::default()
    });
    let errored = &mut app.instances[1];
    errored.status = "errored".to_owned();
    errored.next_start_ms = None;
    (errored.unstable, errored.restarts) = (10, 9);
    let mut out = Vec::new();
    {
        let mut streams = Streams {
            out: Box::new(StripStream::new(&mut out)),
            err: Box::new(io::sink()),
            progress: false,
        };
        status::write_states(&[app], &[], &mut streams).unwrap();
    }
    insta::assert_snapshot!(String::from_utf8(out).unwrap(), @r#"
    NAME           ID  MODE      PID  MEM   CPU  STATUS   RESTARTS  UPTIME
    track-backend   0  cluster  4242  85M  1.2%  online          0  5h 12min
    track-backend   1  cluster     -    -     -  errored         9  -

    track-backend 0: generation 18 (pid 4300) launching, reload in progress
    track-backend 1: was killed by SIGSEGV (core dumped) 200ms ago, limit 10/10
    track-backend: NOT enforced here: memory_max
    "#);
}

#[test]
#[expect(clippy::too_many_lines, reason = "a line for each field")]
fn status_as_json_has_a_stable_shape() {
    let (next, out, _) = against(done, "pmr status --json");
    assert_eq!(next, Next::Done(0));
    // A line for each field.
    insta::assert_snapshot!(out.replace(",\"", ",\n\""), @r#"
    {"version":1,
    "apps":[{"name":"track-backend",
    "status":"degraded",
    "mode":"cluster",
    "level":"bare",
    "instances":[{"id":0,
    "generation":16,
    "pid":4242,
    "status":"online",
    "memory_bytes":89128960,
    "memory_peak_bytes":null,
    "tasks":null,
    "cpu_percent":1.25,
    "usage_exact":false,
    "restarts":0,
    "uptime_ms":18720000,
    "unstable":0,
    "unstable_limit":10,
    "next_start_ms":null,
    "release":3,
    "last_exit":null,
    "other":null,
    "connections":null,
    "migrated":null,
    "queued":null,
    "stderr":[]},{"id":1,
    "generation":null,
    "pid":null,
    "status":"waiting",
    "memory_bytes":null,
    "memory_peak_bytes":null,
    "tasks":null,
    "cpu_percent":null,
    "usage_exact":false,
    "restarts":1,
    "uptime_ms":null,
    "unstable":0,
    "unstable_limit":10,
    "next_start_ms":1800,
    "release":null,
    "last_exit":{"generation":17,
    "text":"was killed by SIGSEGV (core dumped)",
    "oom_killed":false,
    "asked":false,
    "ago_ms":200,
    "uptime_ms":13500000},
    "other":null,
    "connections":null,
    "migrated":null,
    "queued":null,
    "stderr":[]}],
    "summary":"1/2 online, 1 waiting",
    "release":3,
    "roll":null,
    "shutting_down":false,
    "config":"/etc/pmr/track-backend.toml",
    "cwd":"/srv/track-backend",
    "command":["node",
    "server.js"],
    "listen":["0.0.0.0:10000"],
    "balance":null,
    "memory_limit_bytes":1073741824,
    "memory_cap_enforced":false,
    "limits":[{"key":"memory_max",
    "value":1342177280,
    "enforced":false,
    "reason":"no groups in level bare"}],
    "started_at_ms":1780000000000,
    "uptime_ms":18720000,
    "supervisor_pid":101,
    "keeper_pid":100,
    "supervisor_deaths":1,
    "pmr_version":"0.1.0",
    "upgrade":null,
    "journal":null,
    "kind":"running",
    "scope":"system"}]}
    "#);
}

#[test]
fn describe_tells_everything() {
    let (next, out, _) = against(done, "pmr show track-backend");
    assert_eq!(next, Next::Done(0));
    insta::assert_snapshot!(out, @r#"
    track-backend: degraded (1/2 online, 1 waiting)
      mode          cluster on 0.0.0.0:10000
      command       node server.js
      cwd           /srv/track-backend
      config        /etc/pmr/track-backend.toml
      level         bare: memory cap not enforced
      memory limit  1G
      limits        memory_max 1.2G, NOT enforced: no groups in level bare
      uptime        5h 12min
      supervisor    pid 101 under keeper 100, pmr 0.1.0, replaced once

      slot 0: online
        pid         4242 (generation 16, release 3)
        memory      85M, sampled
        cpu         1.2%
        uptime      5h 12min
        restarts    0
        limit       0/10 unstable exits

      slot 1: waiting, starts in 1.8s
        restarts    1
        limit       0/10 unstable exits
        last exit   generation 17 was killed by SIGSEGV (core dumped), after 3h 45min, 200ms ago
        last stderr TypeError: Cannot read properties of null (reading 'id')
                        at track (server.js:41:�[7m17)
    "#);
    let (_, json, _) = against(done, "pmr describe track-backend --json");
    assert!(json.starts_with(r#"{"version":1,"app":{"name":"track-backend","#), "{json}");
    assert!(json.contains(r#""stderr":["TypeError: "#), "{json}");
}
