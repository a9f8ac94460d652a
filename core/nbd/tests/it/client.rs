//! A client against servers that are as old, as odd or as wrong as they come.

use nbd::wire::{
    Chunk, ErrorChunk, HandshakeFlags, Info, OptionReply, RefusedOption, ReplyHeader, StateFlags,
    StatusChunk, TransmissionFlags, chunk, greeting, option,
};
use nbd::{
    Answer, BlockSizes, Client, ClientConfig, ClientError, ClientNext as Next, Command, Cookie,
    Errno, RemoteExport, Unsendable,
};

fn config() -> ClientConfig {
    ClientConfig {
        export: "disk".to_owned(),
        tls: false,
        allocation: true,
    }
}

fn refused(refusal: RefusedOption) -> OptionReply {
    let message = "because".to_owned();
    OptionReply::Refused { refusal, message }
}

fn all() -> TransmissionFlags {
    TransmissionFlags(0xffff).without(TransmissionFlags::READ_ONLY)
}

fn export(flags: TransmissionFlags) -> OptionReply {
    OptionReply::Info(Info::Export { size: 65536, flags })
}

fn context() -> OptionReply {
    OptionReply::MetaContext {
        id: 3,
        name: "base:allocation".to_owned(),
    }
}

fn hello() -> Vec<u8> {
    greeting(HandshakeFlags::FIXED_NEWSTYLE | HandshakeFlags::NO_ZEROES).to_vec()
}

/// All replies to all options.
fn said(replies: &[(u32, OptionReply)]) -> Vec<u8> {
    let replies = replies.iter().map(|(option, reply)| reply.encode(*option));
    [hello(), replies.collect::<Vec<_>>().concat()].concat()
}

fn shake_hands(config: ClientConfig, bytes: &[u8]) -> (Client<Vec<u8>>, Next) {
    let mut client = Client::new(config);
    let next = client.next(&mut &bytes[..]);
    (client, next)
}

fn modern() -> Vec<u8> {
    said(&[
        (option::STRUCTURED_REPLY, OptionReply::Ack),
        (option::SET_META_CONTEXT, context()),
        (option::SET_META_CONTEXT, OptionReply::Ack),
        (option::GO, export(all())),
        (option::GO, OptionReply::Info(Info::Other(99))),
        (option::GO, OptionReply::Ack),
    ])
}

fn old() -> Vec<u8> {
    let unsupported = || refused(RefusedOption::Unsupported);
    let mut bytes = said(&[
        (option::STRUCTURED_REPLY, unsupported()),
        (option::GO, unsupported()),
    ]);
    bytes.extend(65536_u64.to_be_bytes());
    bytes.extend(all().0.to_be_bytes());
    bytes
}

fn ready(bytes: &[u8]) -> Client<Vec<u8>> {
    let (mut client, next) = shake_hands(config(), bytes);
    assert!(matches!(next, Next::Ready(_)), "{next:?}");
    while client.poll_transmit().is_some() {}
    client
}

#[test]
fn a_server_that_can_all_is_asked_for_all() {
    let (_, next) = shake_hands(config(), &modern());
    let expected = RemoteExport {
        size: 65536,
        flags: all(),
        block_sizes: BlockSizes::DEFAULT,
        structured: true,
        allocation: Some(3),
        name: None,
        description: None,
    };
    assert_eq!(next, Next::Ready(expected));
}

#[test]
fn a_server_that_can_little_is_asked_by_name() {
    let (_, next) = shake_hands(config(), &old());
    let Next::Ready(export) = next else {
        panic!("{next:?}");
    };
    assert_eq!(
        (export.size, export.structured, export.allocation),
        (65536, false, None)
    );
}

#[test]
fn handshakes_that_come_to_nothing_say_why() {
    let tls = || ClientConfig {
        tls: true,
        ..config()
    };
    let plain = |option, refusal| said(&[(option, refused(refusal))]);
    let go = |reply: OptionReply| {
        said(&[
            (option::STRUCTURED_REPLY, refused(RefusedOption::Policy)),
            (option::GO, reply),
            (option::GO, OptionReply::Ack),
        ])
    };
    let sizes = |minimum, preferred, payload_max| {
        OptionReply::Info(Info::BlockSize {
            minimum,
            preferred,
            payload_max,
        })
    };
    let mut old_style = hello();
    old_style[8..16].copy_from_slice(&0x0000_4202_8186_1253_u64.to_be_bytes());
    let table: [(ClientConfig, Vec<u8>, &str); 13] = [
        (config(), old_style, "NotNbd"),
        (config(), greeting(HandshakeFlags::NONE).to_vec(), "NotNbd"),
        (
            config(),
            plain(option::STRUCTURED_REPLY, RefusedOption::TlsRequired),
            "TlsRequired",
        ),
        (
            config(),
            plain(option::STRUCTURED_REPLY, RefusedOption::Shutdown),
            "NotServed",
        ),
        (
            tls(),
            plain(option::STARTTLS, RefusedOption::Policy),
            "NoTls",
        ),
        (
            config(),
            go(refused(RefusedOption::UnknownExport)),
            "NotServed",
        ),
        (config(), go(refused(RefusedOption::Other(77))), "NotServed"),
        (config(), go(OptionReply::Ack), "without having been told"),
        (config(), go(sizes(3, 512, 512)), "block sizes"),
        (config(), go(sizes(1, 512, 511)), "block sizes"),
        (config(), go(context()), "does not fit"),
        (
            config(),
            plain(option::GO, RefusedOption::Policy),
            "not sent",
        ),
        (
            config(),
            said(&[(option::STRUCTURED_REPLY, context())]),
            "does not fit",
        ),
    ];
    for (config, bytes, expected) in table {
        let (_, next) = shake_hands(config, &bytes);
        let Next::Fail(error) = next else {
            panic!("{next:?}, not {expected}");
        };
        let text = format!("{error:?}");
        assert!(text.contains(expected), "{text}, not {expected}");
    }
    let huge = [
        hello(),
        OptionReply::Ack.encode(8)[..16].to_vec(),
        vec![0xff; 4],
    ]
    .concat();
    assert!(matches!(
        shake_hands(config(), &huge).1,
        Next::Fail(ClientError::Violation(_))
    ));
}

#[test]
fn with_tls_nothing_is_said_before() {
    let config = ClientConfig {
        tls: true,
        ..config()
    };
    let bytes = said(&[(option::STARTTLS, OptionReply::Ack)]);
    let (mut client, next) = shake_hands(config, &bytes);
    assert_eq!(next, Next::StartTls);
    let mut sent = Vec::new();
    while let Some(nbd::Piece::Head(bytes)) = client.poll_transmit() {
        sent.extend(bytes);
    }
    assert_eq!(sent.len(), 4 + 16);
    client.tls_started();
    let rest = &modern()[hello().len()..];
    assert!(matches!(client.next(&mut &rest[..]), Next::Ready(_)));
}

#[test]
fn requests_that_the_export_does_not_take_are_not_sent() {
    let read = |offset, len| Command::Read { offset, len };
    let write = |len| Command::Write {
        offset: 0,
        data: vec![0; len],
        fua: true,
    };
    let status = Command::BlockStatus {
        offset: 0,
        len: 512,
        one: false,
    };
    let mut client = ready(&modern());
    for command in [read(0, 0), read(65536, 1), read(u64::MAX, 2)] {
        assert!(matches!(
            client.send(command),
            Err(Unsendable::OutOfRange { .. })
        ));
    }
    assert!(client.send(status.clone()).is_ok());
    let sizes = |minimum, payload_max| {
        let sizes = Info::BlockSize {
            minimum,
            preferred: 4096,
            payload_max,
        };
        said(&[
            (option::STRUCTURED_REPLY, refused(RefusedOption::Policy)),
            (option::GO, OptionReply::Info(sizes)),
            (option::GO, export(TransmissionFlags::HAS_FLAGS)),
            (option::GO, OptionReply::Ack),
        ])
    };
    let mut client = ready(&sizes(512, 4096));
    assert!(matches!(
        client.send(read(0, 100)),
        Err(Unsendable::Unaligned { .. })
    ));
    assert!(matches!(
        client.send(read(256, 512)),
        Err(Unsendable::Unaligned { .. })
    ));
    assert!(matches!(
        client.send(read(0, 8192)),
        Err(Unsendable::TooLarge { .. })
    ));
    for command in [
        status,
        Command::Flush,
        write(512),
        Command::Cache {
            offset: 0,
            len: 512,
        },
    ] {
        assert_eq!(client.send(command), Err(Unsendable::NotOffered));
    }
    assert!(client.send(read(512, 512)).is_ok());
    client.close();
    assert_eq!(client.send(read(512, 512)), Err(Unsendable::Closing));
    let flags = TransmissionFlags::HAS_FLAGS | TransmissionFlags::READ_ONLY;
    let mut client = ready(&said(&[
        (option::STRUCTURED_REPLY, refused(RefusedOption::Policy)),
        (option::GO, export(flags)),
        (option::GO, OptionReply::Ack),
    ]));
    assert_eq!(client.send(write(512)), Err(Unsendable::ReadOnly));
}

/// A request, what is answered, and what becomes of it.
fn outcome(handshake: &[u8], command: Command<Vec<u8>>, answer: &[Vec<u8>]) -> String {
    let mut client = ready(handshake);
    let cookie = client.send(command).expect("it can be sent");
    let bytes = answer.concat();
    let mut given = &bytes[..];
    loop {
        match client.next(&mut given) {
            Next::Data { len, .. } => {
                given = &given[len as usize..];
                client.payload_received();
            }
            Next::Hole { .. } => {}
            Next::Done {
                cookie: done,
                result,
            } => {
                assert_eq!(done, cookie);
                return match result {
                    Ok(Answer::Done) => "done".to_owned(),
                    Ok(Answer::Status(extents)) => format!("{} extents", extents.len()),
                    Err(failure) => failure.to_string(),
                };
            }
            Next::Fail(error) => return error.to_string(),
            other => return format!("{other:?}"),
        }
    }
}

const COOKIE: u64 = 1;

fn simple(error: u32) -> Vec<u8> {
    ReplyHeader::Simple {
        error,
        cookie: COOKIE,
    }
    .encode()
}

fn data(offset: u64, len: usize, flags: u16) -> Vec<u8> {
    let mut bytes = Chunk::Data { offset }.encode(COOKIE, flags, len as u32);
    bytes.extend(vec![7; len]);
    bytes
}

fn hole(offset: u64, len: u32, flags: u16) -> Vec<u8> {
    Chunk::Hole { offset, len }.encode(COOKIE, flags, 0)
}

fn none() -> Vec<u8> {
    Chunk::None.encode(COOKIE, chunk::DONE, 0)
}

fn error(error: u32, offset: Option<u64>, flags: u16) -> Vec<u8> {
    let message = "because".to_owned();
    Chunk::Error(ErrorChunk {
        error,
        message,
        offset,
    })
    .encode(COOKIE, flags, 0)
}

fn status(context: u32, lens: &[u32]) -> Vec<u8> {
    let extents = lens.iter().map(|len| (*len, StateFlags::HOLE)).collect();
    Chunk::Status(StatusChunk { context, extents }).encode(COOKIE, chunk::DONE, 0)
}

const BAD: &str = "the server does not keep to the protocol: ";

#[test]
fn reads_are_put_together() {
    let read = || Command::Read {
        offset: 1000,
        len: 100,
    };
    let d = chunk::DONE;
    let kind = |kind: u16, flags: u16, len: u32| {
        ReplyHeader::Chunk {
            flags,
            kind,
            cookie: COOKIE,
            len,
        }
        .encode()
    };
    let other = ReplyHeader::Chunk {
        flags: d,
        kind: 0,
        cookie: 99,
        len: 0,
    }
    .encode();
    let bad = |what: &str| format!("{BAD}{what}");
    for (answer, expected) in [
        (vec![data(1000, 100, d)], "done".to_owned()),
        (
            vec![data(1050, 50, 0), hole(1000, 50, 0), none()],
            "done".to_owned(),
        ),
        (vec![hole(1000, 100, 0x8000 | d)], "done".to_owned()),
        (
            vec![error(5, None, d)],
            "input/output error: because".to_owned(),
        ),
        (
            vec![data(1000, 100, 0), error(5, Some(1010), 0), none()],
            "input/output error: because".to_owned(),
        ),
        (
            vec![error(4711, None, d)],
            "invalid request: because".to_owned(),
        ),
        (
            vec![kind(0x8001 + 8, d, 6), vec![0, 0, 0, 28, 0, 0]],
            "no space left".to_owned(),
        ),
        (
            vec![none()],
            bad("a read that succeeded without all of its data"),
        ),
        (
            vec![data(1000, 99, d)],
            bad("a read that succeeded without all of its data"),
        ),
        (
            vec![data(1000, 101, d)],
            bad("data that was not asked for, or came before"),
        ),
        (
            vec![data(999, 2, d)],
            bad("data that was not asked for, or came before"),
        ),
        (
            vec![data(1000, 50, 0), data(1049, 51, d)],
            bad("data that was not asked for, or came before"),
        ),
        (
            vec![data(1000, 50, 0), hole(1049, 1, d)],
            bad("a hole that was not asked for, or came before"),
        ),
        (
            vec![hole(u64::MAX, 100, d)],
            bad("a hole that was not asked for, or came before"),
        ),
        (
            vec![status(3, &[100])],
            bad("block status that was not asked for"),
        ),
        (
            vec![simple(0)],
            bad("a simple reply to a read, with structured replies"),
        ),
        (
            vec![simple(5)],
            bad("a simple reply to a read, with structured replies"),
        ),
        (
            vec![kind(0, 0, 0)],
            bad("an empty chunk that is not the last"),
        ),
        (
            vec![kind(0, d, 1), vec![0]],
            bad("a chunk that is too long"),
        ),
        (vec![kind(1, d, 8)], bad("a chunk without data")),
        (vec![kind(2, d, 13)], bad("a chunk that is too long")),
        (vec![kind(2, d, 11), vec![0; 11]], bad("a malformed chunk")),
        (vec![kind(77, d, 0)], bad("a chunk of an unknown kind")),
        (
            vec![kind(0x8001, d, 5), vec![0; 5]],
            bad("a malformed chunk"),
        ),
        (
            vec![kind(0x8001, d, 6), vec![0, 0, 0, 5, 0, 1]],
            bad("a malformed chunk"),
        ),
        (
            vec![kind(0x8001, d, u32::MAX)],
            bad("a chunk that is too long"),
        ),
        (vec![other], bad("a reply to what was not asked")),
        (
            vec![vec![0; 4]],
            bad("a reply does not begin with a magic number"),
        ),
    ] {
        assert_eq!(outcome(&modern(), read(), &answer), expected);
    }
}

#[test]
fn reads_of_a_simple_server_come_whole_or_not_at_all() {
    let read = || Command::Read {
        offset: 1000,
        len: 100,
    };
    for (answer, expected) in [
        (vec![simple(0), vec![7; 100]], "done"),
        (vec![simple(5)], "input/output error"),
        (
            vec![data(1000, 100, 1)],
            &format!("{BAD}a structured reply that was not agreed on"),
        ),
        (vec![simple(0), vec![7; 100], simple(0)], "done"),
    ] {
        assert_eq!(outcome(&old(), read(), &answer), expected);
    }
}

#[test]
fn block_status_is_what_was_asked_for() {
    let ask = |one| Command::BlockStatus {
        offset: 0,
        len: 1024,
        one,
    };
    let bad = format!("{BAD}block status that was not asked for");
    for (one, answer, expected) in [
        (false, vec![status(3, &[512, 512])], "2 extents"),
        (false, vec![status(3, &[512, 4096])], "2 extents"),
        (false, vec![status(3, &[100])], "1 extents"),
        (false, vec![status(3, &[1024, 512])], &bad),
        (false, vec![status(4, &[512])], &bad),
        (true, vec![status(3, &[1024])], "1 extents"),
        (true, vec![status(3, &[1025])], &bad),
        (true, vec![status(3, &[1, 1])], &bad),
        (
            false,
            vec![none()],
            &format!("{BAD}block status without any"),
        ),
        (
            false,
            vec![simple(0)],
            &format!("{BAD}block status without any"),
        ),
        (false, vec![simple(22)], "invalid request"),
        (
            false,
            vec![status(3, &[0])],
            &format!("{BAD}a malformed chunk"),
        ),
        (
            false,
            vec![error(5, None, 1)],
            "input/output error: because",
        ),
        (
            false,
            vec![data(0, 512, 1)],
            &format!("{BAD}data that was not asked for, or came before"),
        ),
    ] {
        assert_eq!(outcome(&modern(), ask(one), &answer), expected);
    }
}

#[test]
fn what_was_not_answered_is_known_when_the_connection_is_lost() {
    let mut client = ready(&modern());
    let write = |n: u8| Command::Write {
        offset: 0,
        data: vec![n; 8],
        fua: false,
    };
    let cookies: Vec<Cookie> = (0..4).map(|n| client.send(write(n)).unwrap()).collect();
    let answer = ReplyHeader::Simple {
        error: 0,
        cookie: 2,
    }
    .encode();
    let next = client.next(&mut &answer[..]);
    assert_eq!(
        next,
        Next::Done {
            cookie: cookies[1],
            result: Ok(Answer::Done)
        }
    );
    let unanswered = client.into_unanswered();
    let expected: Vec<_> = [0, 2, 3].map(|n| (cookies[n], write(n as u8))).into();
    assert_eq!(unanswered, expected);
}

#[test]
fn goodbye_is_said_when_all_is_answered_or_the_server_stops() {
    for error in [0, Errno::Shutdown.code()] {
        let mut client = ready(&modern());
        client.send(Command::Flush).unwrap();
        if error == 0 {
            client.close();
        }
        assert!(!client.is_closed());
        let answer = simple(error);
        assert!(matches!(client.next(&mut &answer[..]), Next::Done { .. }));
        assert!(client.is_closed());
        assert_eq!(client.send(Command::Flush), Err(Unsendable::Closing));
        let pieces: Vec<_> = std::iter::from_fn(|| client.poll_transmit()).collect();
        assert_eq!(pieces.len(), 2);
    }
}
