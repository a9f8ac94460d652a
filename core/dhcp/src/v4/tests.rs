use super::*;
use crate::answer as answer_frame;
use crate::tests_common::{MAC, SERVER, SERVER_MAC, facts};
use proptest::prelude::*;

const ADDRESS: [u8; 4] = [10, 4, 1, 9];
const NOBODY: [u8; 4] = [0; 4];

/// A client's message, as the layout in RFC 2131 has it.
#[derive(Clone)]
struct Client {
    kind: u8,
    source: [u8; 4],
    flags: u16,
    hops: u8,
    ciaddr: [u8; 4],
    giaddr: [u8; 4],
    chaddr: MacAddr,
    options: Vec<(u8, Vec<u8>)>,
}

fn client(kind: u8, options: &[(u8, &[u8])]) -> Client {
    Client {
        kind,
        source: NOBODY,
        flags: 0,
        hops: 0,
        ciaddr: NOBODY,
        giaddr: NOBODY,
        chaddr: MAC,
        options: options
            .iter()
            .map(|(code, bytes)| (*code, bytes.to_vec()))
            .collect(),
    }
}

impl Client {
    fn frame(&self) -> Vec<u8> {
        let mut message = vec![1, 1, 6, self.hops, 0xde, 0xad, 0xbe, 0xef, 0, 3];
        message.extend(self.flags.to_be_bytes());
        message.extend(self.ciaddr);
        message.extend([0; 8]);
        message.extend(self.giaddr);
        message.extend(self.chaddr.0);
        message.resize(236, 0);
        message.extend([99, 130, 83, 99, 53, 1, self.kind]);
        for (code, bytes) in &self.options {
            message.extend([*code, bytes.len() as u8]);
            message.extend(bytes);
        }
        message.push(255);
        let mut frame = wire::ethernet(MacAddr::BROADCAST, MAC, wire::IPV4);
        frame.extend(wire::udp_over_ipv4(
            (self.source.into(), 68),
            (Ipv4Addr::BROADCAST, 67),
            &message,
        ));
        frame
    }

    fn ask(&self) -> (Event, Option<Told>) {
        let answer = answer_frame(&facts(), &self.frame());
        (answer.event, answer.reply.map(Told::read))
    }
}

/// What a client makes of a reply.
#[derive(Debug, PartialEq)]
struct Told {
    mac: MacAddr,
    to: ([u8; 4], u16),
    flags: u16,
    ciaddr: [u8; 4],
    yiaddr: [u8; 4],
    options: Vec<(u8, Vec<u8>)>,
}

impl Told {
    fn read(frame: Vec<u8>) -> Self {
        let four = |at: usize| <[u8; 4]>::try_from(&frame[at..at + 4]).unwrap();
        assert_eq!(&frame[6..12], SERVER_MAC.0);
        assert_eq!(four(26), SERVER, "the server's address");
        assert_eq!(wire::checksum(&[&frame[14..34]]), 0);
        let udp = Udp::of_ipv4(&frame[14..]).unwrap();
        assert_eq!(four(46), [0xde, 0xad, 0xbe, 0xef]);
        assert_eq!(&udp.payload[..3], [2, 1, 6]);
        assert_eq!(&udp.payload[28..34], MAC.0);
        let mut options = Vec::new();
        let mut rest = &udp.payload[240..];
        while rest[0] != 255 {
            let end = 2 + usize::from(rest[1]);
            options.push((rest[0], rest[2..end].to_vec()));
            rest = &rest[end..];
        }
        Self {
            mac: MacAddr(frame[..6].try_into().unwrap()),
            to: (four(30), udp.destination_port),
            flags: u16::from_be_bytes([frame[52], frame[53]]),
            ciaddr: four(54),
            yiaddr: four(58),
            options,
        }
    }

    fn option(&self, code: u8) -> Option<&[u8]> {
        let found = self.options.iter().find(|(c, _)| *c == code);
        found.map(|(_, bytes)| &bytes[..])
    }

    fn codes(&self) -> Vec<u8> {
        self.options.iter().map(|(code, _)| *code).collect()
    }
}

const LEASED: Event = Event::Leased(IpAddr::V4(Ipv4Addr::new(10, 4, 1, 9)), LEASE_SECS);

#[test]
fn a_client_without_address_is_offered_its_own_and_gets_it() {
    let (event, offer) = client(DISCOVER, &[(61, b"me"), (50, &[10, 4, 1, 77])]).ask();
    let offer = offer.unwrap();
    assert_eq!(event, Event::Offered);
    assert_eq!((offer.mac, offer.to), (MAC, (ADDRESS, 68)));
    assert_eq!((offer.ciaddr, offer.yiaddr), (NOBODY, ADDRESS));
    assert_eq!(offer.option(53), Some(&[OFFER][..]));
    assert_eq!(offer.option(54), Some(&SERVER[..]));
    assert_eq!(offer.option(61), Some(&b"me"[..]));
    assert_eq!(offer.option(51), Some(&86_400_u32.to_be_bytes()[..]));
    assert_eq!(offer.option(58), Some(&3600_u32.to_be_bytes()[..]));
    assert_eq!(offer.option(59), Some(&75_600_u32.to_be_bytes()[..]));
    assert_eq!(offer.option(1), Some(&[255, 255, 255, 0][..]));
    assert_eq!(offer.option(3), Some(&SERVER[..]));
    let routes = [32, 169, 254, 169, 254, 10, 4, 1, 1, 0, 10, 4, 1, 1];
    assert_eq!(offer.option(121), Some(&routes[..]));
    assert_eq!(offer.option(6), Some(&[10, 4, 1, 53, 10, 4, 1, 54][..]));
    assert_eq!(offer.option(15), Some(&b"blue.internal"[..]));
    assert_eq!(offer.option(119), Some(&b"\x03web\x04blue\0\x01b\0"[..]));
    assert_eq!(offer.option(26), Some(&1450_u16.to_be_bytes()[..]));
    assert_eq!(offer.option(28), Some(&[10, 4, 1, 255][..]));
    assert_eq!(offer.option(42), Some(&[10, 4, 1, 123][..]));
    assert_eq!(offer.option(66), Some(&b"tftp"[..]));

    let (event, ack) = client(REQUEST, &[(54, &SERVER), (50, &ADDRESS)]).ask();
    assert_eq!((event, ack.unwrap().yiaddr), (LEASED, ADDRESS));
}

#[test]
fn only_what_is_asked_for_is_given_in_its_order() {
    let (_, ack) = client(REQUEST, &[(50, &ADDRESS), (55, &[66, 6, 1, 99, 6])]).ask();
    assert_eq!(ack.unwrap().codes(), [53, 54, 51, 58, 59, 1, 66, 6]);
    let (_, ack) = client(REQUEST, &[(50, &ADDRESS), (55, &[])]).ask();
    assert_eq!(ack.unwrap().codes(), [53, 54, 51, 58, 59, 1]);
    // Without a router there is no route; and what the subnet says for itself goes first.
    let mut facts = facts();
    facts.v4.as_mut().unwrap().router = None;
    facts.options.custom = [(6, vec![9, 9, 9, 9])].into();
    let frame = client(REQUEST, &[(50, &ADDRESS), (55, &[3, 121, 6])]).frame();
    let told = Told::read(answer_frame(&facts, &frame).reply.unwrap());
    assert_eq!(told.codes(), [53, 54, 51, 58, 59, 1, 6]);
    assert_eq!(told.option(6), Some(&[9, 9, 9, 9][..]));
}

#[test]
fn each_state_of_a_client_has_its_answer() {
    let renewing = Client {
        ciaddr: ADDRESS,
        source: ADDRESS,
        ..client(REQUEST, &[])
    };
    let (event, ack) = renewing.ask();
    let ack = ack.unwrap();
    assert_eq!((event, ack.ciaddr, ack.yiaddr), (LEASED, ADDRESS, ADDRESS));
    assert_eq!((ack.mac, ack.to), (MAC, (ADDRESS, 68)));

    let other = [10, 4, 1, 200];
    let nak = |client: Client| {
        let (event, nak) = client.ask();
        let nak = nak.unwrap();
        assert_eq!(event, Event::Refused);
        assert_eq!((nak.ciaddr, nak.yiaddr), (NOBODY, NOBODY));
        assert_eq!(nak.codes(), [53, 54, 56]);
        nak
    };
    let rebooting = nak(client(REQUEST, &[(50, &other)]));
    assert_eq!(
        (rebooting.mac, rebooting.to),
        (MacAddr::BROADCAST, ([255; 4], 68))
    );
    nak(client(REQUEST, &[(50, &other), (54, &SERVER)]));
    nak(Client {
        ciaddr: other,
        ..client(REQUEST, &[])
    });

    let (event, informed) = Client {
        ciaddr: ADDRESS,
        ..client(INFORM, &[])
    }
    .ask();
    let informed = informed.unwrap();
    assert_eq!(
        (event, informed.yiaddr, informed.to),
        (Event::Informed, NOBODY, (ADDRESS, 68))
    );
    for time in [51, 58, 59] {
        assert_eq!(informed.option(time), None);
    }

    let silent = |client: Client, event| assert_eq!(client.ask(), (event, None));
    let gone = IpAddr::from(ADDRESS);
    silent(
        Client {
            ciaddr: ADDRESS,
            ..client(RELEASE, &[(54, &SERVER)])
        },
        Event::Released(gone),
    );
    silent(
        client(DECLINE, &[(50, &ADDRESS), (54, &SERVER)]),
        Event::Declined(gone),
    );
    silent(
        client(REQUEST, &[(54, &other), (50, &ADDRESS)]),
        Event::OtherServer,
    );
    silent(
        client(DECLINE, &[(54, &other), (50, &ADDRESS)]),
        Event::OtherServer,
    );
    silent(
        client(DECLINE, &[(50, &other)]),
        Event::Dropped(Reason::NotThisNic),
    );
    silent(
        Client {
            ciaddr: other,
            ..client(INFORM, &[])
        },
        Event::Dropped(Reason::NotThisNic),
    );
    silent(client(REQUEST, &[]), Event::Dropped(Reason::Malformed));
    silent(
        client(REQUEST, &[(50, &[1, 2, 3])]),
        Event::Dropped(Reason::Malformed),
    );
    silent(client(OFFER, &[]), Event::Dropped(Reason::NotARequest));
    silent(client(99, &[]), Event::Dropped(Reason::NotARequest));
    silent(
        Client {
            chaddr: SERVER_MAC,
            ..client(DISCOVER, &[])
        },
        Event::Dropped(Reason::NotThisNic),
    );
}

#[test]
fn a_client_that_cannot_take_unicast_gets_broadcast() {
    let (_, offer) = Client {
        flags: 0x8000,
        ..client(DISCOVER, &[])
    }
    .ask();
    let offer = offer.unwrap();
    assert_eq!(
        (offer.mac, offer.to, offer.flags),
        (MacAddr::BROADCAST, ([255; 4], 68), 0x8000)
    );
}

#[test]
fn a_relay_on_the_nics_machine_is_answered_and_no_other() {
    let relayed = Client {
        giaddr: ADDRESS,
        hops: 1,
        ..client(DISCOVER, &[(82, b"circuit")])
    };
    let (_, offer) = relayed.ask();
    let offer = offer.unwrap();
    assert_eq!((offer.mac, offer.to), (MAC, (ADDRESS, 67)));
    assert_eq!(offer.options.last().unwrap(), &(82, b"circuit".to_vec()));
    let (_, nak) = Client {
        kind: REQUEST,
        ciaddr: [10, 4, 1, 3],
        ..relayed.clone()
    }
    .ask();
    assert_eq!(nak.unwrap().flags, 0x8000);
    // What only relays add is not echoed to others.
    let (_, offer) = client(DISCOVER, &[(82, b"circuit")]).ask();
    assert_eq!(offer.unwrap().option(82), None);
    for bad in [
        Client {
            giaddr: [10, 4, 1, 3],
            ..relayed.clone()
        },
        Client {
            hops: 17,
            ..relayed
        },
    ] {
        assert_eq!(bad.ask(), (Event::Dropped(Reason::BadRelay), None));
    }
}

#[test]
fn shorter_leases_are_given_on_request() {
    for (asked, given) in [(600, 600), (1, 60), (u32::MAX, LEASE_SECS)] {
        let (event, ack) = client(REQUEST, &[(50, &ADDRESS), (51, &asked.to_be_bytes())]).ask();
        assert_eq!(event, Event::Leased(ADDRESS.into(), given));
        let ack = ack.unwrap();
        let seconds = |code| u32::from_be_bytes(ack.option(code).unwrap().try_into().unwrap());
        assert_eq!(seconds(51), given);
        assert!(seconds(58) < seconds(59) && seconds(59) < given);
    }
}

#[test]
fn the_servers_address_resolves_where_no_router_has_it() {
    let mut facts = facts();
    let mut frame = wire::ethernet(MacAddr::BROADCAST, MAC, wire::ARP);
    frame.extend([0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend(MAC.0);
    frame.extend(ADDRESS);
    frame.extend([0; 6]);
    frame.extend(SERVER);
    let silence = Answer::dropped(Reason::NotARequest);
    assert_eq!(answer_frame(&facts, &frame), silence);
    facts.v4.as_mut().unwrap().router = None;
    let answer = answer_frame(&facts, &frame);
    assert_eq!(answer.event, Event::Resolved);
    let mut expected = wire::ethernet(MAC, SERVER_MAC, wire::ARP);
    expected.extend([0, 1, 8, 0, 6, 4, 0, 2]);
    expected.extend(SERVER_MAC.0);
    expected.extend(SERVER);
    expected.extend(MAC.0);
    expected.extend(ADDRESS);
    assert_eq!(answer.reply, Some(expected));
    frame[41] = 2;
    assert_eq!(answer_frame(&facts, &frame), silence);
    assert_eq!(
        answer_frame(&facts, &frame[..40]),
        Answer::dropped(Reason::Malformed)
    );
}

proptest! {
    /// Whatever a client sends, the answer names nothing but what is planned for it, goes to its own
    /// MAC or to everybody, and is no larger than the client takes.
    #[test]
    fn nobody_gets_anothers_address(
        kind in 0_u8..10, flags: u16, hops in 0_u8..20,
        ciaddr in prop_oneof![Just(NOBODY), Just(ADDRESS), any::<[u8; 4]>()],
        giaddr in prop_oneof![4 => Just(NOBODY), 1 => Just(ADDRESS), 1 => any::<[u8; 4]>()],
        options in proptest::collection::vec(
            (prop_oneof![Just(50_u8), Just(51), Just(52), Just(54), Just(55), Just(57), Just(61), Just(82), 1_u8..255],
             prop_oneof![Just(ADDRESS.to_vec()), Just(SERVER.to_vec()), proptest::collection::vec(any::<u8>(), 0..40)]),
            0..6,
        ),
    ) {
        let client = Client { kind, source: NOBODY, flags, hops, ciaddr, giaddr, chaddr: MAC, options };
        if let Some(reply) = answer_frame(&facts(), &client.frame()).reply {
            let told = Told::read(reply.clone());
            prop_assert!([NOBODY, ADDRESS].contains(&told.yiaddr));
            prop_assert!([MAC, MacAddr::BROADCAST].contains(&told.mac));
            prop_assert!([[255; 4], ADDRESS].contains(&told.to.0));
            prop_assert!(reply.len() <= 14 + 1450);
        }
    }

    #[test]
    fn garbage_never_panics(frame in proptest::collection::vec(any::<u8>(), 0..400), at in 0_usize..300) {
        drop(answer_frame(&facts(), &frame));
        // Sound up to somewhere.
        let mut torn = client(REQUEST, &[(50, &ADDRESS), (55, &[1, 2, 3])]).frame();
        for (to, from) in torn.iter_mut().skip(42 + at).zip(&frame) {
            *to = *from;
        }
        drop(answer_frame(&facts(), &torn));
    }
}
