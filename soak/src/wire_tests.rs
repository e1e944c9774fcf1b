use super::*;

const UDP: Count = Count { bytes: 1_028_000, packets: 1000 };

fn plus(count: Count, bytes: u64, packets: u64) -> Count {
    count + Count { bytes, packets }
}

fn stack(connections: u64, resets: u64, icmp: u64) -> Stack {
    Stack { connections, resets, icmp }
}

fn agree(wire: Count, metered: Count, stack: Stack, lost: u64) -> bool {
    compare(Direction::Egress, wire, metered, stack, lost).is_ok()
}

#[test]
fn without_tcp_one_byte_or_one_packet_is_too_much() {
    let none = Stack::default();
    assert!(agree(UDP, UDP, none, 0));
    assert!(!agree(plus(UDP, 1, 0), UDP, none, 0));
    assert!(!agree(UDP, plus(UDP, 1, 0), none, 0));
    assert!(!agree(plus(UDP, 52, 1), UDP, none, 0), "no connection, so no last ACK");
    assert!(!agree(UDP, plus(UDP, 1028, 1), none, 0), "a datagram that was counted twice");
    assert!(!agree(plus(UDP, 1028, 1), UDP, none, 0), "a datagram that was not counted");
}

#[test]
fn each_connection_may_have_a_last_ack_and_its_repetition_but_nothing_else() {
    let three = stack(3, 0, 0);
    for acks in 0..=6 {
        assert!(agree(plus(UDP, 52 * acks, acks), UDP, three, 0), "{acks}");
    }
    assert!(!agree(plus(UDP, 52 * 7, 7), UDP, three, 0), "more than two each");
    assert!(!agree(plus(UDP, 1028, 1), UDP, three, 0), "a datagram is no ACK");
    assert!(!agree(plus(UDP, 53, 1), UDP, three, 0), "one byte more than an ACK has");
    assert!(!agree(plus(UDP, 52, 0), UDP, three, 0), "bytes without a packet");
    assert!(!agree(UDP, plus(UDP, 28, 1), three, 0), "more was metered than is on the wire");
}

#[test]
fn resets_and_icmp_are_known_to_the_stack() {
    assert!(agree(plus(UDP, 80, 2), UDP, stack(0, 2, 0), 0));
    assert!(!agree(plus(UDP, 120, 3), UDP, stack(0, 2, 0), 0));
    assert!(!agree(plus(UDP, 39, 1), UDP, stack(0, 1, 0), 0));
    assert!(agree(plus(UDP, 156, 1), UDP, stack(0, 0, 1), 0));
    assert!(!agree(plus(UDP, 156, 1), UDP, stack(0, 1, 0), 0), "too large for a reset");
}

#[test]
fn what_a_queue_dropped_may_be_missing_on_the_wire_and_no_more() {
    assert!(agree(UDP, plus(UDP, 2 * 1028, 2), Stack::default(), 2));
    assert!(!agree(UDP, plus(UDP, 3 * 1028, 3), Stack::default(), 2));
    assert!(!agree(UDP, plus(UDP, 1501, 1), Stack::default(), 1), "larger than a packet may be");
    assert!(!agree(plus(UDP, 1, 0), UDP, Stack::default(), 2), "what is lost adds no bytes");
}

#[test]
fn the_other_way_a_fin_may_find_no_socket() {
    let ingress = |wire, metered, stack| compare(Direction::Ingress, wire, metered, stack, 0).is_ok();
    assert!(ingress(UDP, UDP, Stack::default()));
    assert!(ingress(plus(UDP, 52, 1), UDP, stack(1, 0, 0)));
    assert!(!ingress(plus(UDP, 61, 1), UDP, stack(1, 0, 0)));
    assert!(!ingress(plus(UDP, 52, 1), UDP, Stack::default()));
    assert!(!ingress(UDP, plus(UDP, 52, 1), stack(1, 0, 0)), "metered and not received");
}

#[test]
fn bytes_alone_are_bounded_by_the_connections() {
    let bytes = |wire, metered, stack, lost| compare_bytes(wire, metered, stack, lost).is_ok();
    assert!(bytes(UDP, UDP.bytes, Stack::default(), 0));
    assert!(!bytes(UDP, UDP.bytes - 1, Stack::default(), 0));
    assert!(!bytes(UDP, UDP.bytes + 1, stack(9, 9, 0), 0), "the meters have a byte that no wire has");
    assert!(bytes(plus(UDP, 104, 2), UDP.bytes, stack(1, 0, 0), 0));
    assert!(!bytes(plus(UDP, 105, 2), UDP.bytes, stack(1, 0, 0), 0));
    assert!(bytes(UDP, UDP.bytes + 1028, Stack::default(), 1));
}

#[test]
fn a_disagreement_shows_both_figures() {
    let error = compare(Direction::Egress, plus(UDP, 1028, 1), UDP, Stack::default(), 0).expect_err("a byte too many");
    let text = error.to_string();
    assert!(text.contains("1029028") && text.contains("1028000") && text.contains("1 packets of 1028 bytes"), "{text}");
}
