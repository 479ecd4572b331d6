//! What the state folder keeps, and what happens to it when disks and files fail.

use std::fs;
use std::path::Path;

use super::folder::LOCK;
use super::*;
use crate::kek::{KekVersion, Lineage, WrappedDek};

const LONG: Duration = Duration::from_secs(30);

fn wrapped() -> WrappedDekSet {
    let version = KekVersion { lineage: Lineage::derive("test", &[]), version: "1".into() };
    WrappedDekSet { cluster: "c".parse().unwrap(), epoch: 1, wraps: vec![WrappedDek { version, blob: vec![1, 2, 3] }] }
}

fn number(number: u16) -> DekId {
    let mut id = [0; 16];
    id[..2].copy_from_slice(&number.to_be_bytes());
    DekId(id)
}

async fn open(folder: &Path) -> Arc<DekStore> {
    let store = Arc::new(DekStore::open(Arc::new(StateFolder::new(folder))).await.unwrap());
    tokio::spawn(store.clone().write_behind());
    store
}

#[tokio::test]
async fn what_is_kept_comes_back_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let files = StateFolder::new(folder.path());
    let store = Arc::new(DekStore::open(Arc::new(files.clone())).await.unwrap());
    let writer = tokio::spawn(store.clone().write_behind());
    for id in [number(1), number(2)] {
        store.keep(id, &wrapped());
        store.record(|history| history.adopted(id, 1, wrapped().versions()));
    }
    store.forget(number(2));
    assert!(store.is_written(LONG).await && store.problem().is_none());
    writer.abort();

    let again = DekStore::open(Arc::new(files)).await.unwrap();
    assert_eq!(again.kept(), [(number(1), Arc::new(wrapped()))]);
    assert_eq!(again.count(), 1);
    assert_eq!(again.history(), store.history());
}

#[tokio::test]
async fn a_second_plugin_on_the_same_folder_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let _first = open(folder.path()).await;
    let second = DekStore::open(Arc::new(StateFolder::new(folder.path()))).await;
    let error = second.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ResourceBusy);
    assert!(error.to_string().contains("another kube-envelope process"), "{error}");
}

#[tokio::test]
async fn a_folder_that_cannot_be_used_is_reported_and_nothing_waits_for_it() {
    let place = tempfile::tempdir().unwrap();
    let in_the_way = place.path().join("state");
    fs::write(&in_the_way, "a file").unwrap();
    let store = open(&in_the_way).await;
    store.keep(number(1), &wrapped());
    assert_eq!((store.kept().len(), store.count()), (1, 0));
    assert!(!store.is_written(Duration::ZERO).await);
    assert!(store.problem().unwrap().contains("in memory alone"), "{:?}", store.problem());

    fs::remove_file(&in_the_way).unwrap();
    assert!(store.is_written(LONG).await, "it is written once it can be");
    assert_eq!(store.problem(), None);
    assert!(in_the_way.join(format!("{}.dek", number(1))).exists());
}

#[tokio::test]
async fn what_a_folder_holds_is_read_though_it_cannot_be_taken() {
    let folder = tempfile::tempdir().unwrap();
    let first = open(folder.path()).await;
    first.keep(number(1), &wrapped());
    first.record(|history| history.adopted(number(1), 1, wrapped().versions()));
    assert!(first.is_written(LONG).await);
    fs::remove_file(folder.path().join(LOCK)).unwrap();
    fs::create_dir(folder.path().join(LOCK)).unwrap();

    let second = open(folder.path()).await;
    assert_eq!((second.count(), second.history()), (1, first.history()));
    let problem = second.problem().unwrap();
    assert!(problem.contains("cannot be written") && problem.contains("what is new will be in memory alone"));
    assert!(second.find_written(number(1)).is_some());
    fs::remove_dir(folder.path().join(LOCK)).unwrap();
    second.keep(number(2), &wrapped());
    assert!(second.is_written(LONG).await);
    assert_eq!((second.count(), second.problem()), (2, None));
}

#[tokio::test]
async fn another_folder_in_its_place_is_taken_with_what_it_holds_and_written() {
    let place = tempfile::tempdir().unwrap();
    let (folder, other) = (place.path().join("state"), place.path().join("other"));
    let (store, theirs) = (open(&folder).await, open(&other).await);
    for (store, id) in [(&store, 1), (&theirs, 2)] {
        store.keep(number(id), &wrapped());
        store.record(|history| history.adopted(number(id), 1, wrapped().versions()));
        assert!(store.is_written(LONG).await);
    }
    fs::rename(&folder, place.path().join("away")).unwrap();
    fs::rename(&other, &folder).unwrap();
    drop(theirs);
    fs::remove_file(folder.join(LOCK)).unwrap();
    store.look_soon();
    while store.kept().len() < 2 || !store.is_written(LONG).await {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(folder.join(LOCK).exists() && store.problem().is_none());
    // What was adopted here stays the newest.
    assert_eq!(store.history().deks().collect::<Vec<_>>(), [number(1), number(2)]);
    assert_eq!(store.written_history(), store.history());
    let records = StateFolder::new(&folder).look().unwrap();
    assert_eq!(records.len(), 3);
}

#[tokio::test]
async fn any_changed_byte_sets_a_file_aside_and_nothing_else_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    let (good, bad) = (number(1), number(2));
    let bad_file = folder.path().join(format!("{bad}.dek"));
    {
        let files = Arc::new(StateFolder::new(folder.path()));
        assert_eq!(files.take().await.unwrap(), Place::Other);
        for id in [good, bad] {
            files.write(Name::Dek(id), &wrapped().encode().unwrap()).await.unwrap();
        }
    }
    let whole = fs::read(&bad_file).unwrap();
    let changed = (0..whole.len()).map(|position| {
        let mut changed = whole.clone();
        changed[position] ^= 1;
        changed
    });
    for damaged in changed.chain((0..whole.len()).map(|length| whole[..length].to_vec())) {
        fs::write(&bad_file, &damaged).unwrap();
        let store = DekStore::open(Arc::new(StateFolder::new(folder.path()))).await.unwrap();
        assert_eq!(store.kept(), [(good, Arc::new(wrapped()))], "{damaged:?}");
        assert!(!bad_file.exists());
    }
}

#[tokio::test]
async fn the_oldest_deks_of_others_go_when_there_are_too_many_and_none_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let store = DekStore::open(Arc::new(StateFolder::new(folder.path()))).await.unwrap();
    let own = number(0);
    store.keep(own, &wrapped());
    store.record(|history| history.adopted(own, 1, wrapped().versions()));
    let more = u16::try_from(MOST_KEPT).unwrap() + 9;
    for id in (1..=more).map(number) {
        store.keep(id, &wrapped());
    }
    assert_eq!(store.kept().len(), MOST_KEPT);
    assert!(store.find(own).is_some() && store.find(number(more)).is_some());
    assert!((1..=10).all(|id| store.find(number(id)).is_none()));
    assert!(store.find(number(11)).is_some());
}
