//! The client against our own server, in a time of their own.

use super::*;
use crate::tests_common::{MAC, SERVER, SERVER_MAC, facts};
use crate::{Event, Facts};
use proptest::prelude::*;

const HOUR: Duration = Duration::from_secs(3600);

#[expect(clippy::disallowed_methods, reason = "any moment will do for a start")]
fn any_instant() -> Instant {
    Instant::now()
}

fn client(now: Instant) -> Client {
    Client::new(identity(), now, 7)
}

fn identity() -> Identity {
    Identity {
        mac: MAC,
        id: b"\0router".to_vec(),
    }
}

/// What the client sends now, if it sends anything.
fn sent(client: &mut Client, now: Instant) -> Option<Vec<u8>> {
    client.handle_timeout(now);
    client.poll_transmit()
}

/// The server's answer to what the client sends now.
fn asks(client: &mut Client, facts: &Facts, now: Instant) -> Event {
    let frame = sent(client, now).expect("it asks");
    let answer = crate::answer(facts, &frame);
    if let Some(reply) = answer.reply {
        client.handle_frame(now, &reply);
    }
    answer.event
}

fn bound(now: Instant) -> Client {
    let mut client = client(now);
    assert_eq!(asks(&mut client, &facts(), now), Event::Offered);
    // An offer is taken at once.
    let request = client.poll_transmit().expect("it takes the offer");
    let reply = crate::answer(&facts(), &request)
        .reply
        .expect("it is confirmed");
    client.handle_frame(now, &reply);
    client
}

fn later(client: &Client) -> Instant {
    client.poll_timeout()
}

#[test]
fn an_address_is_found_taken_and_prolonged() {
    let now = any_instant();
    let mut client = bound(now);
    let lease = *client.lease().expect("it has one");
    assert_eq!(lease.address, "10.4.1.9/24".parse().unwrap());
    assert_eq!(lease.gateway, Some(SERVER.into()));
    assert_eq!(
        (lease.server, lease.server_mac),
        (SERVER.into(), SERVER_MAC)
    );
    assert_eq!(lease.renew_at, now + HOUR);
    assert_eq!(lease.ends_at, now + 24 * HOUR);
    assert_eq!(client.asking_since(), None);
    assert_eq!(sent(&mut client, now + HOUR / 2), None);

    let then = later(&client);
    let request = sent(&mut client, then).expect("it asks for more");
    // At its server, from its own address.
    assert_eq!(request[..6], SERVER_MAC.0);
    assert_eq!(
        (&request[26..30], &request[30..34]),
        (&[10, 4, 1, 9][..], &SERVER[..])
    );
    assert_eq!(client.asking_since(), Some(then));
    let reply = crate::answer(&facts(), &request).reply.unwrap();
    client.handle_frame(then, &reply);
    assert_eq!(client.lease().unwrap().ends_at, then + 24 * HOUR);
    assert_eq!(client.asking_since(), None);
}

#[test]
fn nobody_answers_and_the_address_ends() {
    let now = any_instant();
    let mut client = bound(now);
    let ends_at = client.lease().unwrap().ends_at;
    let rebind_at = client.lease().unwrap().rebind_at;
    let (mut at_server, mut at_all) = (0, 0);
    let mut at = now;
    while client.lease().is_some() {
        assert!(later(&client) > at, "it does not spin");
        at = later(&client);
        let frame = sent(&mut client, at).expect("it asks");
        match frame[..6] == [0xff; 6] {
            true => at_all += 1,
            false => at_server += 1,
        }
        if client.lease().is_some() {
            assert_eq!(frame[..6] == [0xff; 6], at >= rebind_at);
        }
    }
    assert_eq!(at, ends_at);
    assert!(
        (3..20).contains(&at_server),
        "{at_server} questions at the server"
    );
    assert!((3..20).contains(&at_all), "{at_all} questions at all");
    // From then on it looks for servers again.
    assert_eq!(client.asking_since(), Some(now + HOUR));
    let then = later(&client);
    assert_eq!(asks(&mut client, &facts(), then), Event::Offered);
}

#[test]
fn who_is_refused_begins_anew() {
    let now = any_instant();
    let mut client = bound(now);
    let mut other = facts();
    other.v4.as_mut().unwrap().address = "10.4.1.77/24".parse().unwrap();
    let then = later(&client);
    assert_eq!(asks(&mut client, &other, then), Event::Refused);
    assert_eq!(client.lease(), None);
    let then = later(&client);
    assert_eq!(asks(&mut client, &other, then), Event::Offered);
    let request = client.poll_transmit().unwrap();
    let reply = crate::answer(&other, &request).reply.unwrap();
    client.handle_frame(then, &reply);
    let lease = client.lease().unwrap();
    assert_eq!(lease.address, "10.4.1.77/24".parse().unwrap());
}

#[test]
fn an_offer_that_is_not_confirmed_is_let_go() {
    let mut now = any_instant();
    let mut client = client(now);
    asks(&mut client, &facts(), now);
    let mut requests = 0;
    while client.is_offered() {
        requests += u32::from(client.poll_transmit().is_some());
        now = later(&client);
        client.handle_timeout(now);
    }
    assert_eq!(requests, REQUESTS);
    let then = later(&client);
    assert_eq!(asks(&mut client, &facts(), then), Event::Offered);
}

#[test]
fn who_hears_nothing_asks_ever_less() {
    let start = any_instant();
    let mut client = client(start);
    let mut times = Vec::new();
    for _ in 0..9 {
        let at = later(&client);
        sent(&mut client, at).expect("it asks");
        times.push(at.duration_since(start).as_secs());
    }
    assert_eq!(times[0], 0);
    let gaps: Vec<u64> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
    for (gap, least) in gaps.iter().zip([1, 2, 4, 8, 16, 32, 32, 32]) {
        assert!((least..=least + 1).contains(gap), "{gaps:?}");
    }
    assert_eq!(client.asking_since(), Some(start));
}

#[test]
fn what_was_given_before_is_gone_on_with() {
    let now = any_instant();
    let lease = *bound(now).lease().unwrap();
    let mut client = Client::resume(identity(), lease, now, 9);
    assert_eq!(client.lease(), Some(&lease));
    assert_eq!(sent(&mut client, now + HOUR / 2), None);
    assert!(sent(&mut client, now + HOUR).is_some());
    // One that ended meanwhile is not.
    let mut late = Client::resume(identity(), lease, now, 9);
    let frame = sent(&mut late, now + 25 * HOUR).expect("it looks for servers");
    assert_eq!((late.lease(), &frame[..6]), (None, &[0xff; 6][..]));
}

/// A confirmation with these options, to the client's last question.
fn ack(client: &Client, yiaddr: [u8; 4], options: &[(u8, &[u8])]) -> Vec<u8> {
    let mut reply = vec![2, 1, 6, 0];
    reply.extend(client.xid);
    reply.extend([0; 8]);
    reply.extend(yiaddr);
    reply.extend([0; 8]);
    reply.extend(MAC.0);
    reply.resize(236, 0);
    reply.extend([99, 130, 83, 99]);
    for (code, bytes) in options {
        reply.extend([*code, bytes.len() as u8]);
        reply.extend_from_slice(bytes);
    }
    reply.push(255);
    let mut frame = wire::ethernet(MAC, SERVER_MAC, wire::IPV4);
    frame.extend(wire::udp_over_ipv4(
        (SERVER.into(), 67),
        (yiaddr.into(), 68),
        &reply,
    ));
    frame
}

const SOUND: &[(u8, &[u8])] = &[
    (code::TYPE, &[ACK]),
    (code::SERVER, &SERVER),
    (code::NETMASK, &[255, 255, 255, 0]),
    (code::LEASE_TIME, &[0, 0, 0, 120]),
];

fn confirmed(now: Instant, yiaddr: [u8; 4], options: &[(u8, &[u8])]) -> Option<OuterLease> {
    let mut client = client(now);
    asks(&mut client, &facts(), now);
    let frame = ack(&client, yiaddr, options);
    client.handle_frame(now, &frame);
    client.lease().copied()
}

#[test]
fn times_and_ways_are_those_that_are_told_if_they_are_sound() {
    let now = any_instant();
    let with =
        |more: &[(u8, &[u8])]| confirmed(now, [10, 4, 1, 9], &[SOUND, more].concat()).unwrap();
    let secs = |lease: OuterLease| {
        [lease.renew_at, lease.rebind_at, lease.ends_at].map(|at| at.duration_since(now).as_secs())
    };
    let [t1, t2] = [code::RENEWAL, code::REBINDING];
    assert_eq!(secs(with(&[])), [60, 105, 120]);
    assert_eq!(
        secs(with(&[(t1, &[0, 0, 0, 5]), (t2, &[0, 0, 0, 9])])),
        [5, 9, 120]
    );
    assert_eq!(secs(with(&[(t1, &[0, 0, 0, 5])])), [5, 105, 120]);
    assert_eq!(
        secs(with(&[(t1, &[0, 0, 0, 9]), (t2, &[0, 0, 0, 5])])),
        [9, 105, 120]
    );
    assert_eq!(secs(with(&[(t1, &[0, 0, 1, 0])])), [60, 105, 120]);

    let gateway = |more: &[(u8, &[u8])]| with(more).gateway.map(|ip| ip.octets());
    assert_eq!(gateway(&[]), None);
    let by_router = (code::ROUTERS, &[10, 4, 1, 1, 10, 4, 1, 2][..]);
    assert_eq!(gateway(&[by_router]), Some([10, 4, 1, 1]));
    assert_eq!(gateway(&[(code::ROUTERS, &[10, 4, 1, 9])]), None, "itself");
    let routes = (
        code::ROUTES,
        &[12, 172, 16, 10, 4, 1, 3, 0, 10, 4, 1, 4][..],
    );
    assert_eq!(gateway(&[by_router, routes]), Some([10, 4, 1, 4]));
    for no_default in [&[12, 172, 16, 10, 4, 1, 3][..], &[33, 1], &[0, 10]] {
        assert_eq!(gateway(&[by_router, (code::ROUTES, no_default)]), None);
    }
}

#[test]
fn what_is_not_sound_is_no_lease() {
    let now = any_instant();
    for left_out in 1..SOUND.len() {
        let mut options = SOUND.to_vec();
        options.remove(left_out);
        assert_eq!(confirmed(now, [10, 4, 1, 9], &options), None, "{left_out}");
    }
    for (instead, at) in [
        ((code::NETMASK, &[255, 0, 255, 0]), 2),
        ((code::LEASE_TIME, &[0, 0, 0, 9]), 3),
        ((code::SERVER, &[0, 0, 0, 0]), 1),
    ] {
        let mut options = SOUND.to_vec();
        options[at] = (instead.0, &instead.1[..]);
        assert_eq!(confirmed(now, [10, 4, 1, 9], &options), None, "{instead:?}");
    }
    for bad in [[0, 0, 0, 0], [127, 0, 0, 1], [224, 0, 0, 1], [255; 4]] {
        assert_eq!(confirmed(now, bad, SOUND), None, "{bad:?}");
    }
    assert!(confirmed(now, [10, 4, 1, 9], SOUND).is_some());
}

#[test]
fn what_answers_somebody_else_is_passed_over() {
    let now = any_instant();
    let mut client = client(now);
    asks(&mut client, &facts(), now);
    let frame = ack(&client, [10, 4, 1, 9], SOUND);
    // The transaction, the MAC, the port, the Ethertype; each in the frame.
    for at in [14 + 28 + 4, 14 + 28 + 28, 14 + 20 + 3, 12] {
        let mut other = frame.clone();
        other[at] ^= 1;
        client.handle_frame(now, &other);
        assert_eq!(client.lease(), None, "byte {at}");
    }
    client.handle_frame(now, &frame);
    assert!(client.lease().is_some());
}

proptest! {
    #[test]
    fn garbage_never_panics(
        frames in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..400), 0..4),
        options in proptest::collection::vec(any::<u8>(), 0..200), yiaddr: [u8; 4],
    ) {
        let now = any_instant();
        let mut client = client(now);
        asks(&mut client, &facts(), now);
        for frame in &frames {
            client.handle_frame(now, frame);
        }
        prop_assert_eq!(client.lease(), None);
        let mut frame = ack(&client, yiaddr, &[(code::TYPE, &[ACK])]);
        frame.truncate(frame.len() - 1);
        frame.extend(&options);
        client.handle_frame(now, &frame);
        prop_assert!(client.poll_timeout() >= now);
    }
}
