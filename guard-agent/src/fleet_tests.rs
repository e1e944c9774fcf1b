use super::*;
use crate::core::fleet::{Map, Switch};

/// A folder with the configuration and the kill switch, as a ConfigMap is mounted.
fn mounted() -> (tempfile::TempDir, Fleet) {
    let folder = tempfile::tempdir().expect("a folder");
    let fleet = begun(&folder);
    (folder, fleet)
}

fn begun(folder: &tempfile::TempDir) -> Fleet {
    let (_sender, snapshots) = watch::channel(std::sync::Arc::default());
    let metrics = Metrics::new(snapshots).expect("metrics");
    let identity = Identity { node: "n".into(), namespace: "guards".into(), pod: "p".into(), pod_uid: String::new() };
    begin(None, &identity, &folder.path().join("config.yaml"), &metrics).expect("a fleet")
}

fn write(folder: &tempfile::TempDir, text: &str) {
    fs::write(folder.path().join("kill-switch"), text).expect("a file");
}

fn rule(fleet: &mut Fleet, engaged: Option<SystemTime>) -> Switch {
    fleet.heard().rule(engaged).switch
}

fn is_engaged(switch: &Switch) -> bool {
    matches!(switch, Switch::Engaged(_))
}

#[tokio::test]
async fn a_file_counts_once_two_looks_have_seen_it() {
    let (folder, mut fleet) = mounted();
    let look = |fleet: &mut Fleet| {
        fleet.look();
        rule(fleet, None)
    };
    assert_eq!(look(&mut fleet), Switch::AsItWas, "no file says nothing");
    write(&folder, "on");
    assert_eq!(look(&mut fleet), Switch::AsItWas);
    assert!(is_engaged(&look(&mut fleet)));
    // Half written.
    write(&folder, "of");
    assert!(is_engaged(&look(&mut fleet)));
    write(&folder, "off");
    assert!(is_engaged(&look(&mut fleet)));
    assert_eq!(look(&mut fleet), Switch::Released);
    fs::write(folder.path().join("kill-switch"), [0xff]).expect("a file");
    look(&mut fleet);
    let unreadable = look(&mut fleet);
    assert!(
        matches!(&unreadable, Switch::Engaged(who) if who.ends_with("kill-switch cannot be read")),
        "{unreadable:?}"
    );
    fs::remove_file(folder.path().join("kill-switch")).expect("removed");
    look(&mut fleet);
    assert_eq!(look(&mut fleet), Switch::AsItWas);
}

#[tokio::test]
async fn only_a_file_that_was_written_since_releases_what_is_engaged() {
    let (folder, mut fleet) = mounted();
    write(&folder, "off");
    fleet.look();
    fleet.look();
    let now = SystemTime::now();
    assert_eq!(rule(&mut fleet, None), Switch::Released);
    assert_eq!(rule(&mut fleet, Some(now + Duration::from_mins(1))), Switch::AsItWas);
    assert_eq!(rule(&mut fleet, Some(now - Duration::from_mins(1))), Switch::Released);
}

#[tokio::test(start_paused = true)]
async fn a_file_that_is_there_at_the_start_counts_at_once() {
    let folder = tempfile::tempdir().expect("a folder");
    write(&folder, "on\n");
    let mut fleet = begun(&folder);
    assert!(is_engaged(&rule(&mut fleet, None)));
    // A change is heard of within two looks.
    write(&folder, "off");
    let begun = Instant::now();
    while is_engaged(&fleet.changed().await.expect("it is heard").rule(None).switch) {
        assert!(begun.elapsed() <= 2 * LOOK, "{:?}", begun.elapsed());
    }
}

#[test]
fn the_policy_file_of_the_api_server_holds_as_long_as_its_word_does() {
    let config = |contact: Contact, config: Option<&str>| {
        let map = Map { config: config.map(Into::into), ..Map::default() };
        let heard = Heard {
            name: "guards/egress-guard".into(),
            word: Word::Present(map),
            contact,
            path: PathBuf::new(),
            file: None,
        };
        heard.config().map(|(text, name)| (text.to_owned(), name))
    };
    let expected = ("mode: evict\n".to_owned(), "ConfigMap guards/egress-guard, config.yaml".to_owned());
    assert_eq!(config(Contact::Fresh, Some("mode: evict\n")), Some(expected));
    assert_eq!(config(Contact::Fresh, None), None);
    assert_eq!(config(Contact::Away, Some("mode: evict\n")), None);
    assert_eq!(config(Contact::Denied(String::new()), Some("mode: evict\n")), None);
}
