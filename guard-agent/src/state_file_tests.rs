use std::{os::unix::fs::PermissionsExt as _, thread};

use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};
use tempfile::TempDir;

use super::*;

type State = Vec<u64>;

const LOST: &str = "what was learned";

fn folder() -> TempDir {
    tempfile::tempdir().expect("a folder")
}

fn open(dir: &Path) -> StateFile {
    StateFile::open(dir).expect("a state file")
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).expect("the folder").map(|entry| entry.expect("an entry").file_name());
    let mut names: Vec<String> = entries.map(|name| name.into_string().expect("text")).collect();
    names.sort();
    names
}

fn mode(path: &Path) -> u32 {
    path.metadata().expect("it is there").permissions().mode() & 0o7777
}

#[test]
fn what_is_stored_is_loaded_by_the_next_agent() {
    let tmp = folder();
    let dir = tmp.path().join("lib/state");
    let file = open(&dir);
    assert_eq!(file.load::<State>(LOST), None, "nothing was stored");
    let (wall, boot) = (SystemTime::now(), clock::boottime());
    file.store(&vec![1_u64, 2]).expect("stored");
    file.store(&vec![3_u64]).expect("stored again");
    let loaded = open(&dir).load::<State>(LOST).expect("a state");
    assert_eq!((loaded.state, loaded.same_boot), (vec![3], true));
    assert!((wall..=SystemTime::now()).contains(&loaded.written), "{:?} is not now", loaded.written);
    assert!((boot..=clock::boottime()).contains(&loaded.at), "{} is not now", loaded.at);
    assert_eq!(names(&dir), [NAME]);
    assert_eq!((mode(&dir), mode(&dir.join(NAME))), (0o700, 0o600));
}

#[test]
fn another_boot_is_said() {
    let tmp = folder();
    let before = StateFile::open_in_boot(tmp.path(), "the boot before").expect("a state file");
    before.store(&vec![7_u64]).expect("stored");
    let loaded = open(tmp.path()).load::<State>(LOST).expect("a state");
    assert_eq!((loaded.state, loaded.same_boot), (vec![7], false));
}

#[test]
fn a_file_torn_at_any_byte_or_foreign_is_set_aside() {
    let tmp = folder();
    let (file, path) = (open(tmp.path()), tmp.path().join(NAME));
    file.store(&vec![1_u64, 2, 3]).expect("stored");
    let whole = fs::read(&path).expect("the file");
    let torn = (0..whole.len()).map(|end| whole[..end].to_vec());
    let foreign = [b"{}".to_vec(), vec![0; 100], [whole.as_slice(), b"x"].concat()];
    for bytes in torn.chain(foreign) {
        fs::write(&path, &bytes).expect("written");
        assert_eq!(file.load::<State>(LOST), None, "{bytes:?}");
        let [aside] = &names(tmp.path())[..] else { panic!("not only one file: {:?}", names(tmp.path())) };
        assert!(aside.starts_with(BAD), "{aside}");
        assert_eq!(fs::read(tmp.path().join(aside)).expect("set aside"), bytes);
        fs::remove_file(tmp.path().join(aside)).expect("removed");
    }
    file.store(&vec![4_u64]).expect("stored");
    assert_eq!(file.load::<State>(LOST).map(|loaded| loaded.state), Some(vec![4]));
}

#[test]
fn the_last_three_that_were_set_aside_are_kept() {
    let tmp = folder();
    for time in ["9", "10", "11", "12", "mine"] {
        fs::write(tmp.path().join(format!("{BAD}{time}")), time).expect("written");
    }
    fs::write(tmp.path().join(NAME), "now").expect("written");
    assert_eq!(open(tmp.path()).load::<State>(LOST), None);
    let names = names(tmp.path());
    assert_eq!(names.len(), 4, "{names:?}");
    for kept in ["11", "12", "mine"] {
        assert!(names.contains(&format!("{BAD}{kept}")), "{kept} is not in {names:?}");
    }
}

#[test]
fn an_agent_that_died_before_the_rename_leaves_the_old_state() {
    let tmp = folder();
    open(tmp.path()).store(&vec![1_u64]).expect("stored");
    fs::write(tmp.path().join(TEMPORARY), "half of the ne").expect("written");
    let loaded = open(tmp.path()).load::<State>(LOST).expect("a state");
    assert_eq!(loaded.state, [1]);
    assert_eq!(names(tmp.path()), [NAME]);
}

#[test]
fn a_folder_that_cannot_be_written_to_is_named_with_the_remedy() {
    let tmp = folder();
    let dir = tmp.path().join("state");
    let file = open(&dir);
    file.store(&vec![1_u64]).expect("stored");
    let nowhere = tmp.path().join("file");
    fs::write(&nowhere, "").expect("written");
    let error = StateFile::open(&nowhere.join("state")).expect_err("a file is no folder").to_string();
    assert!(error.starts_with(&format!("cannot make the state folder {}/state: ", nowhere.display())), "{error}");
    assert!(error.ends_with("; pass a --state-dir that the agent can write to"), "{error}");

    fs::set_permissions(&dir, fs::Permissions::from_mode(0o500)).expect("read-only");
    // Capabilities are a thread's own: in this one root, too, is refused.
    let refused = thread::scope(|scope| {
        let store = scope.spawn(|| {
            let none = CapabilitySet::empty();
            let sets = CapabilitySets { effective: none, permitted: none, inheritable: none };
            set_capabilities(None, sets).expect("given away");
            file.store(&vec![2_u64])
        });
        store.join().expect("no panic")
    });
    let error = refused.expect_err("the folder is read-only").to_string();
    assert_eq!(
        error,
        format!(
            "cannot write {}/{TEMPORARY}: Permission denied (os error 13); pass a --state-dir that the agent can write to",
            dir.display()
        )
    );
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)).expect("writable");
    assert_eq!(file.load::<State>(LOST).map(|loaded| loaded.state), Some(vec![1]), "the old one is there");
}

#[test]
fn a_write_that_fails_half_way_leaves_the_old_state_and_no_debris() {
    let tmp = folder();
    let file = open(tmp.path());
    file.store(&vec![1_u64]).expect("stored");
    // A device that is always full, in the place of the file that is to be written.
    std::os::unix::fs::symlink("/dev/full", tmp.path().join(TEMPORARY)).expect("a link");
    let error = file.store(&vec![2_u64]).expect_err("the disk is full").to_string();
    assert!(error.ends_with("No space left on device (os error 28); make room on that filesystem"), "{error}");
    assert_eq!(file.load::<State>(LOST).map(|loaded| loaded.state), Some(vec![1]));
    assert_eq!(names(tmp.path()), [NAME]);
}
