use super::*;
use crate::answer as answer_frame;
use crate::tests_common::{MAC, SERVER_MAC, facts};
use model::MacAddr;
use proptest::prelude::*;

const ADDRESS: &str = "fd00::9";
const CLIENT: &[u8] = &[0, 3, 0, 1, 2, 0, 0, 0, 0, 7];

fn duid() -> Vec<u8> {
    server_duid(facts().subnet).to_vec()
}

fn message(kind: u8, parts: &[(u16, Vec<u8>)]) -> Vec<u8> {
    let mut message = vec![kind, 1, 2, 3];
    for (code, bytes) in parts {
        put(&mut message, *code, bytes);
    }
    message
}

fn frame(message: &[u8]) -> Vec<u8> {
    let packet = wire::udp_over_ipv6((MAC.link_local(), 546), (SERVERS, 547), message);
    [
        wire::ethernet(MacAddr([0x33, 0x33, 0, 1, 0, 2]), MAC, wire::IPV6),
        packet,
    ]
    .concat()
}

fn association(id: u8, addresses: &[&str]) -> (u16, Vec<u8>) {
    let mut bytes = vec![0, 0, 0, id, 0, 0, 0, 0, 0, 0, 0, 0];
    for address in addresses {
        put_address(&mut bytes, address.parse().unwrap(), 5);
    }
    (code::IA_NA, bytes)
}

/// Type and options of the answer.
type Told = (u8, Vec<(u16, Vec<u8>)>);

fn ask(kind: u8, parts: &[(u16, Vec<u8>)]) -> (Event, Option<Told>) {
    let answer = answer_frame(&facts(), &frame(&message(kind, parts)));
    (answer.event, answer.reply.map(|frame| read(&frame)))
}

fn read(frame: &[u8]) -> Told {
    assert_eq!(
        (&frame[..6], &frame[6..12]),
        (&MAC.0[..], &SERVER_MAC.0[..])
    );
    let ((source, destination), udp) = Udp::of_ipv6(&frame[14..]).unwrap();
    assert_eq!(
        (source, destination),
        (SERVER_MAC.link_local(), MAC.link_local())
    );
    assert_eq!(udp.destination_port, 546);
    assert_eq!(udp.payload[1..4], [1, 2, 3]);
    let all = options(&udp.payload[4..]).unwrap();
    let all = all.into_iter().map(|(code, bytes)| (code, bytes.to_vec()));
    (udp.payload[0], all.collect())
}

fn of(told: &Told, code: u16) -> Option<&[u8]> {
    let found = told.1.iter().find(|(there, _)| *there == code);
    found.map(|(_, bytes)| &bytes[..])
}

fn given(address: &str, secs: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    put_address(&mut bytes, address.parse().unwrap(), secs);
    bytes
}

fn client() -> (u16, Vec<u8>) {
    (code::CLIENT, CLIENT.to_vec())
}

fn server() -> (u16, Vec<u8>) {
    (code::SERVER, duid())
}

fn leased() -> Event {
    Event::Leased(ADDRESS.parse().unwrap(), LEASE_SECS)
}

#[test]
fn a_client_gets_its_planned_address_in_four_messages_or_two() {
    let (event, told) = ask(SOLICIT, &[client(), association(5, &["fd00::77"])]);
    let told = told.unwrap();
    assert_eq!((event, told.0), (Event::Offered, ADVERTISE));
    assert_eq!(of(&told, code::CLIENT), Some(CLIENT));
    assert_eq!(of(&told, code::SERVER), Some(&duid()[..]));
    let times = [RENEW_SECS.to_be_bytes(), REBIND_SECS.to_be_bytes()].concat();
    let expected = [&[0, 0, 0, 5][..], &times, &given(ADDRESS, LEASE_SECS)].concat();
    assert_eq!(of(&told, code::IA_NA), Some(&expected[..]));
    let dns: Ipv6Addr = "fd00::53".parse().unwrap();
    assert_eq!(of(&told, code::RESOLVERS), Some(&dns.octets()[..]));
    assert_eq!(
        of(&told, code::SEARCH),
        Some(&b"\x03web\x04blue\0\x01b\0"[..])
    );

    let (event, told) = ask(REQUEST, &[client(), server(), association(5, &[ADDRESS])]);
    let told = told.unwrap();
    assert_eq!((event, told.0), (leased(), REPLY));
    assert_eq!(of(&told, code::IA_NA), Some(&expected[..]));

    let rapid = (code::RAPID_COMMIT, vec![]);
    let (event, told) = ask(SOLICIT, &[client(), rapid, association(5, &[])]);
    let told = told.unwrap();
    assert_eq!((event, told.0), (leased(), REPLY));
    assert_eq!(of(&told, code::RAPID_COMMIT), Some(&[][..]));
}

#[test]
fn only_what_is_asked_for_is_given() {
    let asked = (code::REQUESTED, vec![0, 23]);
    let (_, told) = ask(SOLICIT, &[client(), asked, association(1, &[])]);
    let codes: Vec<_> = told.unwrap().1.iter().map(|(code, _)| *code).collect();
    assert_eq!(
        codes,
        [code::CLIENT, code::SERVER, code::IA_NA, code::RESOLVERS]
    );
}

#[test]
fn other_addresses_end_and_further_associations_get_none() {
    for kind in [RENEW, REBIND] {
        let mut parts = vec![
            client(),
            association(1, &["fd00::77", ADDRESS]),
            association(2, &[]),
        ];
        parts.extend((kind == RENEW).then(server));
        let (event, told) = ask(kind, &parts);
        assert_eq!(event, leased());
        let told = told.unwrap();
        let associations: Vec<_> = told
            .1
            .iter()
            .filter(|(code, _)| *code == code::IA_NA)
            .collect();
        let [(_, first), (_, second)] = associations[..] else {
            panic!("{associations:?}")
        };
        let addresses = [given(ADDRESS, LEASE_SECS), given("fd00::77", 0)].concat();
        assert_eq!(first[12..], addresses);
        assert_eq!(
            second[..20],
            [
                0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 13, 0, 37, 0, 2, b'o', b'n'
            ]
        );
    }
    let prefixes = (code::IA_PD, vec![0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0]);
    let (_, told) = ask(SOLICIT, &[client(), prefixes]);
    let told = told.unwrap();
    assert_eq!(
        of(&told, code::IA_PD).unwrap()[..18],
        [0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 13, 0, 37, 0, 6]
    );
}

#[test]
fn the_other_messages_have_their_answers() {
    let status = |told: Option<Told>| of(&told.unwrap(), code::STATUS).unwrap()[1];
    let planned = ADDRESS.parse().unwrap();
    let (event, told) = ask(CONFIRM, &[client(), association(1, &[ADDRESS])]);
    assert_eq!((event, status(told)), (Event::Confirmed, 0));
    let (event, told) = ask(CONFIRM, &[client(), association(1, &["fd00::77"])]);
    assert_eq!((event, status(told)), (Event::Refused, 4));
    let (event, told) = ask(RELEASE, &[client(), server(), association(1, &[ADDRESS])]);
    assert_eq!((event, status(told)), (Event::Released(planned), 0));
    let (event, told) = ask(DECLINE, &[client(), server(), association(1, &[ADDRESS])]);
    assert_eq!((event, status(told)), (Event::Declined(planned), 0));

    let (event, told) = ask(INFORMATION_REQUEST, &[]);
    let told = told.unwrap();
    assert_eq!((event, told.0), (Event::Informed, REPLY));
    assert!(of(&told, code::RESOLVERS).is_some() && of(&told, code::CLIENT).is_none());
    assert_eq!(
        of(&told, code::REFRESH),
        Some(&RENEW_SECS.to_be_bytes()[..])
    );
}

#[test]
fn what_breaks_the_rules_is_not_answered() {
    let other = (code::SERVER, vec![0, 4, 9, 9]);
    let short = (code::CLIENT, vec![1]);
    let torn = (code::IA_NA, vec![0; 11]);
    let malformed = Event::Dropped(Reason::Malformed);
    let not_a_request = Event::Dropped(Reason::NotARequest);
    for (kind, parts, event) in [
        (SOLICIT, vec![], malformed),
        (SOLICIT, vec![client(), server()], malformed),
        (SOLICIT, vec![short], malformed),
        (SOLICIT, vec![client(), torn], malformed),
        (REQUEST, vec![client()], malformed),
        (REQUEST, vec![client(), other.clone()], Event::OtherServer),
        (INFORMATION_REQUEST, vec![other], Event::OtherServer),
        (INFORMATION_REQUEST, vec![association(1, &[])], malformed),
        (CONFIRM, vec![client()], malformed),
        (ADVERTISE, vec![client()], not_a_request),
        (REPLY, vec![client()], not_a_request),
        (12, vec![client()], not_a_request),
    ] {
        assert_eq!(ask(kind, &parts), (event, None), "type {kind}, {parts:?}");
    }
    // To the server alone nobody may write.
    let packet = wire::udp_over_ipv6(
        (MAC.link_local(), 546),
        (SERVER_MAC.link_local(), 547),
        &message(SOLICIT, &[client()]),
    );
    let frame = [wire::ethernet(SERVER_MAC, MAC, wire::IPV6), packet].concat();
    assert_eq!(answer_frame(&facts(), &frame).event, not_a_request);
}

proptest! {
    /// Whatever a client sends, no address is given but the planned one, and the answer fits a packet
    /// that every link carries.
    #[test]
    fn nobody_gets_anothers_address(
        kind in 0_u8..14,
        parts in proptest::collection::vec(prop_oneof![
            Just(client()), Just(server()),
            (any::<u8>(), proptest::collection::vec(prop_oneof![Just(ADDRESS), Just("fd00::77")], 0..12))
                .prop_map(|(id, addresses)| association(id, &addresses)),
            (1_u16..60, proptest::collection::vec(any::<u8>(), 0..40)),
        ], 0..12),
    ) {
        if let (_, Some(told)) = ask(kind, &parts) {
            for (code, bytes) in &told.1 {
                if *code == code::IA_NA {
                    for (code, bytes) in options(&bytes[12..]).unwrap() {
                        let is_given = code == code::IA_ADDRESS && bytes[16..] != [0; 8];
                        prop_assert!(!is_given || Ipv6Addr::from(*bytes.first_chunk().unwrap()).to_string() == ADDRESS);
                    }
                }
            }
        }
    }

    #[test]
    fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200), kind: u8) {
        drop(answer_frame(&facts(), &frame(&bytes)));
        let mut torn = message(kind, &[client()]);
        torn.extend(&bytes);
        drop(answer_frame(&facts(), &frame(&torn)));
    }
}
