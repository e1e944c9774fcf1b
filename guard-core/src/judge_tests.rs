use std::path::Path;

use super::*;
use crate::{identity::Labels, watch::Closing};

const CONFIG: &str = "policies: [{name: limited, match: {pods: [a, b]}, egress: {rate: 1MB/s}}]";
const S: u64 = 1_000_000_000;

fn appear(judge: &mut Judge, id: u64, pod: &str) -> Vec<Effect> {
    let names = Labels { pod: pod.to_owned(), ..Labels::default() };
    judge.appeared(9 * S, ContainerId(id), Subject { names, ..Subject::default() }, pod.into())
}

#[test]
fn a_restarted_agent_goes_on_with_the_breaches_of_all_containers_that_are_there() {
    let settings = Settings::from(&Config::parse(CONFIG, Path::new("test.yaml")).expect("a config"));
    let mut earlier = Judge::new(settings.clone(), None);
    for (id, pod) in [(1, "a"), (2, "b"), (3, "a"), (4, "b")] {
        appear(&mut earlier, id, pod);
        let effects = earlier.crossed(5 * S, ContainerId(id), Limit::Rate, 2e6);
        assert!(matches!(effects[..], [Effect::Opened(_)]), "{effects:?}");
    }
    let mut judge = Judge::new(settings, None);
    assert_eq!(judge.restore(8 * S, earlier.save(), true), [""; 0]);
    // One after the other; one is another now, without a limit; one is no longer there.
    assert_eq!(appear(&mut judge, 1, "a"), []);
    assert_eq!(appear(&mut judge, 2, "b"), []);
    let [Effect::Closed(closed)] = appear(&mut judge, 3, "free")[..] else { panic!("it has no limit any more") };
    assert_eq!((closed.breach.container, closed.why), (ContainerId(3), Closing::Unlimited));
    let [Effect::Closed(closed)] = judge.settled(9 * S)[..] else { panic!("it is gone") };
    assert_eq!((closed.breach.container, closed.why), (ContainerId(4), Closing::Gone));
    assert_eq!(judge.open().map(|breach| breach.container.0).collect::<Vec<_>>(), [1, 2]);
}
