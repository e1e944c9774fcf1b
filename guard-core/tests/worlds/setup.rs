//! What a world begins with: settings made of random bits, and what is normal for its workloads.

use std::{num::NonZeroU64, sync::Arc, sync::LazyLock, time::Duration};

use guard_common::{Class, Totals};
use guard_core::{
    breach::ContainerId,
    budget::Allowance,
    identity::Labels,
    judge::{About, Judge, Means, Settings},
    overrides::Overrides,
    policy::{
        BaselineLimit, Budget, Budgets, Contain, Containment, Count, EgressLimits, Evict, Matcher, Mode, OnBreach,
        Policies, Policy, Quota, RateLimit, Storm, Subject, WorkloadBudget,
    },
    safety::{Leave, Protect},
    units::{Percent, Rate, Size},
};

/// A second.
pub(crate) const S: u64 = 1_000_000_000;

pub(crate) const WORKLOADS: [&str; 4] = ["w0", "w1", "w2", "w3"];

pub(crate) const MODES: [Mode; 8] =
    [Mode::Evict, Mode::Evict, Mode::Evict, Mode::Evict, Mode::Evict, Mode::Contain, Mode::Contain, Mode::Observe];

/// Bytes per second that are normal for all workloads ...
pub(crate) const NORMAL: u64 = 10_000;
/// ... that use up the quota in some seconds and are mostly no breach of the baseline ...
pub(crate) const MUCH: u64 = 600_000;
/// ... and that are more than a hundred times the normal.
pub(crate) const FAR_TOO_MUCH: u64 = 10_000_000;

const QUOTA: Quota = Quota { bytes: size(3_000_000), per: Duration::from_mins(1) };
const BASELINE: BaselineLimit = BaselineLimit { factor: 100.0, floor: rate(100_000), learn: Duration::from_secs(30) };
const BUCKET: RateLimit = RateLimit { rate: rate(1_000_000), burst: size(1) };

/// What an agent of another boot left: it had learned what is normal for the workloads.
pub(crate) static LEARNED: LazyLock<String> = LazyLock::new(|| {
    let mut judge = Judge::new(settings([0, 0, 0], 0, Mode::Observe), Means::default());
    for (id, workload) in (1..).map(ContainerId).zip(WORKLOADS) {
        judge.appeared(S, id, About::on_its_own(subject(0), workload.into()));
    }
    for second in 2..100 {
        let moved = (1..=4).map(|id| (ContainerId(id), sent(NORMAL, 0)));
        assert_eq!(judge.sample(second * S, S, moved), [], "it is normal");
    }
    assert!(judge.allowed(ContainerId(1)).is_some_and(|allowed| allowed > MUCH as f64), "it is learned");
    serde_json::to_string(&judge.save()).expect("JSON")
});

const fn rate(bytes_per_second: u64) -> Rate {
    Rate::new(bytes_per_second).expect("a rate")
}

const fn size(bytes: u64) -> Size {
    Size::new(bytes).expect("a size")
}

pub(crate) fn sent(bytes: u64, dropped: u64) -> Totals {
    let mut totals = Totals::default();
    totals.egress.bytes[Class::External as usize] = bytes;
    totals.egress.other = dropped;
    totals
}

/// A container for which the policy of this index holds, if there is one.
pub(crate) fn subject(policy: usize) -> Subject {
    Subject { names: Labels::default(), labels: [label(policy)].into(), ..Subject::default() }
}

fn label(policy: usize) -> (String, String) {
    ("policy".to_owned(), policy.to_string())
}

fn bit(bits: u16, index: u32) -> bool {
    bits >> index & 1 == 1
}

pub(crate) fn policy(index: usize, bits: u16) -> Arc<Policy> {
    let pick = |from: [u64; 4], index: u32| Duration::from_secs(from[usize::from(bits >> index & 3)]);
    let how = if bit(bits, 4) { Containment::Block } else { Containment::Throttle(rate(1000)) };
    let contain = Contain { how, length: pick([5, 30, 60, 600], 7) };
    let min_age = Duration::from_secs(if bit(bits, 15) { 60 } else { 0 });
    let leave = Leave { unmanaged: bit(bits, 13), daemon_sets: bit(bits, 14), min_age, ..Leave::default() };
    let grace = bit(bits, 10).then_some(Duration::from_secs(1));
    let evict = Evict { after: pick([0, 3, 10, 30], 9), grace, leave };
    Arc::new(Policy {
        name: index.to_string(),
        matcher: Matcher { labels: [label(index)].into(), ..Matcher::default() },
        count: Count::External,
        egress: EgressLimits {
            rate: (!bit(bits, 0)).then_some(BUCKET),
            quota: (!bit(bits, 1)).then_some(QUOTA),
            baseline: (!bit(bits, 2)).then_some(BASELINE),
            bypass: None,
        },
        ingress: (!bit(bits, 3)).then_some(BUCKET),
        on_breach: OnBreach {
            // Three of four.
            contain: (bits >> 5 & 3 != 3).then_some(contain),
            evict: (bits >> 11 & 3 != 3).then_some(evict),
        },
    })
}

pub(crate) fn allowance(bits: u16) -> Allowance {
    let number = |index: u32, most: u16| NonZeroU64::new(u64::from(bits >> index & 7) % u64::from(most) + 1);
    let number = |index, most| number(index, most).expect("at least one");
    let per = |index: u32| Duration::from_secs([30, 300, 1000, 3600][usize::from(bits >> index & 3)]);
    let Budgets { workload, cluster, .. } = Budgets::default();
    let pods = [100, 40, 60, 30][usize::from(bits >> 3 & 3)];
    let pods = Percent::new(pods).expect("a part");
    Allowance {
        node: Budget { evictions: number(0, 4), per: per(3) },
        workload: WorkloadBudget { evictions: number(5, 3), per: per(8), ..workload },
        cluster,
        storm: Storm { workloads: number(10, 4).saturating_add(1), pods, per: per(13) },
    }
}

pub(crate) fn settings(policies: [u16; 3], budgets: u16, mode: Mode) -> Settings {
    let policies = policies.into_iter().enumerate().map(|(index, bits)| policy(index, bits)).collect();
    Settings {
        policies: Policies { mode, policies },
        allowance: allowance(budgets),
        protect: Protect::default(),
        overrides: Overrides::default(),
        dry_run: false,
    }
}
