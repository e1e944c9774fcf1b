use std::num::NonZeroU64;

use super::*;
use crate::{
    budget::{Allowance, Breaching, Refused},
    policy::{BaselineLimit, Budget, Count, EgressLimits, Matcher, OnBreach, Quota, RateLimit, Storm, WorkloadBudget},
    units::{Percent, Rate, Size},
    watch::Over,
};

#[path = "verdict/release_tests.rs"]
mod releases;

const S: u64 = 1_000_000_000;
const A: ContainerId = ContainerId(1);
/// Seconds since 1970.
const WALL: i64 = 1_700_000_000;
const HOW: Containment = Containment::Block;
const GRACE: Duration = Duration::from_secs(7);
const CONTAIN: Contain = Contain { how: HOW, length: Duration::from_mins(1) };
const EVICT: Evict = Evict { after: Duration::from_secs(30), grace: Some(GRACE), leave: LEAVE };
const LEAVE: Leave = Leave::USUAL;

type Change = fn(&mut Node);

/// A node with one container, A; what is known of it at second 100.
struct Node {
    now: u64,
    mode: Mode,
    kill_switch: bool,
    watch: Watch,
    budgets: Budgets,
    policy: Option<Policy>,
    container: Container,
    relapses: Relapses,
    nothing: Option<Cow<'static, str>>,
    only_pods: bool,
    protect: Protect,
}

fn allowance(node: Budget, Budget { evictions, per }: Budget, storm: Storm) -> Allowance {
    let usual = crate::policy::Budgets::default();
    let workload = WorkloadBudget { evictions, per, ..usual.workload };
    Allowance { node, workload, cluster: usual.cluster, storm }
}

impl Node {
    /// Nothing is wrong.
    fn new() -> Self {
        let rate = RateLimit { rate: Rate::new(1).expect("a rate"), burst: Size::new(1).expect("a size") };
        let policy = Policy {
            name: "p".into(),
            matcher: Matcher::default(),
            count: Count::All,
            egress: EgressLimits {
                rate: Some(rate),
                quota: Some(Quota { bytes: rate.burst, per: Duration::from_hours(1) }),
                baseline: Some(BaselineLimit { factor: 1.0, floor: rate.rate, learn: Duration::from_hours(1) }),
                bypass: Some(rate),
            },
            ingress: Some(rate),
            on_breach: OnBreach { contain: Some(CONTAIN), evict: Some(EVICT) },
        };
        let one = NonZeroU64::MIN;
        let budget = Budget { evictions: one, per: Duration::from_hours(1) };
        let storm = Storm {
            workloads: one.saturating_add(1),
            pods: Percent::new(30).expect("a part"),
            per: Duration::from_mins(1),
        };
        Self {
            now: 100 * S,
            mode: Mode::Evict,
            kill_switch: false,
            watch: Watch::default(),
            budgets: Budgets::new(allowance(budget, budget, storm)),
            policy: Some(policy),
            container: container(A, "w"),
            relapses: Relapses::default(),
            nothing: None,
            only_pods: false,
            protect: Protect::default(),
        }
    }

    /// A breach of the rate is open, with signs of it in these seconds.
    fn breached(since: u64, last: u64) -> Self {
        Self::new().crossed(Limit::Rate, since, last)
    }

    fn crossed(mut self, limit: Limit, since: u64, last: u64) -> Self {
        let over = Over { figure: 9.0, allowed: 3.0 };
        assert!(self.watch.crossed(since * S, A, limit, over).is_some());
        self.watch.crossed(last * S, A, limit, over);
        self
    }

    fn held(mut self, since: u64, until: u64) -> Self {
        self.container.contained = Some(contained(since, until));
        self
    }

    fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    fn policy(&mut self) -> &mut Policy {
        self.policy.as_mut().expect("a policy")
    }

    fn on_breach(mut self, contain: Option<Contain>, evict: Option<Evict>) -> Self {
        self.policy().on_breach = OnBreach { contain, evict };
        self
    }

    fn decide(self) -> Verdict {
        let policy = self.policy.clone().map(Arc::new);
        decide(&self.world(&[Container { policy, ..self.container.clone() }]))
    }

    fn world<'a>(&'a self, containers: &'a [Container]) -> World<'a> {
        let Self { nothing, only_pods, protect, .. } = self;
        World {
            now: self.now,
            mode: self.mode,
            kill_switch: self.kill_switch,
            watch: &self.watch,
            budgets: &self.budgets,
            relapses: &self.relapses,
            dry_run: false,
            safety: Safety { nothing: nothing.as_ref(), only_pods: *only_pods, protect, wall: WALL },
            containers,
        }
    }
}

fn container(id: ContainerId, workload: &str) -> Container {
    Container {
        id,
        policy: None,
        workload: workload.into(),
        unit: None,
        pod: None,
        contained: None,
        released: None,
        eviction: None,
        paid: None,
    }
}

fn contained(since: u64, until: u64) -> Contained {
    Contained { how: HOW, since: since * S, until: until * S }
}

fn reason(limit: Limit, since: u64) -> Breach {
    Breach { container: A, limit, since: since * S, figure: 9.0, allowed: 3.0 }
}

fn contain(limit: Limit, since: u64) -> Action {
    Action::Contain { how: HOW, until: 160 * S, reason: reason(limit, since) }
}

fn evict(limit: Limit, since: u64) -> Action {
    Action::Evict { grace: Some(GRACE), leave: LEAVE, dry_run: false, reason: reason(limit, since) }
}

fn release(since: u64, until: u64, why: Release) -> Action {
    Action::Release { container: A, contained: contained(since, until), why }
}

fn declined(what: Mode, why: Refusal) -> Declined {
    Declined { what, reason: reason(Limit::Rate, 60), why }
}

/// Each: what it shows, the world, what is to be done.
fn check<const N: usize>(cases: [(&str, Node, Vec<Action>); N]) {
    for (name, node, actions) in cases {
        assert_eq!(node.decide(), Verdict { actions, declined: vec![] }, "{name}");
    }
}

#[test]
fn who_is_contained() {
    let rate = |since| contain(Limit::Rate, since);
    let no_evict = |node: Node| node.on_breach(Some(CONTAIN), None);
    check([
        ("nobody without a breach", Node::new(), vec![]),
        ("whoever breaches", Node::breached(100, 100), vec![rate(100)]),
        ("in mode contain too", Node::breached(100, 100).with(|n| n.mode = Mode::Contain), vec![rate(100)]),
        ("nobody in mode observe", Node::breached(100, 100).with(|n| n.mode = Mode::Observe), vec![]),
        ("nobody for ingress", Node::new().crossed(Limit::Ingress, 60, 100), vec![]),
        ("quota", no_evict(Node::new().crossed(Limit::Quota, 99, 100)), vec![contain(Limit::Quota, 99)]),
        ("baseline", no_evict(Node::new().crossed(Limit::Baseline, 99, 100)), vec![contain(Limit::Baseline, 99)]),
        (
            "for the first breach",
            Node::breached(99, 100).crossed(Limit::Quota, 98, 100),
            vec![contain(Limit::Quota, 98)],
        ),
        ("nobody without a policy", Node::breached(60, 100).with(|n| n.policy = None), vec![]),
        ("nobody if the policy says nothing", Node::breached(60, 100).on_breach(None, None), vec![]),
        ("nobody who is", Node::breached(95, 100).held(95, 155), vec![]),
        (
            "nobody for a limit that the policy no longer has",
            Node::breached(60, 100).with(|n| n.policy().egress.rate = None),
            vec![],
        ),
    ]);
}

#[test]
fn when_a_containment_ends() {
    let cases: [(&str, Change, Option<Release>); 12] = [
        ("not before its end", |_| {}, None),
        ("at its end", |n| n.now = 155 * S, Some(Release::Over)),
        (
            "though the breach holds",
            |n| *n = Node::breached(95, 154).held(95, 155).with(|n| n.now = 155 * S),
            Some(Release::Over),
        ),
        (
            "sooner by a shorter policy",
            |n| n.policy().on_breach.contain = Some(Contain { length: Duration::from_secs(5), ..CONTAIN }),
            Some(Release::Over),
        ),
        ("on the kill switch", |n| n.kill_switch = true, Some(Release::KillSwitch)),
        ("by the operator", |n| n.container.released = Some(95 * S), Some(Release::Operator)),
        ("not by an earlier release", |n| n.container.released = Some(95 * S - 1), None),
        ("in mode observe", |n| n.mode = Mode::Observe, Some(Release::Mode)),
        ("not in mode contain", |n| n.mode = Mode::Contain, None),
        ("without a policy", |n| n.policy = None, Some(Release::Policy)),
        ("without leave to contain", |n| n.policy().on_breach.contain = None, Some(Release::Policy)),
        (
            "not in another way",
            |n| {
                let how = Containment::Throttle(Rate::new(1).expect("a rate"));
                n.policy().on_breach.contain = Some(Contain { how, ..CONTAIN });
            },
            None,
        ),
    ];
    for (name, change, why) in cases {
        // With no breach, as a restarted agent may find it.
        let verdict = Node::new().held(95, 155).with(change).decide();
        let expected = why.map(|why| release(95, 155, why));
        assert_eq!(verdict, Verdict { actions: expected.into_iter().collect(), declined: vec![] }, "{name}");
    }
}

#[test]
fn who_is_evicted() {
    let both = || vec![contain(Limit::Rate, 60), evict(Limit::Rate, 60)];
    let held = || Node::breached(60, 100).held(60, 160);
    let due = || vec![evict(Limit::Rate, 60)];
    let state = |state| held().with(|n| n.container.eviction = Some(state));
    check([
        ("whoever breaches for long enough", held(), due()),
        ("contained first", Node::breached(60, 100), both()),
        ("and if there is no containment", Node::breached(60, 100).on_breach(None, Some(EVICT)), due()),
        ("from that instant on", Node::breached(70, 100).held(70, 130), vec![evict(Limit::Rate, 70)]),
        ("and not before", Node::breached(71, 100).held(71, 131), vec![]),
        ("not one that has stopped since", Node::breached(60, 89).held(60, 160).with(|n| n.now = 95 * S), vec![]),
        (
            "at once, if so told",
            Node::breached(100, 100).on_breach(None, Some(Evict { after: Duration::ZERO, ..EVICT })),
            vec![evict(Limit::Rate, 100)],
        ),
        ("not in mode contain", held().with(|n| n.mode = Mode::Contain), vec![]),
        ("not if the policy only contains", held().on_breach(Some(CONTAIN), None), vec![]),
        ("not for ingress", Node::new().crossed(Limit::Ingress, 60, 100).held(60, 160), vec![]),
        ("not twice at once", state(Eviction::Underway), vec![]),
        ("not twice", state(Eviction::Done), vec![]),
        ("again after a failure", state(Eviction::Failed { retry_at: 100 * S }), due()),
        ("but not too soon", state(Eviction::Failed { retry_at: 100 * S + 1 }), vec![]),
        ("not when it is let go", Node::breached(60, 100).held(40, 100), vec![release(40, 100, Release::Over)]),
        ("for what held longest", held().crossed(Limit::Quota, 50, 100), vec![evict(Limit::Quota, 50)]),
    ]);
}

#[test]
fn whom_the_operator_released() {
    let released = |at: u64| move |n: &mut Node| n.container.released = Some(at * S);
    check([
        ("is left alone", Node::breached(60, 100).with(released(60)), vec![]),
        (
            "for the breaches of that time only",
            Node::breached(60, 100).crossed(Limit::Quota, 90, 100).with(released(80)),
            vec![contain(Limit::Quota, 90)],
        ),
        ("and not for those after it", Node::breached(99, 100).with(released(98)), vec![contain(Limit::Rate, 99)]),
    ]);
}

#[test]
fn what_is_declined_and_why() {
    let held = || Node::breached(60, 100).held(60, 160);
    let spent = |node: &mut Node, workload: &str| {
        node.budgets.spend(50 * S, &workload.into()).expect("a budget");
    };
    let cases = [
        (
            "protected",
            held().with(|n| n.nothing = Some("there is nobody".into())),
            Refusal::Protected(Protection::Nothing("there is nobody".into())),
        ),
        ("node_budget", held().with(|n| spent(n, "v")), Refusal::Budget(Refused::Node)),
        (
            "workload_budget",
            held().with(|n| {
                let storm = Storm {
                    workloads: NonZeroU64::MAX,
                    pods: Percent::new(100).expect("a part"),
                    per: Duration::from_mins(1),
                };
                let [node, workload] = [2, 1].map(|evictions| Budget {
                    evictions: NonZeroU64::new(evictions).expect("not zero"),
                    per: Duration::from_hours(1),
                });
                n.budgets.allow(allowance(node, workload, storm));
                spent(n, "w");
            }),
            Refusal::Budget(Refused::Workload),
        ),
        (
            "storm",
            held().with(|n| {
                let both = ["w", "v"].map(Arc::from);
                let both = both.each_ref().map(|workload| Breaching { workload, pod: workload });
                assert!(n.budgets.breaching(100 * S, 100, both).is_some());
            }),
            Refusal::Budget(Refused::Storm),
        ),
    ];
    for (name, node, why) in cases {
        assert_eq!(why.name(), name);
        assert_eq!(node.decide(), Verdict { actions: vec![], declined: vec![declined(Mode::Evict, why)] }, "{name}");
    }
    // What is protected from eviction is contained all the same.
    let protected = Node::breached(60, 100).with(|n| n.nothing = Some("".into())).decide();
    assert_eq!(protected.actions, [contain(Limit::Rate, 60)]);
}

#[test]
fn the_kill_switch_declines_all_and_lifts_what_is() {
    let both = [Mode::Contain, Mode::Evict].map(|what| declined(what, Refusal::KillSwitch)).to_vec();
    let verdict = Node::breached(60, 100).with(|n| n.kill_switch = true).decide();
    assert_eq!(verdict, Verdict { actions: vec![], declined: both });
    let verdict = Node::breached(60, 100).held(60, 160).with(|n| n.kill_switch = true).decide();
    assert_eq!(verdict, Verdict { actions: vec![release(60, 160, Release::KillSwitch)], declined: vec![] });
}

#[test]
fn what_is_left_of_a_budget_goes_to_whoever_breached_first() {
    let node = Node::new().on_breach(None, Some(EVICT));
    let policy = node.policy.clone().map(Arc::new);
    let all: Vec<_> =
        [1, 2, 3].map(|id| Container { policy: policy.clone(), ..container(ContainerId(id), &id.to_string()) }).into();
    let mut watch = Watch::default();
    for (id, since) in [(1, 12), (2, 10), (3, 11)] {
        for at in [since, 100] {
            watch.crossed(at * S, ContainerId(id), Limit::Rate, Over { figure: 9.0, allowed: 3.0 });
        }
    }
    let node = Node { watch, ..node };
    let Verdict { actions, declined } = decide(&node.world(&all));
    assert_eq!(actions.iter().map(Action::container).collect::<Vec<_>>(), [ContainerId(2)]);
    let refused: Vec<_> = declined.iter().map(|it| (it.reason.container.0, it.why.clone())).collect();
    assert_eq!(refused, [3, 1].map(|id| (id, Refusal::Budget(Refused::Node))));
}

#[test]
fn what_the_kernel_does_by_itself() {
    let policy = Node::new().policy().clone();
    let none = Policy { on_breach: OnBreach::default(), ..policy.clone() };
    let unlimited = Policy { egress: EgressLimits { rate: None, ..policy.egress.clone() }, ..policy.clone() };
    let cases = [
        (&policy, Mode::Evict, false, false, Some(CONTAIN)),
        (&policy, Mode::Contain, false, false, Some(CONTAIN)),
        (&policy, Mode::Observe, false, false, None),
        (&policy, Mode::Evict, true, false, None),
        (&policy, Mode::Evict, false, true, None),
        (&none, Mode::Evict, false, false, None),
        (&unlimited, Mode::Evict, false, false, None),
    ];
    for (index, (case, mode, kill_switch, released, expected)) in cases.into_iter().enumerate() {
        assert_eq!(arm(case, mode, kill_switch, released), expected, "case {index}");
    }
}
