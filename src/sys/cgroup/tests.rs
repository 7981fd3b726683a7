use std::io::Write;

use super::*;

pub(super) fn make_home(test: &str) -> Option<Home> {
    match Home::make(&format!("pmr-test-{test}-{}", std::process::id())) {
        Ok(home) => Some(home),
        Err(error) => {
            writeln!(io::stderr(), "SKIPPED: {test}: {error}").unwrap();
            None
        }
    }
}

#[test]
fn a_name_is_one_directory() {
    for name in ["i-0.17", "pmr-test", "a b"] {
        assert_eq!(component(name).unwrap(), name);
    }
    for name in ["", ".", "..", "/", "a/b", "../a", "/a", "a/", "./a", "a\0b"] {
        assert_eq!(component(name).unwrap_err().errno(), libc::EINVAL, "{name:?}");
    }
    assert!(Home::make("../up").is_err());
}

#[test]
fn files_are_parsed() {
    assert!(parse_populated("populated 1\nfrozen 0\n"));
    assert!(!parse_populated("populated 0\nfrozen 1\n"));
    assert!(!parse_populated(""));
    assert_eq!(numbers("1\n0\n42\n\nx\n").collect::<Vec<_>>(), [1, 0, 42]);
}

#[test]
fn groups_are_made_listed_and_removed() {
    let Some(home) = make_home("tree") else { return };
    assert!(home.path().starts_with(own_group().unwrap()));
    let listed = std::fs::read_to_string(home.path().join("cgroup.controllers")).unwrap();
    assert_eq!(home.controllers().join(" "), listed.trim());
    // Made again it is the same one.
    let again = Home::make(home.path().file_name().unwrap().to_str().unwrap()).unwrap();
    assert_eq!(again.path(), home.path());

    let second = home.make_group("i-1.2").unwrap();
    let first = home.make_group("i-0.1").unwrap();
    std::fs::create_dir(home.path().join("supervisor")).unwrap();
    assert_eq!(home.groups().unwrap(), [first.path(), second.path()]);
    assert_eq!(home.make_group("i-0.1").unwrap_err().errno(), libc::EEXIST);
    assert_eq!(home.remove().unwrap(), Removal::Busy);

    std::fs::create_dir_all(first.path().join("a/b/c")).unwrap();
    std::fs::create_dir(first.path().join("d")).unwrap();
    assert!(!first.populated().unwrap());
    assert_eq!(first.pids().unwrap(), Vec::<u32>::new());
    // Nobody is in them: there is nobody to kill, by either way.
    first.kill().unwrap();
    first.kill_each().unwrap();
    assert_eq!(first.remove().unwrap(), Removal::Gone);
    assert_eq!(first.remove().unwrap(), Removal::Gone);
    assert_eq!(Group::open(second.path()).unwrap().remove().unwrap(), Removal::Gone);
    assert!(!second.populated().unwrap());
    second.kill().unwrap();
    assert_eq!(home.groups().unwrap(), Vec::<PathBuf>::new());

    std::fs::remove_dir(home.path().join("supervisor")).unwrap();
    assert_eq!(home.remove().unwrap(), Removal::Gone);
    assert_eq!(home.remove().unwrap(), Removal::Gone);
}

#[test]
fn who_left_a_group_is_found_in_the_other() {
    let Some(home) = make_home("left") else { return };
    let [first, second] = ["i-0.1", "i-1.2"].map(|name| home.make_group(name).unwrap());
    let mut child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
    let pid = child.id();
    first.write_file("cgroup.procs", &pid.to_string()).unwrap();
    assert_eq!(first.left_by(pid), None);
    std::fs::create_dir(first.path().join("sub")).unwrap();
    std::fs::write(first.path().join("sub/cgroup.procs"), pid.to_string()).unwrap();
    assert_eq!(first.left_by(pid), None, "in a sub-group of it");
    second.write_file("cgroup.procs", &pid.to_string()).unwrap();
    assert!(!first.populated().unwrap());
    assert_eq!(first.left_by(pid).as_deref(), Some(second.path()));
    assert_eq!(second.left_by(pid), None);
    child.kill().unwrap();
    crate::sys::testing::eventually("it is a zombie", || {
        (!second.populated().unwrap()).then_some(())
    });
    assert_eq!(second.left_by(pid), None, "it has ended there");
    child.wait().unwrap();
    assert_eq!(first.left_by(pid), None, "it is gone");
    for group in [first, second] {
        assert_eq!(group.remove().unwrap(), Removal::Gone);
    }
    assert_eq!(home.remove().unwrap(), Removal::Gone);
}

#[test]
fn a_plain_directory_is_no_group() {
    let dir = std::env::temp_dir();
    assert_eq!(Group::open(&dir).unwrap_err().errno(), libc::EINVAL);
    assert_eq!(Home::open(&dir).unwrap_err().errno(), libc::EINVAL);
    assert!(Group::open("/nonexistent/group").unwrap_err().is_not_found());
}
