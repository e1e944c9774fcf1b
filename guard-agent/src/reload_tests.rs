use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use rustix::process::{Signal as Kill, getpid, kill_process};

use super::*;

const ONE: &str = "policies: [{name: one, match: {}}]\n";
const TWO: &str = "policies: [{name: two, match: {}}]\n";

/// A folder with the file `config.yaml`, removed at the end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("egress-guard-reload-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).expect("a folder");
        Self(path)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).expect("a file");
    }

    fn file(&self) -> PathBuf {
        self.path("config.yaml")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _gone = fs::remove_dir_all(&self.0);
    }
}

/// The name of the only policy.
fn name(config: Result<Config, ConfigError>) -> Result<String, String> {
    let name = |config: Config| config.policies.policies.first().map(|policy| policy.name.clone()).unwrap_or_default();
    config.map(name).map_err(|error| error.to_string())
}

fn open(file: &Path, asked: bool) -> (String, Reload) {
    let (config, reload) = Reload::open(file, asked).expect("a config");
    (name(Ok(config)).expect("a config"), reload)
}

/// What the next looks find: the first that sees a change waits for another to see the same.
fn looks(reload: &mut Reload) -> Option<Result<String, String>> {
    assert!(reload.look().is_none(), "one look is not enough");
    let found = reload.look().map(name);
    assert!(reload.look().is_none(), "it is said once");
    found
}

fn refused(reload: &Reload) -> Option<String> {
    reload.status().borrow().refused.clone()
}

#[tokio::test]
async fn a_file_that_is_renamed_over_is_read() {
    let folder = Folder::new("rename");
    folder.write("config.yaml", ONE);
    let (first, mut reload) = open(&folder.file(), true);
    assert_eq!((first.as_str(), looks(&mut reload)), ("one", None));
    folder.write("new", TWO);
    fs::rename(folder.path("new"), folder.file()).expect("renamed");
    assert_eq!(looks(&mut reload), Some(Ok("two".into())));
}

#[tokio::test]
async fn a_config_map_that_is_swapped_is_read() {
    let folder = Folder::new("swap");
    for (dir, text) in [("..2024_1", ONE), ("..2024_2", TWO)] {
        fs::create_dir(folder.path(dir)).expect("a folder");
        folder.write(&format!("{dir}/config.yaml"), text);
    }
    symlink("..2024_1", folder.path("..data")).expect("a link");
    symlink("..data/config.yaml", folder.file()).expect("a link");
    let (first, mut reload) = open(&folder.file(), true);
    assert_eq!(first, "one");
    symlink("..2024_2", folder.path("..data_tmp")).expect("a link");
    fs::rename(folder.path("..data_tmp"), folder.path("..data")).expect("swapped");
    fs::remove_dir_all(folder.path("..2024_1")).expect("removed");
    assert_eq!(looks(&mut reload), Some(Ok("two".into())));
}

#[tokio::test]
async fn a_broken_file_is_refused_once_and_mended_by_what_was_there_before() {
    let folder = Folder::new("broken");
    folder.write("config.yaml", ONE);
    let (_, mut reload) = open(&folder.file(), true);
    assert_eq!(refused(&reload), None);
    let since = reload.status().borrow().since;

    folder.write("config.yaml", "mode: off\n");
    let why = format!("{}:1:7: mode: \"off\" is not observe, contain or evict", folder.file().display());
    assert_eq!(looks(&mut reload), Some(Err(why.clone())));
    assert_eq!(refused(&reload), Some(why));
    assert!(reload.status().borrow().since > since);

    fs::write(folder.file(), [0xff]).expect("a file");
    let why = format!("the config file {} is not UTF-8: save it as such", folder.file().display());
    assert_eq!(looks(&mut reload), Some(Err(why)));

    folder.write("config.yaml", ONE);
    assert_eq!(looks(&mut reload), Some(Ok("one".into())));
    assert_eq!(refused(&reload), None);
}

#[tokio::test]
async fn a_file_that_is_touched_or_half_written_is_left_alone() {
    let folder = Folder::new("touched");
    folder.write("config.yaml", ONE);
    let (_, mut reload) = open(&folder.file(), true);
    folder.write("config.yaml", ONE);
    assert_eq!(looks(&mut reload), None);
    for passing in ["", "policies: [", &TWO[..9]] {
        folder.write("config.yaml", passing);
        assert!(reload.look().is_none(), "{passing:?} was there at one look only");
        folder.write("config.yaml", TWO);
        assert_eq!(reload.look().map(name), None);
        folder.write("config.yaml", ONE);
        assert_eq!(looks(&mut reload), None);
    }
}

#[tokio::test]
async fn a_file_that_comes_late_is_read_and_one_that_goes_is_refused() {
    let folder = Folder::new("late");
    let missing = Reload::open(&folder.file(), true).expect_err("no file").to_string();
    assert_eq!(missing, format!("there is no config file {}: make it, or leave out --config", folder.file().display()));

    let (nothing, mut reload) = open(&folder.file(), false);
    assert_eq!((nothing.as_str(), looks(&mut reload)), ("", None));
    folder.write("config.yaml", ONE);
    assert_eq!(looks(&mut reload), Some(Ok("one".into())));
    fs::remove_file(folder.file()).expect("removed");
    let gone = format!("the config file {} is gone: put it back", folder.file().display());
    assert_eq!(looks(&mut reload), Some(Err(gone)));
    folder.write("config.yaml", ONE);
    assert_eq!(looks(&mut reload), Some(Ok("one".into())));
}

/// The only test that waits: the signal reaches every `Reload` of the process.
#[tokio::test]
async fn a_change_is_seen_by_itself_and_a_signal_reads_what_has_not_changed() {
    let folder = Folder::new("wait");
    folder.write("config.yaml", ONE);
    let (_, mut reload) = open(&folder.file(), true);
    assert!(time::timeout(LOOK * 2, reload.changed()).await.is_err(), "nothing has changed");
    folder.write("config.yaml", TWO);
    let found = time::timeout(LOOK * 10, reload.changed()).await.expect("a change");
    assert_eq!(name(found), Ok("two".into()));
    kill_process(getpid(), Kill::HUP).expect("a signal");
    let found = time::timeout(LOOK / 2, reload.changed()).await.expect("an answer to the signal");
    assert_eq!(name(found), Ok("two".into()));
    // What the API server says holds, so that is what is read again.
    assert_eq!(told(&mut reload, Some(ONE)), Some(Ok("one".into())));
    kill_process(getpid(), Kill::HUP).expect("a signal");
    let found = time::timeout(LOOK / 2, reload.changed()).await.expect("an answer to the signal");
    assert_eq!(name(found), Ok("one".into()));
}

const NAME: &str = "ConfigMap guards/egress-guard, config.yaml";

/// The API server says this, or nothing that holds.
fn told(reload: &mut Reload, text: Option<&str>) -> Option<Result<String, String>> {
    reload.told(text.map(|text| (text, NAME.to_owned()))).map(name)
}

#[tokio::test]
async fn what_the_api_server_says_holds_over_a_file_that_lags_behind() {
    let folder = Folder::new("told");
    folder.write("config.yaml", ONE);
    let (_, mut reload) = open(&folder.file(), true);
    assert_eq!(reload.source(), folder.file());
    assert_eq!(told(&mut reload, None), None);
    // What it says is said once, and not said if it is in force.
    assert_eq!(told(&mut reload, Some(ONE)), None);
    assert_eq!(told(&mut reload, Some(TWO)), Some(Ok("two".into())));
    assert_eq!(told(&mut reload, Some(TWO)), None);
    assert_eq!(reload.source(), Path::new(NAME));
    // The file gets older versions, and this one, and none.
    for text in [Some("policies: []\n"), Some(TWO), Some("mode: [\n"), None] {
        match text {
            Some(text) => folder.write("config.yaml", text),
            None => fs::remove_file(folder.file()).expect("removed"),
        }
        assert_eq!(looks(&mut reload), None, "{text:?}");
    }
    folder.write("config.yaml", ONE);
    assert_eq!((looks(&mut reload), refused(&reload)), (None, None));
    // It falls silent: the file is what it was.
    assert_eq!(told(&mut reload, None), None);
    assert_eq!(looks(&mut reload), None);
}

#[tokio::test]
async fn while_the_api_server_is_silent_a_change_of_the_file_counts() {
    const THREE: &str = "policies: [{name: three, match: {}}]\n";
    let folder = Folder::new("silent");
    folder.write("config.yaml", ONE);
    let (_, mut reload) = open(&folder.file(), true);
    assert_eq!(told(&mut reload, Some(TWO)), Some(Ok("two".into())));
    assert_eq!(told(&mut reload, None), None);
    // It catches up: nothing has changed, and nothing flaps.
    folder.write("config.yaml", TWO);
    assert_eq!(looks(&mut reload), None);
    folder.write("config.yaml", THREE);
    assert_eq!(looks(&mut reload), Some(Ok("three".into())));
    assert_eq!(reload.source(), folder.file());
    // The API server is back, and knows of it; then of something else.
    assert_eq!(told(&mut reload, Some(THREE)), None);
    assert_eq!(told(&mut reload, Some(TWO)), Some(Ok("two".into())));
    assert_eq!(told(&mut reload, None), None);
    // Back to what was in force before.
    folder.write("config.yaml", ONE);
    assert_eq!(looks(&mut reload), Some(Ok("one".into())));
    assert_eq!(told(&mut reload, Some(TWO)), Some(Ok("two".into())), "it has the last word");
}

#[tokio::test]
async fn what_the_api_server_says_is_refused_as_the_file_is() {
    let folder = Folder::new("told-broken");
    folder.write("config.yaml", ONE);
    let (_, mut reload) = open(&folder.file(), true);
    let why = format!("{NAME}:1:7: mode: \"off\" is not observe, contain or evict");
    assert_eq!(told(&mut reload, Some("mode: off\n")), Some(Err(why.clone())));
    assert_eq!(refused(&reload), Some(why));
    assert_eq!(told(&mut reload, Some("mode: off\n")), None, "once");
    // Not by the file, as long as the API server's word holds.
    folder.write("config.yaml", TWO);
    assert_eq!(looks(&mut reload), None);
    assert_eq!(told(&mut reload, Some(ONE)), Some(Ok("one".into())));
    assert_eq!(refused(&reload), None);
}
