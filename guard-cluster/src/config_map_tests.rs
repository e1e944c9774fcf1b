use guard_core::fleet::{self, Ruling, Switch, World as Fleet};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use super::*;
use crate::mock::{self, Server, Stream, status};

const PATH: &str = "/api/v1/namespaces/guards/configmaps";

/// A watch of the ConfigMap in the namespace `guards`, and the API server in the test's hands.
struct World {
    server: Server,
    told: watch::Receiver<Told>,
    failures: IntCounter,
    task: JoinHandle<Infallible>,
}

impl Drop for World {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn map(version: &str, data: &Value) -> Value {
    let metadata = json!({"name": "egress-guard", "namespace": "guards", "resourceVersion": version});
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data})
}

fn on(version: &str) -> Value {
    map(version, &json!({"kill-switch": "on"}))
}

fn off(version: &str) -> Value {
    map(version, &json!({"kill-switch": "off"}))
}

impl World {
    fn new() -> Self {
        let (client, server) = mock::pair();
        let maps = ConfigMaps::new(client, "guards").expect("metrics");
        assert_eq!(maps.name(), "guards/egress-guard");
        let (told, failures) = (maps.told(), maps.failures.clone());
        Self { server, told, failures, task: tokio::spawn(maps.run()) }
    }

    async fn list(&mut self, version: &str, maps: &[Value]) {
        let asked = self.server.asked().await;
        assert_eq!((asked.path.as_str(), asked.query.get("watch")), (PATH, None), "{:?}", asked.query);
        assert_eq!(asked.query["fieldSelector"], "metadata.name%3Degress-guard");
        assert_eq!(asked.query.get("resourceVersion"), None, "a cache may be behind");
        let metadata = json!({"resourceVersion": version});
        asked.answer(200, &json!({"kind": "ConfigMapList", "apiVersion": "v1", "metadata": metadata, "items": maps}));
    }

    async fn watch(&mut self, version: &str) -> Stream {
        let asked = self.server.asked().await;
        assert_eq!((asked.path.as_str(), asked.query["watch"].as_str()), (PATH, "true"));
        assert_eq!(asked.query["fieldSelector"], "metadata.name%3Degress-guard");
        assert_eq!(asked.query["timeoutSeconds"], "60");
        assert_eq!(asked.query["allowWatchBookmarks"], "true");
        assert_eq!(asked.query["resourceVersion"], version);
        asked.stream()
    }

    fn ruling(&self) -> Ruling {
        let told = self.told.borrow().clone();
        let contact = told.contact(Instant::now());
        let path = std::path::Path::new("/none");
        fleet::rule(&Fleet { name: "guards/egress-guard", word: &told.word, contact: &contact, path, file: None })
    }

    /// Waits until this follows for the kill switch, and whether evictions may be.
    async fn rules(&mut self, switch: &str, evicts: bool) {
        let as_text = |ruling: &Ruling| match &ruling.switch {
            Switch::Engaged(who) => who.clone(),
            Switch::AsItWas => "as it was".into(),
            Switch::Released => "released".into(),
        };
        let waited = timeout(Duration::from_secs(2), async {
            loop {
                let ruling = self.ruling();
                if as_text(&ruling).starts_with(switch) && ruling.nothing.is_none() == evicts {
                    return;
                }
                self.told.changed().await.expect("the watch goes on");
            }
        });
        assert!(waited.await.is_ok(), "{:?} instead of {switch:?}, {evicts}", self.ruling());
    }
}

#[tokio::test(start_paused = true)]
async fn every_change_is_told_at_once() {
    let mut world = World::new();
    assert_eq!(world.told.borrow().word, Word::Unknown);
    world.rules("as it was", false).await;
    let config = map("4", &json!({"kill-switch": "off", "config.yaml": "mode: evict\n", "other": "x"}));
    world.list("5", &[config]).await;
    world.rules("released", true).await;
    let expected =
        Map { config: Some("mode: evict\n".into()), kill_switch: Some("off".into()), resource_version: "4".into() };
    assert_eq!(world.told.borrow().word, Word::Present(expected));
    let mut watch = world.watch("5").await;
    watch.tell("MODIFIED", &on("6")).await;
    world.rules("kill-switch: \"on\" in ConfigMap guards/egress-guard, resourceVersion 6", true).await;
    watch.tell("MODIFIED", &off("7")).await;
    world.rules("released", true).await;
    for (version, garbage) in [("8", "On"), ("9", ""), ("10", "off ")] {
        watch.tell("MODIFIED", &map(version, &json!({"kill-switch": garbage}))).await;
        world.rules(&format!("kill-switch: {garbage:?}"), true).await;
        watch.tell("MODIFIED", &off(version)).await;
        world.rules("released", true).await;
    }
    watch.tell("MODIFIED", &map("11", &json!({"config.yaml": ""}))).await;
    world.rules("no kill-switch", true).await;
    watch.tell("MODIFIED", &map("12", &Value::Null)).await;
    world.rules("no kill-switch in ConfigMap guards/egress-guard, resourceVersion 12", true).await;
}

#[tokio::test(start_paused = true)]
async fn a_map_that_is_deleted_and_made_again_is_followed() {
    let mut world = World::new();
    world.list("5", &[off("4")]).await;
    let mut watch = world.watch("5").await;
    watch.tell("DELETED", &off("6")).await;
    world.rules("as it was", false).await;
    assert_eq!(world.told.borrow().word, Word::Missing);
    watch.tell("ADDED", &on("7")).await;
    world.rules("kill-switch: \"on\"", true).await;
    drop(watch);
    // It ended at once, so it is listed again; and now there is none.
    world.list("8", &[]).await;
    world.rules("as it was", false).await;
    let mut watch = world.watch("8").await;
    watch.tell("ADDED", &off("9")).await;
    world.rules("released", true).await;
}

#[tokio::test(start_paused = true)]
async fn a_watch_goes_on_minute_by_minute_and_what_it_said_stays_fresh() {
    let mut world = World::new();
    world.list("5", &[off("4")]).await;
    let begun = Instant::now();
    let mut version = "5".to_owned();
    for round in 0..10u32 {
        let mut watch = world.watch(&version).await;
        sleep(Duration::from_secs(59)).await;
        if round == 3 {
            version = "90".into();
            let bookmark = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"resourceVersion": "90"}});
            watch.tell("BOOKMARK", &bookmark).await;
        }
        sleep(Duration::from_secs(1)).await;
        world.rules("released", true).await;
        drop(watch);
    }
    let _watch = world.watch(&version).await;
    assert!(begun.elapsed() < Duration::from_secs(601), "{:?}: no pause between two watches", begun.elapsed());
    assert_eq!(world.failures.get(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_version_that_is_too_old_is_another_list() {
    for in_watch in [true, false] {
        let mut world = World::new();
        world.list("5", &[off("4")]).await;
        let mut watch = world.watch("5").await;
        sleep(SHORT).await;
        if in_watch {
            watch.tell("ERROR", &status(410, "Expired")).await;
        } else {
            drop(watch);
            world.server.asked().await.refuse(410, "Expired");
        }
        let torn = Instant::now();
        world.list("9", &[on("8")]).await;
        assert!(torn.elapsed() <= Duration::from_secs(1), "{:?}", torn.elapsed());
        world.rules("kill-switch: \"on\"", true).await;
        let _watch = world.watch("9").await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_is_dead_without_a_word_is_noticed() {
    let mut world = World::new();
    world.list("5", &[on("4")]).await;
    let watch = world.watch("5").await;
    sleep(Duration::from_secs(64)).await;
    assert_eq!(world.told.borrow().contact(Instant::now()), Contact::Fresh);
    world.list("9", &[off("8")]).await;
    world.rules("released", true).await;
    drop(watch);
}

#[tokio::test(start_paused = true)]
async fn while_the_api_server_is_away_its_word_gets_old_and_it_is_asked_for_with_pauses() {
    let mut world = World::new();
    world.list("5", &[on("4")]).await;
    world.watch("5").await.tear();
    let (away, mut asked) = (Instant::now(), 0);
    while away.elapsed() < Duration::from_mins(10) {
        let request = world.server.asked().await;
        assert_eq!(request.query.get("watch"), None);
        request.fail();
        asked += 1;
        let expected = if away.elapsed() <= WINDOW { Contact::Fresh } else { Contact::Away };
        assert_eq!(world.told.borrow().contact(Instant::now()), expected, "{:?}", away.elapsed());
        assert!(matches!(world.ruling().switch, Switch::Engaged(_)), "it is not released");
    }
    assert!((40..=100).contains(&asked), "asked {asked} times in 10 minutes");
    world.rules("kill-switch: \"on\"", false).await;
    let back = Instant::now();
    world.list("9", &[off("8")]).await;
    world.rules("released", true).await;
    assert!(back.elapsed() <= Duration::from_secs(15), "{:?}", back.elapsed());
}

#[tokio::test(start_paused = true)]
async fn who_may_not_read_it_evicts_nothing_and_releases_nothing() {
    // Neither when the list is refused nor when only the watch is.
    for listed in [true, false] {
        let mut world = World::new();
        world.list("5", &[on("4")]).await;
        let watch = world.watch("5").await;
        world.rules("kill-switch: \"on\"", true).await;
        watch.tear();
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_mins(2) {
            if listed {
                world.list("9", &[on("4")]).await;
            }
            world.server.asked().await.refuse(403, "Forbidden");
            world.rules("kill-switch: \"on\"", false).await;
            assert_eq!(world.told.borrow().contact(Instant::now()), Contact::Denied("Forbidden".into()));
        }
        assert!(world.failures.get() <= 30, "{} attempts in two minutes", world.failures.get());
        world.list("9", &[off("8")]).await;
        let _watch = world.watch("9").await;
        world.rules("released", true).await;
    }
}

#[tokio::test(start_paused = true)]
async fn who_closes_every_watch_at_once_is_not_asked_without_a_pause() {
    let mut world = World::new();
    let begun = Instant::now();
    let mut lists = 0;
    while begun.elapsed() < Duration::from_mins(2) {
        world.list("5", &[off("4")]).await;
        drop(world.watch("5").await);
        lists += 1;
    }
    assert!(lists <= 30, "{lists} lists in two minutes");
    world.rules("released", true).await;
}

#[tokio::test(start_paused = true)]
async fn an_api_server_that_does_not_answer_is_given_up() {
    let mut world = World::new();
    let _unanswered = world.server.asked().await;
    world.list("5", &[off("4")]).await;
    let begun = Instant::now();
    let _unanswered = world.server.asked().await;
    world.list("6", &[on("5")]).await;
    assert!(begun.elapsed() <= PATIENCE + Duration::from_secs(1), "{:?}", begun.elapsed());
    world.rules("kill-switch: \"on\"", true).await;
}
