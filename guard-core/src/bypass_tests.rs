use proptest::prelude::*;

use super::*;

const S: u64 = 1_000_000_000;

/// A pod, with what its interface and its meters would say now.
#[derive(Clone, Copy, Debug, Default)]
struct World {
    now: u64,
    uplink: Uplink,
    metered: Totals,
    /// Sent past the meters.
    bypassed: u64,
    /// What nothing but the documented bound gives away: headers of segments, what was lost, what nobody's socket took.
    excused: u64,
}

/// Something that happens.
#[derive(Clone, Copy, Debug)]
enum Event {
    /// Plain packets of this size, this many.
    Sends(u64, u64),
    /// Of a datagram in fragments the meter may miss a header of 48 bytes in 1,280.
    Fragments(u64),
    /// A super-packet of so many segments with this payload each.
    Segments(u64, u64),
    /// Counted by the meter, and lost before it came to the interface.
    Lost(u64),
    /// Received by a socket; so many segments coalesced into one.
    Receives(u64, u64),
    /// Received by nobody and answered by the kernel, or forwarded.
    Answered(u64, u64),
    /// The same, while so many raw sockets take a copy of each.
    Copied(u64, u64, u64),
    /// For a group, of which so many sockets are.
    Shared(u64, u64, u64),
    /// Received by nobody, and an error comes back that holds all of it.
    Refused(u64, u64),
    /// Dropped by a containment: neither counts it.
    Held(u64),
    /// Through `AF_PACKET`.
    Bypasses(u64, u64),
    /// Nothing, for so many milliseconds, but what the kernel sends by itself.
    Passes(u64),
    /// The meters are read so many events after the interface.
    Read(usize),
}

impl World {
    fn happens(&mut self, event: Event) {
        let out = |frames: &mut Frames, bytes: u64, packets: u64| {
            *frames += Frames { bytes: bytes + packets * ETHERNET, packets };
        };
        // A packet takes its time on the fastest wire that is believed in.
        let before = self.uplink.sent.bytes + self.uplink.received.bytes + bytes(&self.metered.egress);
        let (sent, received) = (&mut self.metered.egress, &mut self.metered.ingress);
        match event {
            Event::Sends(size, count) => {
                sent.bytes[0] += size * count;
                sent.packets[0] += count;
                out(&mut self.uplink.sent, size * count, count);
            }
            Event::Fragments(count) => {
                sent.bytes[1] += 1232 * count;
                sent.packets[1] += 1;
                out(&mut self.uplink.sent, 1280 * count, count);
            }
            Event::Segments(count, payload) => {
                sent.bytes[1] += count * (payload + 52);
                sent.packets[1] += count;
                self.excused += (count - 1) * 52;
                out(&mut self.uplink.sent, count * payload + 52, 1);
            }
            Event::Lost(size) => {
                sent.bytes[0] += size;
                self.excused += size;
            }
            Event::Receives(count, payload) => {
                received.bytes[1] += count * (payload + 72);
                received.packets[1] += count;
                // What GRO hides of the headers may hide answers.
                self.excused += count * HEADERS + ETHERNET + ERROR;
                out(&mut self.uplink.received, count * payload + 72, 1);
            }
            Event::Answered(size, count) => {
                out(&mut self.uplink.received, size * count, count);
                out(&mut self.uplink.sent, size * count, count);
                self.excused += count * (ETHERNET + ERROR);
            }
            Event::Copied(size, count, sockets) => {
                received.bytes[1] += size * count * sockets;
                received.packets[1] += count * sockets;
                received.other += size * count * sockets;
                out(&mut self.uplink.received, size * count, count);
                out(&mut self.uplink.sent, size * count, count);
                self.excused += count * (ETHERNET + ERROR + sockets * HEADERS);
            }
            Event::Shared(size, count, sockets) => {
                received.bytes[0] += size * count * sockets;
                received.packets[0] += count * sockets;
                received.other += size * count * sockets;
                out(&mut self.uplink.received, size * count, count);
                self.excused += count * (size + ETHERNET + ERROR + sockets * HEADERS);
            }
            Event::Refused(size, count) => {
                out(&mut self.uplink.received, size * count, count);
                out(&mut self.uplink.sent, (size + ERROR) * count, count);
                self.excused += count * ETHERNET;
            }
            Event::Held(size) => sent.other += size,
            Event::Bypasses(size, count) => {
                out(&mut self.uplink.sent, size * count, count);
                self.bypassed += size * count;
            }
            Event::Passes(millis) => {
                self.now += millis * 1_000_000;
                // ARP, now and then.
                let noise = millis * NOISE / 1000;
                out(&mut self.uplink.sent, noise, 0);
            }
            Event::Read(_) => {}
        }
        let after = self.uplink.sent.bytes + self.uplink.received.bytes + bytes(&self.metered.egress);
        self.now += (after - before).div_ceil(FASTEST);
    }
}

/// What is told of a world in which all this happens, reading by reading, and the world at each.
fn run(events: &[Event]) -> Vec<(u64, World, Reading)> {
    let (mut world, mut seen, mut gap) = (World { now: 1000 * S, ..World::default() }, World::default(), None);
    let mut told = Vec::new();
    let mut at = 0;
    while at < events.len() {
        let Event::Read(later) = events[at] else {
            world.happens(events[at]);
            at += 1;
            continue;
        };
        let (uplink, before) = (world.uplink, world.now);
        let until = (at + 1 + later).min(events.len());
        events[at + 1..until].iter().for_each(|event| world.happens(*event));
        at = until;
        let moved = world.metered - seen.metered;
        let reading = Reading { at: world.now, skew: world.now - before, uplink, moved };
        let received: u64 = moved.ingress.bytes.iter().sum();
        world.excused += received.min(reading.skew * FASTEST);
        seen = world;
        match &mut gap {
            None => gap = Some(Gap::new(&reading)),
            Some(gap) => told.push((gap.take(&reading).expect("they can be compared"), world, reading)),
        }
    }
    told
}

fn ordinary() -> impl Strategy<Value = Event> {
    let read = (0..12_usize).prop_map(Event::Read);
    prop_oneof![
        4 => (20..1500_u64, 1..2000_u64).prop_map(|(size, count)| Event::Sends(size, count)),
        1 => (2..4000_u64).prop_map(Event::Fragments),
        4 => (2..64_u64, 100..1448_u64).prop_map(|(count, payload)| Event::Segments(count, payload)),
        1 => (20..100_000_u64).prop_map(Event::Lost),
        4 => (1..64_u64, 0..1428_u64).prop_map(|(count, payload)| Event::Receives(count, payload)),
        2 => (40..1500_u64, 1..2000_u64).prop_map(|(size, count)| Event::Answered(size, count)),
        1 => (40..1500_u64, 1..2000_u64, 1..4_u64).prop_map(|(size, count, of)| Event::Copied(size, count, of)),
        1 => (40..1500_u64, 1..2000_u64, 1..9_u64).prop_map(|(size, count, of)| Event::Shared(size, count, of)),
        1 => (40..1232_u64, 1..1000_u64).prop_map(|(size, count)| Event::Refused(size, count)),
        1 => (20..100_000_u64).prop_map(Event::Held),
        2 => (0..2000_u64).prop_map(Event::Passes),
        4 => read,
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    #[test]
    fn ordinary_traffic_is_never_told(events in prop::collection::vec(ordinary(), 1..200)) {
        for (told, world, _) in run(&events) {
            prop_assert_eq!(told, 0, "{:?}", world);
        }
    }

    #[test]
    fn what_is_told_was_sent_and_what_was_sent_is_told_but_for_the_bound(
        events in prop::collection::vec(
            prop_oneof![4 => ordinary(), 1 => (14..1500_u64, 1..3000_u64).prop_map(|(size, n)| Event::Bypasses(size, n))],
            1..200,
        )
    ) {
        // The last of them has nothing behind it, whatever a reading before it took along.
        let events: Vec<Event> = [Event::Read(0)].into_iter().chain(events).chain([Event::Read(0); 12]).collect();
        let (mut sum, mut last) = (0, None);
        for (told, world, reading) in run(&events) {
            sum += told;
            prop_assert!(sum <= world.bypassed, "{} told, {:?}", sum, world);
            last = Some((world, reading));
        }
        let Some((world, Reading { at, .. })) = last else { return Ok(()) };
        let noise = u128::from(at - 1000 * S) * u128::from(NOISE) / u128::from(S);
        let share = bytes(&world.metered.egress) / SHARE;
        // Rounded up once for each reading; the last one has no skew, for nothing happens behind it.
        let bound = SLACK + world.excused + share + noise as u64 + 2 * events.len() as u64;
        prop_assert!(sum + bound >= world.bypassed, "{} told, {} forgiven, {:?}", sum, bound, world);
    }
}

fn reading(seconds: u64, sent: u64, metered: u64) -> Reading {
    let mut moved = Totals::default();
    moved.egress.bytes[Class::External as usize] = metered;
    let uplink = Uplink { sent: Frames { bytes: sent, packets: 0 }, received: Frames::default() };
    Reading { at: seconds * S, skew: 100_000, uplink, moved }
}

#[test]
fn what_was_metered_is_not_saved_up_for_later() {
    let mut gap = Gap::new(&reading(0, 0, 0));
    // A gigabyte that never came to the interface, and quiet after it ...
    assert_eq!(gap.take(&reading(1, 0, 1 << 30)), Ok(0));
    assert_eq!(gap.take(&reading(2, 0, 0)), Ok(0));
    // ... excuses no more than anything else does.
    assert_eq!(gap.take(&reading(3, 1 << 20, 0)), Ok((1 << 20) - SLACK - NOISE));
    assert_eq!(gap.take(&reading(4, 2 << 20, 0)), Ok((1 << 20) - NOISE));
}

#[test]
fn fragments_of_the_smallest_mtu_are_never_told_however_many_there_are() {
    let mut gap = Gap::new(&reading(0, 0, 0));
    for second in 1..100 {
        // Of which the meter sees the datagrams only.
        let sent = Frames { bytes: (1280 + ETHERNET) * 1_000_000 * second, packets: 1_000_000 * second };
        let mut next = reading(second, 0, 1232 * 1_000_000);
        next.uplink.sent = sent;
        assert_eq!(gap.take(&next), Ok(0), "{second}");
    }
}

#[test]
fn what_is_sent_between_the_readings_is_counted_once_whatever_comes_first() {
    let mut gap = Gap::new(&reading(0, 0, 0));
    // Metered in this reading, on the interface in the next one: at most what 100 Gbit/s are in 0.1 ms.
    for second in 1..100 {
        assert_eq!(gap.take(&reading(second, (second - 1) * 1_200_000, 1_200_000)), Ok(0), "{second}");
    }
}

#[test]
fn an_interface_that_counts_less_is_another_one() {
    let mut gap = Gap::new(&reading(0, 5 << 30, 0));
    assert_eq!(gap.take(&reading(1, 4 << 30, 0)), Err(Incomparable::Another));
    assert_eq!(gap.take(&reading(2, 4 << 30, 0)), Ok(0));
    assert_eq!(gap.take(&reading(3, 5 << 30, 0)), Ok((1 << 30) - SLACK - NOISE));
}

#[test]
fn what_comes_in_past_the_interface_makes_it_incomparable() {
    let come = |seconds, received, taken| {
        let mut next = reading(seconds, seconds << 20, 0);
        next.uplink.received = Frames { bytes: received, packets: received / 1500 };
        (next.moved.ingress.bytes[1], next.moved.ingress.packets[1]) = (taken, taken / 1500);
        next
    };
    let mut gap = Gap::new(&come(0, 0, 0));
    assert_eq!(gap.take(&come(1, 1_000_000, 1_000_000)).map(|_| ()), Ok(()));
    assert_eq!(gap.take(&come(2, 1_000_000, 70_000)).map(|_| ()), Ok(()), "it may have come in between the readings");
    assert_eq!(gap.take(&come(3, 1_000_000, 5_000_000)), Err(Incomparable::Past));
    assert_eq!(gap.take(&come(4, 1_000_000, 0)), Err(Incomparable::Past), "what was is not undone");
}

#[test]
fn small_packets_that_come_in_past_the_interface_are_noticed_for_it_receives_nothing() {
    // So many packets of 52 bytes were taken, and so many frames received.
    let come = |seconds, frames: u64, taken: u64| {
        let mut next = reading(seconds, 0, 0);
        next.uplink.received = Frames { bytes: frames * 66, packets: frames };
        (next.moved.ingress.bytes[1], next.moved.ingress.packets[1]) = (taken * 52, taken);
        next
    };
    let run = |readings: &[(u64, u64)]| {
        let mut gap = Gap::new(&come(0, 0, 0));
        let seconds = 1..;
        seconds
            .zip(readings)
            .map(|(second, (frames, taken))| gap.take(&come(second, *frames, *taken)))
            .collect::<Vec<_>>()
    };
    let past = Err(Incomparable::Past);
    assert_eq!(run(&[(0, 3), (0, 3), (0, 0)]), [Ok(0), Ok(0), past]);
    assert_eq!(run(&[(9, 9), (9, 0), (9, 1), (9, 1)]), [Ok(0), Ok(0), Ok(0), past]);
    // Counted by the interface a reading earlier, or later, or never taken.
    assert_eq!(run(&[(3, 0), (3, 3), (3, 0), (3, 0), (3, 0)]), [Ok(0); 5]);
    assert_eq!(run(&[(0, 0), (0, 3), (3, 0), (3, 0), (3, 0)]), [Ok(0); 5]);
    assert_eq!(run(&[(0, 0), (3, 0), (3, 0), (3, 0), (3, 0)]), [Ok(0); 5]);
}

#[test]
fn much_that_was_received_for_nobody_hides_no_other_way_in_for_ever() {
    let come = |seconds, received: u64, taken: u64| {
        let mut next = reading(seconds, 0, 0);
        next.uplink.received = Frames { bytes: received, packets: received / 1514 };
        (next.moved.ingress.bytes[1], next.moved.ingress.packets[1]) = (taken, taken / 1500);
        next
    };
    let mut gap = Gap::new(&come(0, 0, 0));
    assert_eq!(gap.take(&come(1, 10 << 30, 0)), Ok(0));
    assert_eq!(gap.take(&come(2, (10 << 30) + 1514, 60 << 20)), Ok(0), "it may have been queued");
    assert_eq!(gap.take(&come(3, (10 << 30) + 2 * 1514, 60 << 20)), Err(Incomparable::Past));
}

#[test]
fn an_error_that_comes_back_is_longer_than_what_came_whoever_has_a_copy() {
    for sockets in [0, 1, 3] {
        let mut gap = Gap::new(&reading(0, 0, 0));
        for second in 1..100 {
            let mut next = reading(second, 0, 0);
            let frames = |size: u64| Frames { bytes: second * 1000 * (size + ETHERNET), packets: second * 1000 };
            next.uplink = Uplink { sent: frames(100 + ERROR), received: frames(100) };
            let ingress = &mut next.moved.ingress;
            (ingress.bytes[1], ingress.packets[1]) = (sockets * 100_000, sockets * 1000);
            ingress.other = sockets * 100_000;
            assert_eq!(gap.take(&next), Ok(0), "{second} {sockets}");
        }
    }
}

#[test]
fn many_copies_of_what_was_sent_to_oneself_forgive_nothing() {
    let mut gap = Gap::new(&Reading { skew: 0, ..reading(0, 0, 0) });
    let mut next = Reading { skew: 0, ..reading(1, 10 << 20, 0) };
    // Taken, and not received by the interface: of each a header's length would be left over.
    (next.moved.ingress.bytes[1], next.moved.ingress.packets[1]) = (29 * 500_000, 500_000);
    assert_eq!(gap.take(&next), Ok((10 << 20) - SLACK - NOISE));
}

#[test]
fn no_figure_overflows() {
    let mut most = reading(0, 0, u64::MAX);
    most.moved.ingress.bytes = [u64::MAX; 2];
    most.moved.ingress.packets = [u64::MAX; 2];
    let mut gap = Gap::new(&Reading { skew: u64::MAX, ..most });
    let uplink = Uplink { sent: Frames { bytes: u64::MAX, packets: u64::MAX }, ..Uplink::default() };
    assert_eq!(gap.take(&Reading { at: u64::MAX, skew: u64::MAX, uplink, ..most }), Ok(0));
    assert_eq!(gap.take(&Reading { at: u64::MAX, skew: 0, uplink, ..most }), Ok(0));
    let mut gap = Gap::new(&Reading { skew: u64::MAX, ..reading(0, 0, 0) });
    assert_eq!(gap.take(&Reading { skew: u64::MAX, ..reading(1, u64::MAX, 0) }), Ok(0));
}
