use super::*;
use model::{VlanId, Vni};
use proptest::prelude::*;

fn key(n: u16) -> FlowKey {
    FlowKey {
        domain: Domain {
            vni: Vni::new(100).unwrap(),
            tag: None,
        },
        direction: Direction::Out,
        ends: Ends::Ip {
            protocol: 17,
            source: [10, 0, 0, 1].into(),
            destination: [10, 0, 0, 2].into(),
            ports: Some((n, 53)),
        },
    }
}

fn seen(packets: u64, bytes: u64) -> Seen {
    Seen {
        vtep: Some([192, 0, 2, 2].into()),
        packets,
        bytes,
    }
}

fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn counted(flows: &Flows, now: Duration) -> Vec<(u64, u64)> {
    let mut counted: Vec<_> = flows.passing(now).map(|f| (f.packets, f.bytes)).collect();
    counted.sort_unstable();
    counted
}

#[test]
fn frames_of_a_flow_add_up_and_others_do_not() {
    let mut flows = Flows::new(64);
    flows.note(s(1), key(1), 7, seen(1, 100));
    flows.note(s(3), key(1), 7, seen(45, 64_000));
    flows.one_more(s(4), 1_000);
    let mut back = key(1);
    back.direction = Direction::In;
    let mut tagged = key(1);
    tagged.domain.tag = Some(VlanId::new(7).unwrap());
    // The same hash, and other flows all the same.
    for other in [back, tagged, key(2)] {
        flows.note(s(4), other, 7, seen(2, 200));
    }
    assert_eq!(
        counted(&flows, s(5)),
        [(2, 200), (2, 200), (2, 200), (47, 65_100)]
    );
    let first = flows.passing(s(5)).find(|flow| flow.packets == 47).unwrap();
    assert_eq!((first.key, first.age, first.idle), (key(1), s(4), s(1)));
    assert_eq!(first.vtep, Some([192, 0, 2, 2].into()));
}

#[test]
fn who_is_silent_has_ended_and_begins_anew() {
    let mut flows = Flows::new(64);
    flows.note(s(1), key(1), 7, seen(5, 500));
    assert_eq!(counted(&flows, s(60)), [(5, 500)]);
    assert_eq!(counted(&flows, s(61)), []);
    flows.note(s(70), key(1), 7, seen(1, 10));
    assert_eq!(counted(&flows, s(71)), [(1, 10)]);
    assert_eq!(flows.passing(s(71)).next().unwrap().age, s(1));
    assert_eq!(flows.pushed_out(), 0);
}

#[test]
fn a_full_table_does_not_grow_and_the_most_silent_goes() {
    let mut flows = Flows::new(4);
    for n in 0..4 {
        flows.note(s(n.into()), key(n), 7, seen(1, n.into()));
    }
    // It speaks again, so the second is now the most silent.
    flows.note(s(5), key(0), 7, seen(1, 0));
    flows.note(s(6), key(9), 7, seen(1, 9));
    assert_eq!(counted(&flows, s(7)), [(1, 2), (1, 3), (1, 9), (2, 0)]);
    assert_eq!((flows.sets.len(), flows.pushed_out()), (1, 1));
    // One that has ended leaves its place to anybody.
    flows.note(s(65), key(0), 7, seen(1, 0));
    flows.note(s(65), key(10), 7, seen(1, 10));
    assert_eq!(flows.pushed_out(), 1);
}

#[test]
fn with_no_room_nothing_is_counted() {
    let mut flows = Flows::new(0);
    flows.note(s(1), key(1), 7, seen(1, 1));
    flows.one_more(s(1), 1);
    assert_eq!(counted(&flows, s(1)), []);
    assert_eq!(Flows::new(usize::MAX).sets.len() * WAYS, FLOWS_MAX);
}

#[test]
fn flows_of_several_workers_are_added() {
    let flow = |n, bytes, idle, vtep: u8| Flow {
        key: key(n),
        vtep: Some([192, 0, 2, vtep].into()),
        packets: 1,
        bytes,
        age: s(idle + 10),
        idle: s(idle),
    };
    let sum = together([flow(1, 10, 5, 2), flow(2, 25, 1, 2), flow(1, 20, 3, 4)]);
    let both = Flow {
        packets: 2,
        age: s(15),
        ..flow(1, 30, 3, 4)
    };
    assert_eq!(sum, [both, flow(2, 25, 1, 2)]);
}

proptest! {
    /// With room for all, what is counted is what was noted.
    #[test]
    fn nothing_is_counted_twice_or_never(notes in prop::collection::vec((0..20_u16, 1..9_u64), 0..200)) {
        let mut flows = Flows::new(1024);
        let mut model = BTreeMap::new();
        for (n, bytes) in notes {
            let mut hash = Mixer::default();
            hash.word(n.into());
            flows.note(s(1), key(n), hash.end(), seen(1, bytes));
            *model.entry(key(n)).or_insert(0) += bytes;
        }
        let told: BTreeMap<FlowKey, u64> = flows.passing(s(1)).map(|f| (f.key, f.bytes)).collect();
        prop_assert_eq!(told, model);
    }
}

/// Goes on with what another noted.
fn take_over(flows: &mut Flows, before: &Flows, now: Duration) {
    let noted: Vec<Noted> = before.noted(now).copied().collect();
    noted.iter().for_each(|noted| flows.add(now, noted));
}

#[test]
fn who_takes_over_goes_on_with_what_was_counted() {
    let (mut before, mut after) = (Flows::new(64), Flows::new(16));
    before.note(s(10), key(1), 7, seen(3, 300));
    before.note(s(20), key(2), 8, seen(1, 100));
    // Both work for a moment.
    after.note(s(60), key(1), 7, seen(2, 200));
    before.note(s(61), key(1), 7, seen(1, 100));
    after.note(s(62), key(3), 9, seen(1, 100));
    take_over(&mut after, &before, s(65));
    assert_eq!(counted(&after, s(65)), [(1, 100), (1, 100), (6, 600)]);
    let of = |after: &Flows, n| {
        after
            .passing(s(65))
            .find(|flow| flow.key == key(n))
            .unwrap()
    };
    assert_eq!((of(&after, 1).age, of(&after, 1).idle), (s(55), s(4)));
    assert_eq!((of(&after, 2).age, of(&after, 2).idle), (s(45), s(45)));
    after.note(s(66), key(1), 7, seen(1, 100));
    assert_eq!(of(&after, 1).packets, 7);
    // A flow that has ended is not brought back.
    let mut later = Flows::new(64);
    take_over(&mut later, &before, s(100));
    assert_eq!(counted(&later, s(100)), [(4, 400)]);
    // Who counts none counts none.
    let mut none = Flows::new(0);
    take_over(&mut none, &before, s(65));
    assert_eq!(counted(&none, s(65)), []);
}

#[test]
fn where_there_is_no_room_for_all_that_was_counted_the_most_silent_go() {
    let (mut before, mut after) = (Flows::new(256), Flows::new(WAYS));
    for n in 1..=6 {
        before.note(s(n), key(n as u16), n as u32, seen(n, 100));
    }
    assert_eq!(before.pushed_out(), 0);
    after.note(s(4), key(9), 9, seen(9, 100));
    take_over(&mut after, &before, s(10));
    assert_eq!(
        counted(&after, s(10)),
        [(4, 100), (5, 100), (6, 100), (9, 100)]
    );
    assert_eq!(after.pushed_out(), 3);
}
