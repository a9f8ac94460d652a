//! What a server answers to options.

use crate::desk::{Desk, SIZE, export};
use nbd::wire::{
    ClientFlags, HandshakeFlags, OptionReply, OptionReplyHeader, OptionRequest, RefusedOption,
    TransmissionFlags, greeting, info,
};
use nbd::{BlockSizes, Ending, Export, Limits, PAYLOAD_MAX, Tls};

/// An option as raw bytes.
pub(crate) fn raw(option: u32, data: &[u8]) -> Vec<u8> {
    let header = [
        &nbd::wire::OPTION_MAGIC.to_be_bytes()[..],
        &option.to_be_bytes(),
        &(data.len() as u32).to_be_bytes(),
    ];
    [&header.concat()[..], data].concat()
}

pub(crate) fn flags(flags: ClientFlags) -> Vec<u8> {
    flags.0.to_be_bytes().to_vec()
}

pub(crate) fn both() -> Vec<u8> {
    flags(ClientFlags::FIXED_NEWSTYLE | ClientFlags::NO_ZEROES)
}

/// What was said behind the greeting, as option and reply.
pub(crate) fn replies(desk: &Desk) -> Vec<(u32, OptionReply)> {
    let hello = greeting(HandshakeFlags::FIXED_NEWSTYLE | HandshakeFlags::NO_ZEROES);
    let mut rest = desk
        .sent
        .strip_prefix(&hello)
        .expect("a greeting comes first");
    let mut replies = Vec::new();
    while let Some((header, behind)) = rest.split_first_chunk() {
        let header = OptionReplyHeader::decode(header).expect("a reply's header");
        let (data, behind) = behind.split_at(header.len as usize);
        let reply = OptionReply::decode(header.kind, data).expect("a reply");
        replies.push((header.option, reply));
        rest = behind;
    }
    replies
}

/// How the replies begin to an option that comes first, as text; messages are left out.
fn answer(mut desk: Desk, bytes: &[Vec<u8>]) -> (String, Option<Ending>) {
    desk.receive(&[both(), bytes.concat()].concat(), &[usize::MAX]);
    let said = replies(&desk)
        .into_iter()
        .map(|(option, reply)| match reply {
            OptionReply::Refused { refusal, .. } => format!("{option}: {refusal:?}"),
            reply => format!("{option}: {reply:?}"),
        });
    (said.collect::<Vec<_>>().join("\n"), desk.ended)
}

fn check(bytes: &[Vec<u8>], expected: &str) {
    assert_eq!(answer(Desk::plain(), bytes), (expected.to_owned(), None));
}

fn go(name: &str, wants: &[u16]) -> Vec<u8> {
    let (name, wants) = (name.to_owned(), wants.to_vec());
    OptionRequest::Go { name, wants }.encode()
}

fn ask(name: &str, wants: &[u16]) -> Vec<u8> {
    let (name, wants) = (name.to_owned(), wants.to_vec());
    OptionRequest::Info { name, wants }.encode()
}

fn set(name: &str, queries: &[&str]) -> Vec<u8> {
    let queries = queries.iter().map(|query| query.to_string()).collect();
    let name = name.to_owned();
    OptionRequest::SetMetaContext { name, queries }.encode()
}

fn list(name: &str, queries: &[&str]) -> Vec<u8> {
    let queries = queries.iter().map(|query| query.to_string()).collect();
    let name = name.to_owned();
    OptionRequest::ListMetaContext { name, queries }.encode()
}

const STRUCTURED: OptionRequest = OptionRequest::StructuredReply;
const TOLD: &str = "Info(Export { size: 65536, flags: HAS_FLAGS|SEND_FLUSH|SEND_FUA|SEND_TRIM\
    |SEND_WRITE_ZEROES|CAN_MULTI_CONN|SEND_CACHE|SEND_FAST_ZERO })";
const SIZES: &str = "Info(BlockSize { minimum: 1, preferred: 4096, payload_max: 33554432 })";

#[test]
fn an_export_is_told_of_with_what_was_asked() {
    let bare = |n| format!("{n}: {TOLD}\n{n}: {SIZES}\n{n}: Ack");
    check(&[ask("disk", &[])], &bare(6));
    check(&[ask("", &[])], &bare(6));
    check(
        &[ask("disk", &[info::EXPORT, 77, info::BLOCK_SIZE])],
        &bare(6),
    );
    check(&[go("disk", &[])], &bare(7));
    let texts = "6: Info(Name(\"disk\"))\n6: Info(Description(\"for tests\"))";
    check(
        &[ask("", &[info::NAME, info::DESCRIPTION])],
        &format!("6: {TOLD}\n6: {SIZES}\n{texts}\n6: Ack"),
    );
    check(&[ask("other", &[])], "6: UnknownExport");
    check(
        &[go("other", &[]), ask("other", &[])],
        "7: UnknownExport\n6: UnknownExport",
    );
}

#[test]
fn an_answer_to_info_is_the_same_again_with_go() {
    let wants = [info::NAME, info::BLOCK_SIZE];
    let (said, _) = answer(Desk::plain(), &[ask("disk", &wants), go("disk", &wants)]);
    let (first, second) = said.split_at(said.find("\n7:").unwrap() + 1);
    assert_eq!(first.trim_end().replace("6: ", "7: "), second);
}

#[test]
fn exports_are_listed() {
    let server = OptionReply::Server {
        name: "disk".to_owned(),
        description: "for tests".to_owned(),
    };
    let listed = format!("3: {server:?}\n3: Ack");
    check(&[OptionRequest::List.encode()], &listed);
    check(&[raw(3, b"x")], "3: Invalid");
}

#[test]
fn what_is_unknown_or_malformed_is_refused_and_the_next_option_understood() {
    let next = || raw(8, b"");
    let many = vec!["base:allocation"; 65];
    for (option, expected) in [
        (raw(4, b"peek"), "4: Unsupported"),
        (raw(11, b""), "11: Unsupported"),
        (raw(0xdead_beef, &[7; 60_000]), "3735928559: Unsupported"),
        (raw(0xdead_beef, &[7; 1 << 20]), "3735928559: Unsupported"),
        (raw(6, &[7; 1 << 20]), "6: TooBig"),
        (raw(5, b""), "5: Policy"),
        (raw(5, b"x"), "5: Invalid"),
        (raw(8, b"x"), "8: Invalid"),
        (raw(6, b""), "6: Invalid"),
        (raw(6, &[0, 0, 0, 5, b'd']), "6: Invalid"),
        (
            raw(6, &[0, 0, 0, 4, b'd', b'i', b's', b'k', 0]),
            "6: Invalid",
        ),
        (
            raw(7, &[0, 0, 0, 4, b'd', b'i', b's', b'k', 0, 2, 0, 1]),
            "7: Invalid",
        ),
        (raw(7, &[0, 0, 0, 1, 0xff, 0, 0]), "7: Invalid"),
        (raw(7, &[0, 0, 0, 1, 0, 0, 0]), "7: Invalid"),
        (raw(7, &[0xff, 0xff, 0xff, 0xff, 0, 0]), "7: Invalid"),
        (go(&"n".repeat(4097), &[]), "7: Invalid"),
        (go(&"n".repeat(4096), &[]), "7: UnknownExport"),
        (set("disk", &["base:allocation"]), "10: Invalid"),
        (list("disk", &[]), "9: Invalid"),
        (set("disk", &many), "10: TooBig"),
    ] {
        check(&[option, next()], &format!("{expected}\n8: Ack"));
    }
}

#[test]
fn metadata_contexts_are_listed_and_selected() {
    let first = STRUCTURED.encode();
    let found = |id| format!("MetaContext {{ id: {id}, name: \"base:allocation\" }}");
    let table: [(Vec<u8>, &str); 14] = [
        (list("disk", &[]), &format!("9: {}\n9: Ack", found(0))),
        (
            list("disk", &["base:"]),
            &format!("9: {}\n9: Ack", found(0)),
        ),
        (
            list("", &["base:allocation"]),
            &format!("9: {}\n9: Ack", found(0)),
        ),
        (list("disk", &["base:other", "x-mine:"]), "9: Ack"),
        (list("other", &[]), "9: UnknownExport"),
        (list("disk", &["allocation"]), "9: Invalid"),
        (list("disk", &[":allocation"]), "9: Invalid"),
        (set("disk", &[]), "10: Ack"),
        (set("disk", &["base:"]), "10: Ack"),
        (
            set("disk", &["qemu:dirty-bitmap:b", "base:depth"]),
            "10: Ack",
        ),
        (
            set("disk", &["x-mine:y", "base:allocation", "base:allocation"]),
            &format!("10: {}\n10: Ack", found(1)),
        ),
        (set("other", &["base:allocation"]), "10: UnknownExport"),
        (set("disk", &["base"]), "10: Invalid"),
        (
            raw(10, &[0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 1, b'x']),
            "10: Invalid",
        ),
    ];
    for (option, expected) in table {
        check(&[first.clone(), option], &format!("8: Ack\n{expected}"));
    }
}

#[test]
fn before_tls_nothing_is_told_where_it_is_required() {
    let desk = || Desk::new(export(), Tls::Required, Limits::default());
    for option in [
        go("disk", &[]),
        ask("disk", &[]),
        raw(3, b""),
        raw(8, b""),
        raw(99, b""),
        raw(99, &[7; 1 << 17]),
        raw(10, b"malformed"),
    ] {
        let code = u32::from_be_bytes(option[8..12].try_into().unwrap());
        assert_eq!(
            answer(desk(), &[option, raw(5, b"x"), raw(2, b"")]),
            (
                format!("{code}: TlsRequired\n5: Invalid\n2: Ack"),
                Some(Ending::Client)
            )
        );
    }
    let (said, ended) = answer(desk(), &[raw(1, b"disk")]);
    assert_eq!(
        (said.as_str(), ended),
        ("", Some(Ending::Refused("an export without TLS")))
    );
}

#[test]
fn tls_forgets_what_was_agreed_on_before() {
    // In FORCEDTLS nothing can be; so what is asked after must be asked again in any case.
    let desk = Desk::new(export(), Tls::Required, Limits::default());
    let (said, _) = answer(
        desk,
        &[
            STRUCTURED.encode(),
            raw(5, b""),
            set("disk", &["base:allocation"]),
            STRUCTURED.encode(),
            raw(5, b""),
            ask("other", &[]),
        ],
    );
    assert_eq!(
        said,
        "8: TlsRequired\n5: Ack\n10: Invalid\n8: Ack\n5: Invalid\n6: UnknownExport"
    );
}

#[test]
fn an_export_by_its_old_name_option() {
    for (client, zeroes) in [
        (ClientFlags::FIXED_NEWSTYLE | ClientFlags::NO_ZEROES, 0),
        (ClientFlags::FIXED_NEWSTYLE, 124),
        (ClientFlags::NONE, 124),
    ] {
        let mut desk = Desk::plain();
        desk.receive(&[flags(client), raw(1, b"disk")].concat(), &[usize::MAX]);
        let told = &desk.sent[18..];
        assert_eq!(told[..8], (SIZE as u64).to_be_bytes());
        let offered = u16::from_be_bytes(told[8..10].try_into().unwrap());
        assert!(!TransmissionFlags(offered).contains(TransmissionFlags::SEND_DF));
        assert_eq!(told[10..], vec![0; zeroes]);
        assert_eq!(desk.log, ["find \"disk\"", "serve"]);
    }
}

#[test]
fn what_cannot_be_answered_ends_the_connection() {
    let ends = |bytes: &[Vec<u8>]| {
        let mut desk = Desk::plain();
        desk.receive(&bytes.concat(), &[usize::MAX]);
        desk.ended.expect("it ends").to_string()
    };
    let announce = |option: u32, len: u32| {
        let mut bytes = raw(option, b"");
        bytes[12..].copy_from_slice(&len.to_be_bytes());
        bytes
    };
    for (bytes, why) in [
        (vec![flags(ClientFlags(4))], "flags that were not offered"),
        (vec![both(), raw(1, b"other")], "no such export"),
        (vec![both(), raw(1, &[0xff])], "no string"),
        (vec![both(), raw(1, &[b'n'; 4097])], "no string"),
        (vec![both(), vec![0; 16]], "magic number"),
        (vec![both(), announce(99, PAYLOAD_MAX + 1)], "too much data"),
        (vec![both(), announce(1, 1 << 17)], "too much data"),
        (vec![both(), announce(99, u32::MAX)], "too much data"),
        (
            vec![flags(ClientFlags::NONE), raw(8, b"")],
            "without fixed newstyle",
        ),
        (vec![both(), raw(99, b"").repeat(129)], "too many options"),
        (vec![both(), raw(2, b"goodbye")], "the client is done"),
    ] {
        let ended = ends(&bytes);
        assert!(ended.contains(why), "{ended}, not {why}");
    }
}

#[test]
fn a_server_that_stops_begins_nothing() {
    let mut desk = Desk::plain();
    desk.receive(&both(), &[usize::MAX]);
    desk.server.shut_down();
    desk.receive(&[go("disk", &[]), raw(2, b"")].concat(), &[usize::MAX]);
    let (_, first) = &replies(&desk)[0];
    assert!(matches!(
        first,
        OptionReply::Refused {
            refusal: RefusedOption::Shutdown,
            ..
        }
    ));
    assert_eq!(desk.ended, Some(Ending::Client));
}

#[test]
fn one_option_is_answered_before_the_next_is_read() {
    let mut desk = Desk::plain();
    desk.transmit();
    let bytes = [both(), raw(99, b""), raw(98, b"")].concat();
    let mut given = &bytes[..];
    assert_eq!(desk.server.next(&mut given), nbd::Next::Wait);
    assert_eq!(given.len(), 16);
    desk.transmit();
    assert_eq!(desk.server.next(&mut given), nbd::Next::Wait);
    assert_eq!(given.len(), 0);
}

#[test]
fn exports_that_the_protocol_cannot_tell_of_are_none() {
    let name = |name: &str| Export::new(name, 512, BlockSizes::DEFAULT).is_ok();
    assert!(name("") && name(&"n".repeat(4096)));
    assert!(!name(&"n".repeat(4097)) && !name("n\0"));
    let size = |size, minimum| {
        let sizes = BlockSizes::new(minimum, 4096, PAYLOAD_MAX).unwrap();
        Export::new("n", size, sizes).is_ok()
    };
    assert!(size(0, 1) && size(u64::MAX >> 1, 1) && size(4096, 4096));
    assert!(!size(1 << 63, 1) && !size(4095, 4096));
    for (minimum, preferred, payload, fine) in [
        (1, 512, 512, true),
        (1 << 16, 1 << 16, u32::MAX, true),
        (0, 512, 512, false),
        (3, 512, 512, false),
        (1 << 17, 1 << 17, u32::MAX, false),
        (1, 256, 512, false),
        (4096, 512, 4096, false),
        (1, 4096, 4095, false),
    ] {
        assert_eq!(BlockSizes::new(minimum, preferred, payload).is_ok(), fine);
    }
}
