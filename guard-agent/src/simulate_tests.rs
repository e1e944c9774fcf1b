use guard_common::Totals;

use super::*;
use crate::core::{
    breach::ContainerId,
    policy::Subject,
    trace::{self, Header, Record, Sample, Writer},
};

const S: u64 = 1_000_000_000;

const CONFIG: &str = "
mode: contain
policies:
  - name: quiet
    match: {pods: [quiet]}
    egress: {baseline: {factor: 10, floor: 1MB/s, learn: 1h}}
  - name: rest
    match: {namespaces: [prod]}
    egress: {rate: 100KB/s, burst: 500KB}
    onBreach: {contain: {throttle: 50KB/s, for: 30s}, evict: {after: 20s}}
";

fn config(text: &str) -> Config {
    Config::parse(text, Path::new("limits.yaml")).expect("a config")
}

/// Three containers for 45 seconds, of which one sends 400 KB/s and another moves nothing.
fn trace() -> Vec<u8> {
    let mut bytes = Vec::new();
    // 2026-01-02T03:04:05Z
    let header = Header { wall: 1_767_323_045 * S, at: 100 * S };
    let mut writer = Writer::new(header, &mut bytes);
    let mut write = |record| writer.write(&record, &mut bytes).expect("a record in order");
    for (id, namespace, pod) in [(1, "prod", "loud"), (2, "", "quiet"), (3, "dev", "none")] {
        let names = Labels { namespace: namespace.to_owned(), pod: pod.to_owned(), container: "main".to_owned() };
        let subject = Subject { names, ..Subject::default() };
        let (id, workload, totals) = (ContainerId(id), String::new(), Totals::default());
        write(Record::Appears(trace::Container { id, subject, workload, totals }));
    }
    for second in 1..=45 {
        let mut sent = Totals::default();
        sent.egress.bytes[1] = 400_000;
        let moved = vec![(ContainerId(1), sent), (ContainerId(2), Totals::default())];
        write(Record::Sample(Sample { at: (100 + second) * S, moved }));
    }
    bytes
}

/// Runs it on these bytes.
fn simulated(bytes: &[u8], config: &Config) -> Result<Simulated> {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("node.trace");
    fs::write(&file, bytes).expect("written");
    run(&file, config)
}

fn lines(text: &str) -> Vec<String> {
    text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
}

#[test]
fn who_when_which_limit_and_what_would_have_been_done() {
    let config = config(CONFIG);
    let Simulated { report, notice } = simulated(&trace(), &config).expect("a report");
    assert_eq!(notice, None);
    let expected = [
        "OPENED CLOSED CONTAINER POLICY LIMIT FIGURE ALLOWED WOULD HAVE BEEN DONE",
        "2026-01-02T03:04:07Z after 30s: released prod/loud/main rest rate 400.0 kB/s 100.0 kB/s \
         at once throttled to 50KB/s for 30s",
        "after 30s released: its time was over",
        "2026-01-02T03:04:39Z still open prod/loud/main rest rate 400.0 kB/s 100.0 kB/s \
         at once throttled to 50KB/s for 30s",
        "",
        "45 samples of 3 containers over 44s, 2026-01-02T03:04:06Z to 2026-01-02T03:04:50Z",
        "mode contain",
        "",
        "POLICY CONTAINERS RATE QUOTA BASELINE INGRESS CONTAINED EVICTED DECLINED DROPPED",
        "quiet 1 0 0 0 0 0 0 0 0 B",
        "rest 1 2 0 0 0 2 0 0 14.3 MB",
        "(no policy) 1 0 0 0 0 0 0 0 0 B",
        "",
        "containers that never had a baseline (1): the trace does not watch their workloads for as long as their \
         policy's `learn`",
    ];
    assert_eq!(lines(&text(&report, &config)), expected);
}

#[test]
fn what_is_not_done_is_said_with_its_reason() {
    let mut config = config(&CONFIG.replace("mode: contain", "mode: evict\nkillSwitch: true"));
    let report = simulated(&trace(), &config).expect("a report").report;
    let said = lines(&text(&report, &config));
    for line in [
        "killSwitch is true: nothing would have been contained or evicted",
        "not contained (1): killSwitch is true",
        "not evicted (1): killSwitch is true",
    ] {
        assert!(said.iter().any(|said| said == line), "{line:?} is not in {said:#?}");
    }
    (config.kill_switch, config.policies.mode) = (false, Mode::Observe);
    let report = simulated(&trace(), &config).expect("a report").report;
    let said = text(&report, &config);
    assert!(said.contains("still open"), "{said}");
    assert!(said.contains("kB/s  nothing ") && said.contains("--mode contain or --mode evict"), "{said}");
}

#[test]
fn programs_get_the_same() {
    let config = config(CONFIG);
    let json = json(&simulated(&trace(), &config).expect("a report").report, &config);
    let [first, second] = &json["breaches"].as_array().expect("a list")[..] else { panic!("{json:#}") };
    assert_eq!(
        *first,
        serde_json::json!({
            "opened": "2026-01-02T03:04:07.000Z",
            "closed": "2026-01-02T03:04:37.000Z",
            "closed_because": "released",
            "namespace": "prod",
            "pod": "loud",
            "container": "main",
            "policy": "rest",
            "limit": "rate",
            "figure": 400_000.0,
            "allowed": 100_000.0,
            "done": [
                {
                    "at": "2026-01-02T03:04:07.000Z",
                    "action": "contained",
                    "how": {"throttle": 50_000},
                    "until": "2026-01-02T03:04:37.000Z",
                },
                {"at": "2026-01-02T03:04:37.000Z", "action": "released", "why": "over"},
            ],
        })
    );
    assert!(second["closed"].is_null(), "{second:#}");
    assert_eq!(json["policies"][1]["breaches"]["rate"], 2);
    assert_eq!(json["containers"][1]["baseline_unlearned"], true);
}

#[test]
fn what_is_whole_of_a_trace_is_used() {
    let (config, whole) = (config(CONFIG), trace());
    let Simulated { report, notice } = simulated(&whole[..whole.len() - 1], &config).expect("a report");
    assert_eq!(report.samples, 44);
    let notice = notice.expect("it says so");
    assert!(notice.contains("node.trace: the trace breaks off"), "{notice}");

    let mut damaged = whole;
    let last = damaged.len() - 1;
    damaged[last] ^= 1;
    let Simulated { report, notice } = simulated(&damaged, &config).expect("a report");
    assert_eq!(report.samples, 44);
    let notice = notice.expect("it says so");
    assert!(notice.contains("node.trace: the trace is damaged at byte"), "{notice}");
}

#[test]
fn what_cannot_be_used_is_said_with_the_remedy() {
    let config = config(CONFIG);
    let message = |result: Result<Simulated>| format!("{:#}", result.expect_err("no report"));
    let missing = message(run(Path::new("/nowhere/node.trace"), &config));
    assert!(missing.contains("/nowhere/node.trace") && missing.contains("guard-agent record"), "{missing}");
    let foreign = message(simulated(b"{\"json\": true}", &config));
    assert!(foreign.contains("node.trace: not a trace"), "{foreign}");
    let empty = message(simulated(&trace()[..40], &config));
    assert!(empty.contains("node.trace has no sample (") && empty.contains("record for longer"), "{empty}");
}
