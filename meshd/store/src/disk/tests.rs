use std::sync::Arc;

use super::*;
use crate::engine::Record;

fn journal(main: i64, value: &[u8]) -> Journal {
    Journal {
        records: vec![Arc::new(Record {
            key: b"k".as_slice().into(),
            value: value.into(),
            position: Position { main: Revision(main), sub: 0 },
            create: Revision(2),
            version: main - 1,
            lease: LeaseId::NONE,
        })],
        leases: vec![LeaseChange::Granted(LeaseId(main), 30)],
        revision: Revision(main),
        ..Journal::default()
    }
}

#[test]
fn what_was_committed_is_found_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.redb");
    let mut opened = DataFile::open(&path).unwrap();
    assert_eq!(opened.loss, Some(HistoryLoss::NoFile));
    assert_ne!(opened.identity.cluster_id, 0);
    let removal = Journal {
        removed: vec![Position { main: Revision(2), sub: 0 }],
        leases: vec![LeaseChange::Gone(LeaseId(2))],
        compacted: Some(Revision(3)),
        revision: Revision(3),
        ..Journal::default()
    };
    opened.file.commit(&[&journal(2, b"1"), &journal(3, b"2"), &removal]).unwrap();
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let in_use = DataFile::open(&path).unwrap_err();
    assert!(matches!(in_use, StoreError::DataFileInUse { .. }), "{in_use}");
    let identity = opened.identity;
    drop(opened);
    let again = DataFile::open(&path).unwrap();
    assert_eq!(again.loss, None);
    assert_eq!(again.identity.cluster_id, identity.cluster_id);
    assert_eq!(again.identity.term, identity.term + 1);
    assert_eq!(again.loaded.revision, Revision(3));
    assert_eq!(again.loaded.compacted, Revision(3));
    assert_eq!(again.loaded.records.len(), 1);
    assert_eq!(again.loaded.leases, [(LeaseId(3), 30)]);
}

#[test]
fn an_unreadable_file_is_kept_under_another_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.redb");
    let mut seen = Vec::new();
    for garbage in [b"not a database at all".to_vec(), vec![0; 100_000]] {
        std::fs::write(&path, &garbage).unwrap();
        let opened = DataFile::open(&path).unwrap();
        let Some(HistoryLoss::Unreadable { set_aside, reason }) = &opened.loss else {
            panic!("garbage is no store: {:?}", opened.loss);
        };
        assert!(!reason.is_empty());
        assert_eq!(std::fs::read(set_aside).unwrap(), garbage);
        assert!(!seen.contains(&opened.identity.cluster_id));
        seen.push(opened.identity.cluster_id);
    }
    let names = std::fs::read_dir(folder.path()).unwrap().count();
    assert_eq!(names, 3);
}

#[test]
fn a_damaged_file_is_unreadable_and_not_a_crash() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.redb");
    {
        let mut opened = DataFile::open(&path).unwrap();
        for main in 2..200 {
            opened.file.commit(&[&journal(main, &[7; 2000])]).unwrap();
        }
    }
    let whole = std::fs::read(&path).unwrap();
    for (at, length) in [(20, 200), (4096, 9_000), (64, 64)] {
        let mut damaged = whole.clone();
        damaged[at..at + length].fill(0xa5);
        std::fs::write(&path, &damaged).unwrap();
        // Whether the damage hits something that matters is up to the layout; it must end in a store either way.
        let opened = DataFile::open(&path).unwrap();
        assert!(opened.loss.is_none() || matches!(opened.loss, Some(HistoryLoss::Unreadable { .. })));
        drop(opened);
        std::fs::remove_file(&path).unwrap();
    }
    std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    assert!(DataFile::open(&path).is_ok());
}

#[test]
fn a_folder_that_does_not_exist_is_an_error() {
    let error = DataFile::open(Path::new("/nonexistent/folder/store.redb")).unwrap_err();
    assert!(matches!(error, StoreError::DataFile { .. }), "{error}");
}
