use super::*;

#[test]
fn a_release_lasts_until_the_breaches_of_its_time_are_over() {
    let mut node = Node::breached(60, 100).crossed(Limit::Ingress, 60, 100);
    assert!(!node.container.is_released(&node.watch), "not released at all");
    node.container.released = Some(80 * S);
    assert!(node.container.is_released(&node.watch));
    node.watch.sample(110 * S, []);
    assert!(!node.container.is_released(&node.watch), "the breach is over");
    node.watch.crossed(111 * S, A, Limit::Rate, Over { figure: 9.0, allowed: 3.0 });
    assert!(!node.container.is_released(&node.watch), "another breach");
}

#[test]
fn a_workload_breaches_by_egress_only() {
    let containers = [container(A, "w"), container(ContainerId(2), "v")];
    let count =
        |node: Node| breaching(&node.watch, &containers).map(|container| &*container.workload).collect::<Vec<_>>();
    assert_eq!(count(Node::breached(1, 1)), ["w"]);
    assert!(count(Node::new().crossed(Limit::Ingress, 1, 1)).is_empty());
}
