//! Files in a folder of the test.

use std::{
    os::unix::fs::PermissionsExt as _,
    time::{Duration, Instant},
};

use super::*;

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .expect("a folder")
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

fn settings(folder: &Path) -> LogSettings {
    LogSettings {
        folder: folder.to_owned(),
        rotate_octets: 1_000_000,
        rotate_after: Duration::from_secs(3_600),
        files_max: 3,
    }
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < deadline, "waited for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_log_gets_its_name_when_it_is_complete() {
    let folder = tempfile::tempdir().expect("a folder");
    let log = Log::start(settings(folder.path()), None).expect("a log");
    assert!(log.record(|out| out.extend_from_slice(b"one")));
    assert!(log.record(|out| out.extend_from_slice(b"two")));
    until("the file", || names(folder.path()).len() == 1 && log.status().written_octets == 6);
    assert!(names(folder.path())[0].ends_with(".mrt.open"), "{:?}", names(folder.path()));
    drop(log);
    let names = names(folder.path());
    let [name] = names.as_slice() else { panic!("{names:?}") };
    assert!(name.starts_with("updates.") && name.ends_with(".mrt"), "{name}");
    assert_eq!(fs::read(folder.path().join(name)).expect("the file"), b"onetwo");
}

#[test]
fn files_follow_each_other_and_the_oldest_go() {
    let folder = tempfile::tempdir().expect("a folder");
    let log = Log::start(LogSettings { rotate_octets: 300_000, ..settings(folder.path()) }, None).expect("a log");
    // More than is written at once, so that each round of the thread fills a file.
    for round in 1..=7u8 {
        assert!(log.record(|out| out.extend(std::iter::repeat_n(round, 280_000))));
        until("the disk", || log.status().written_octets == u64::from(round) * 280_000);
    }
    drop(log);
    let names = names(folder.path());
    assert_eq!(names.len(), 3, "{names:?}");
    let mut firsts: Vec<u8> = names.iter().map(|name| fs::read(folder.path().join(name)).expect("a file")[0]).collect();
    firsts.sort_unstable();
    assert_eq!(firsts, [5, 6, 7], "{names:?}");
}

#[test]
fn what_a_crash_left_is_kept_under_its_final_name() {
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("updates.20260101.000000.mrt.open"), b"half").expect("a file");
    fs::write(folder.path().join("other.open"), b"not ours").expect("a file");
    drop(Log::start(settings(folder.path()), None).expect("a log"));
    assert_eq!(names(folder.path()), ["other.open", "updates.20260101.000000.mrt"]);
}

#[test]
fn a_disk_that_fails_loses_records_and_says_so() {
    let folder = tempfile::tempdir().expect("a folder");
    let inside = folder.path().join("inside");
    fs::write(&inside, b"a file").expect("a file");
    let log = Log::start(settings(&inside), None).expect("a log");
    until("the problem", || log.status().problem.is_some());
    assert!(log.status().problem.is_some_and(|problem| problem.contains("failed to create")), "{:?}", log.status());
    // What waits is tried once more at the end.
    assert!(log.record(|out| out.push(1)));
    log.stop();
    until("the record to be lost", || log.status().lost == 1);
    // Beyond the bound nothing is taken, and nobody waits for that.
    assert!(!log.record(|out| out.extend(std::iter::repeat_n(0, log::BUFFER_OCTETS_MAX + 1))));
    assert_eq!(log.status().lost, 2);
}

#[test]
fn a_disk_that_fails_leaves_whole_records_and_no_empty_files() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut writer = log::Writer::new(settings(folder.path()));
    writer.write(b"whole").expect("written");
    writer.tear(b"ha");
    writer.give_up().expect("given up");
    let kept = names(folder.path());
    let [name] = kept.as_slice() else { panic!("{kept:?}") };
    assert!(name.ends_with(".mrt"), "{name}");
    assert_eq!(fs::read(folder.path().join(name)).expect("the file"), b"whole");
    for _ in 0..3 {
        fs::write(folder.path().join("updates.20260101.000000.mrt.open"), b"").expect("a file");
        writer.give_up().expect("given up");
    }
    assert_eq!(names(folder.path()), kept);
}

#[test]
fn a_log_begins_when_the_one_before_it_has_written_everything() {
    let folder = tempfile::tempdir().expect("a folder");
    let first = Log::start(settings(folder.path()), None).expect("a log");
    assert!(first.record(|out| out.extend_from_slice(b"one")));
    first.stop();
    let second = Log::start(settings(folder.path()), Some(first)).expect("a log");
    assert!(second.record(|out| out.extend_from_slice(b"two")));
    drop(second);
    let names = names(folder.path());
    let octets: Vec<Vec<u8>> = names.iter().map(|name| fs::read(folder.path().join(name)).expect("a file")).collect();
    assert_eq!(octets, [b"one", b"two"], "{names:?}");
}

#[test]
fn nobody_else_reads_the_files() {
    let folder = tempfile::tempdir().expect("a folder");
    let inside = folder.path().join("a/b");
    let log = Log::start(settings(&inside), None).expect("a log");
    assert!(log.record(|out| out.push(1)));
    drop(log);
    let dump = TableDump::begin(&inside, 1).expect("a dump");
    dump.finish().expect("room").blocking_recv().expect("an answer").expect("a file");
    let mode = |path: &Path| fs::metadata(path).expect("it is there").permissions().mode() & 0o7777;
    assert_eq!(mode(&inside) & !0o750, 0, "{:o}", mode(&inside));
    assert_eq!(names(&inside).len(), 2);
    for name in names(&inside) {
        assert_eq!(mode(&inside.join(&name)) & !0o640, 0, "{name}: {:o}", mode(&inside.join(&name)));
    }
}

#[test]
fn a_table_is_all_there_or_not_at_all() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut dump = TableDump::begin(folder.path(), 2).expect("a dump");
    let mut written = 0;
    while written < 5_000_000 {
        if dump.push(|out| out.extend_from_slice(&[7; 1_000])) {
            written += 1_000;
        }
        assert!(names(folder.path()).iter().all(|name| name.starts_with('.')), "{:?}", names(folder.path()));
    }
    let mut outcome = dump.finish();
    let outcome = loop {
        match outcome {
            Ok(outcome) => break outcome,
            Err(dump) => outcome = dump.finish(),
        }
    };
    let path = outcome.blocking_recv().expect("an answer").expect("a file");
    assert_eq!(fs::metadata(&path).expect("the file").len(), 5_000_000);
    assert_eq!(names(folder.path()).len(), 1);

    let mut dump = TableDump::begin(folder.path(), 2).expect("a dump");
    assert!(dump.push(|out| out.push(1)));
    drop(dump);
    until("the part to go", || names(folder.path()).len() == 1);
    for _ in 0..3 {
        let dump = TableDump::begin(folder.path(), 2).expect("a dump");
        dump.finish().expect("room").blocking_recv().expect("an answer").expect("a file");
    }
    assert_eq!(names(folder.path()).len(), 2);
}

#[test]
fn a_table_that_cannot_be_written_says_why() {
    let folder = tempfile::tempdir().expect("a folder");
    let inside = folder.path().join("inside");
    fs::write(&inside, b"a file").expect("a file");
    let dump = TableDump::begin(&inside, 1).expect("a dump");
    let outcome = dump.finish().expect("room").blocking_recv().expect("an answer");
    assert!(matches!(outcome, Err(MrtError::File { operation: "create", .. })), "{outcome:?}");
}
