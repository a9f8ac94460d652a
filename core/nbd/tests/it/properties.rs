//! Whatever the pieces in which bytes come: the same result. Whatever the bytes: no panic, and no more memory
//! than the limits allow.

use crate::desk::{BLOCK, Desk, SIZE, export};
use crate::handshake::both;
use nbd::wire::{
    Chunk, CommandFlags, ErrorChunk, Info, OptionHeader, OptionReply, OptionReplyHeader,
    OptionRequest, ReplyHeader, RequestHeader, StateFlags, StatusChunk, TransmissionFlags,
};
use nbd::{
    Answer, Client, ClientConfig, ClientNext, Command, Cookie, Ending, Failure, Limits, Piece, Tls,
};
use proptest::collection::vec;
use proptest::prelude::*;
use std::collections::BTreeMap;

fn names() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-zäß:/ ]{0,20}",
        Just("disk".to_owned()),
        Just(String::new())
    ]
}

fn queries() -> impl Strategy<Value = Vec<String>> {
    let query = prop_oneof![
        "[a-z]{0,5}:?[a-z]{0,5}",
        Just("base:allocation".to_owned()),
        Just("base:".to_owned())
    ];
    vec(query, 0..5)
}

fn options() -> impl Strategy<Value = OptionRequest> {
    prop_oneof![
        names().prop_map(OptionRequest::ExportName),
        Just(OptionRequest::Abort),
        Just(OptionRequest::List),
        Just(OptionRequest::StartTls),
        Just(OptionRequest::StructuredReply),
        Just(OptionRequest::StructuredReply),
        (names(), vec(0_u16..6, 0..5))
            .prop_map(|(name, wants)| OptionRequest::Info { name, wants }),
        (names(), vec(0_u16..6, 0..5)).prop_map(|(name, wants)| OptionRequest::Go { name, wants }),
        (names(), queries())
            .prop_map(|(name, queries)| OptionRequest::ListMetaContext { name, queries }),
        (names(), queries())
            .prop_map(|(name, queries)| OptionRequest::SetMetaContext { name, queries }),
    ]
}

fn places() -> impl Strategy<Value = (u64, u32)> {
    let end = SIZE as u64;
    let offset = prop_oneof![
        0..end + 10,
        (0..end / 512).prop_map(|block| block * 512),
        any::<u64>()
    ];
    let len = prop_oneof![
        0_u32..5000,
        (0_u32..20).prop_map(|n| n * 512),
        Just(1 << 20)
    ];
    (offset, len)
}

/// A request with a payload if it has one.
fn requests() -> impl Strategy<Value = Vec<u8>> {
    let flags =
        prop_oneof![3 => Just(0_u16), 1 => 0_u16..64, 1 => (0_u32..16).prop_map(|b| 1 << b)];
    (flags, 0_u16..10, any::<u64>(), places()).prop_map(|(flags, command, cookie, place)| {
        let (offset, len) = place;
        let header = RequestHeader {
            flags: CommandFlags(flags),
            command,
            cookie,
            offset,
            len,
        };
        let mut bytes = header.encode().to_vec();
        if command == nbd::wire::command::WRITE {
            bytes.extend((0..len).map(|n| (n % 255) as u8 + 1));
        }
        bytes
    })
}

fn conversations() -> impl Strategy<Value = Vec<u8>> {
    let options = vec(options().prop_map(|option| option.encode()), 0..6);
    let go = prop_oneof![
        Just(
            OptionRequest::Go {
                name: String::new(),
                wants: vec![3]
            }
            .encode()
        ),
        Just(OptionRequest::ExportName("disk".to_owned()).encode()),
    ];
    let end = prop_oneof![9 => Just(Vec::new()), 1 => vec(any::<u8>(), 0..40)];
    (options, go, vec(requests(), 0..12), end).prop_map(|(options, go, requests, end)| {
        [both(), options.concat(), go, requests.concat(), end].concat()
    })
}

fn chunks() -> impl Strategy<Value = Vec<usize>> {
    vec(prop_oneof![1_usize..5, 1_usize..40, 1_usize..9000], 1..8)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn a_server_says_the_same_however_it_is_told(bytes in conversations(), chunks in chunks()) {
        let mut whole = Desk::plain();
        whole.receive(&bytes, &[usize::MAX]);
        let mut pieces = Desk::plain();
        pieces.receive(&bytes, &chunks);
        prop_assert_eq!(&whole.sent, &pieces.sent);
        prop_assert_eq!(&whole.log, &pieces.log);
        prop_assert_eq!(whole.ended, pieces.ended);
        prop_assert!(whole.disk.0 == pieces.disk.0);
    }

    #[test]
    fn any_bytes_leave_a_server_within_its_limits(
        bytes in prop_oneof![vec(any::<u8>(), 0..300), conversations()],
        at in any::<prop::sample::Index>(), byte in any::<u8>(), tls in any::<bool>(),
    ) {
        let mut bytes = bytes;
        if !bytes.is_empty() {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        let limits = Limits { options: 5, requests: 3, bytes: 10_000 };
        let mut desk = Desk::new(export(), if tls { Tls::Required } else { Tls::Absent }, limits);
        desk.receive(&bytes, &[17, 500]);
        let (requests, held) = desk.most_pending;
        prop_assert!(requests <= 3, "{requests} requests");
        // One may be larger, if it is alone.
        prop_assert!(held <= 65536.max(10_000 + u64::from(nbd::PAYLOAD_MAX)), "{held} bytes");
    }

    #[test]
    fn options_are_decoded_as_they_were_encoded(request in options()) {
        let bytes = request.encode();
        let (header, data) = bytes.split_first_chunk().unwrap();
        let header = OptionHeader::decode(header).unwrap();
        prop_assert_eq!((header.option, header.len as usize), (request.code(), data.len()));
        prop_assert_eq!(OptionRequest::decode(header.option, data), Ok(request));
    }

    #[test]
    fn option_replies_are_decoded_as_they_were_encoded(reply in option_replies(), option in any::<u32>()) {
        let bytes = reply.encode(option);
        let (header, data) = bytes.split_first_chunk().unwrap();
        let header = OptionReplyHeader::decode(header).unwrap();
        prop_assert_eq!((header.option, header.len as usize), (option, data.len()));
        prop_assert_eq!(OptionReply::decode(header.kind, data), Some(reply));
    }

    #[test]
    fn headers_and_chunks_are_decoded_as_they_were_encoded(
        flags in any::<u16>(), command in any::<u16>(), cookie in any::<u64>(), place in places(), chunk in some_chunk(),
    ) {
        let (offset, len) = place;
        let request = RequestHeader { flags: CommandFlags(flags), command, cookie, offset, len };
        prop_assert_eq!(RequestHeader::decode(&request.encode()), Some(request));
        let simple = ReplyHeader::Simple { error: len, cookie };
        prop_assert_eq!(ReplyHeader::decode(&simple.encode()), Ok(simple));
        let bytes = chunk.encode(cookie, flags, 0);
        let (header, payload) = bytes.split_at(ReplyHeader::CHUNK_BYTES);
        let header = ReplyHeader::decode(header);
        let expected = ReplyHeader::Chunk { flags, kind: chunk.kind(), cookie, len: payload.len() as u32 };
        prop_assert_eq!(header, Ok(expected));
        prop_assert_eq!(Chunk::decode(chunk.kind(), payload), Ok(chunk));
    }

    #[test]
    fn any_bytes_are_no_harm_to_a_client(bytes in vec(any::<u8>(), 0..400), cut in 0_usize..200) {
        let (mut pair, _) = Pair::ready(true);
        for offset in 0..3 {
            pair.send(Command::Read { offset, len: 600 });
        }
        pair.send(Command::BlockStatus { offset: 0, len: 4096, one: false });
        pair.desk_turn(&[100]);
        // What the server said, and then something else.
        let said = std::mem::take(&mut pair.desk.sent);
        let bytes = [&said[..cut.min(said.len())], &bytes].concat();
        pair.client_takes(&bytes, &[7]);
    }

    #[test]
    fn what_a_client_asks_of_a_server_is_done(
        commands in vec(commands(), 1..20), structured in any::<bool>(), backwards in any::<bool>(),
        to_server in chunks(), to_client in chunks(),
    ) {
        let (mut pair, mut model) = Pair::ready(structured);
        pair.desk.backwards = backwards;
        for group in commands.chunks(5) {
            // What overlaps may be done in either order: a group's writes come before its reads.
            let (writes, reads): (Vec<_>, Vec<_>) = group.iter().cloned().partition(changes);
            for command in writes {
                apply(&mut model, &command);
                pair.send(command);
                pair.turn(&to_server, &to_client);
            }
            for command in reads {
                pair.send(command);
            }
            pair.turn(&to_server, &to_client);
            prop_assert_eq!(pair.client.in_flight(), 0);
            pair.check(&model);
        }
        prop_assert!(pair.desk.disk.0 == model);
        pair.client.close();
        pair.turn(&to_server, &to_client);
        prop_assert_eq!(pair.desk.ended, Some(Ending::Client));
    }
}

fn option_replies() -> impl Strategy<Value = OptionReply> {
    let info = prop_oneof![
        (any::<u64>(), any::<u16>()).prop_map(|(size, flags)| Info::Export {
            size,
            flags: TransmissionFlags(flags)
        }),
        names().prop_map(Info::Name),
        names().prop_map(Info::Description),
        any::<[u32; 3]>().prop_map(|[minimum, preferred, payload_max]| Info::BlockSize {
            minimum,
            preferred,
            payload_max
        }),
        (4_u16..).prop_map(Info::Other),
    ];
    prop_oneof![
        Just(OptionReply::Ack),
        (names(), names())
            .prop_map(|(name, description)| OptionReply::Server { name, description }),
        info.prop_map(OptionReply::Info),
        (any::<u32>(), names()).prop_map(|(id, name)| OptionReply::MetaContext { id, name }),
        (1_u32..=20, names()).prop_map(|(code, message)| {
            let bytes = OptionReply::Refused {
                refusal: nbd::wire::RefusedOption::Other(code),
                message,
            }
            .encode(1);
            OptionReply::decode((1 << 31) | code, &bytes[20..]).unwrap()
        }),
    ]
}

fn some_chunk() -> impl Strategy<Value = Chunk> {
    let extents = vec((1_u32.., any::<u32>().prop_map(StateFlags)), 1..5);
    prop_oneof![
        Just(Chunk::None),
        any::<u64>().prop_map(|offset| Chunk::Data { offset }),
        (any::<u64>(), 1_u32..).prop_map(|(offset, len)| Chunk::Hole { offset, len }),
        (any::<u32>(), extents)
            .prop_map(|(context, extents)| Chunk::Status(StatusChunk { context, extents })),
        (1_u32.., names(), any::<Option<u64>>()).prop_map(|(error, message, offset)| {
            Chunk::Error(ErrorChunk {
                error,
                message,
                offset,
            })
        }),
    ]
}

fn commands() -> impl Strategy<Value = Command<Vec<u8>>> {
    let place = (0..SIZE as u64, 1_u32..9000).prop_map(|(offset, len)| {
        let len = u64::from(len).min(SIZE as u64 - offset) as u32;
        (offset, len)
    });
    (place, 0..8, any::<u8>(), any::<[bool; 3]>()).prop_map(|((offset, len), kind, byte, flags)| {
        let [fua, no_hole, one] = flags;
        match kind {
            0 => Command::Read { offset, len },
            1 | 2 => Command::Write {
                offset,
                data: vec![byte; len as usize],
                fua,
            },
            3 => Command::Flush,
            4 => Command::Trim { offset, len, fua },
            5 => Command::WriteZeroes {
                offset,
                len,
                fua,
                no_hole,
                fast: false,
            },
            6 => Command::Cache { offset, len },
            _ => Command::BlockStatus { offset, len, one },
        }
    })
}

fn changes(command: &Command<Vec<u8>>) -> bool {
    matches!(
        command,
        Command::Write { .. } | Command::Trim { .. } | Command::WriteZeroes { .. }
    )
}

fn apply(model: &mut [u8], command: &Command<Vec<u8>>) {
    match command {
        Command::Write { offset, data, .. } => {
            model[*offset as usize..][..data.len()].copy_from_slice(data);
        }
        Command::Trim { offset, len, .. } | Command::WriteZeroes { offset, len, .. } => {
            model[*offset as usize..][..*len as usize].fill(0);
        }
        _ => {}
    }
}

/// A client and a server.
struct Pair {
    client: Client<Vec<u8>>,
    desk: Desk,
    sent: BTreeMap<Cookie, (Command<Vec<u8>>, Vec<u8>)>,
    answered: Vec<(Cookie, Result<Answer, Failure>)>,
    failed: bool,
}

impl Pair {
    /// They have shaken hands. The model is what is on the disk.
    fn ready(structured: bool) -> (Self, Vec<u8>) {
        let config = ClientConfig {
            export: "disk".to_owned(),
            tls: false,
            allocation: structured,
        };
        let mut pair = Self {
            client: Client::new(config),
            desk: Desk::plain(),
            sent: BTreeMap::new(),
            answered: Vec::new(),
            failed: false,
        };
        for _ in 0..5 {
            pair.turn(&[3], &[5]);
        }
        assert!(pair.desk.server.is_serving());
        let model = pair.desk.disk.0.clone();
        (pair, model)
    }

    fn send(&mut self, command: Command<Vec<u8>>) {
        if let Ok(cookie) = self.client.send(command.clone()) {
            let buffer = match command {
                // A server that gives less than all would leave these.
                Command::Read { len, .. } => vec![0xee; len as usize],
                _ => Vec::new(),
            };
            self.sent.insert(cookie, (command, buffer));
        }
    }

    fn turn(&mut self, to_server: &[usize], to_client: &[usize]) {
        self.desk_turn(to_server);
        let said = std::mem::take(&mut self.desk.sent);
        self.client_takes(&said, to_client);
    }

    fn desk_turn(&mut self, chunks: &[usize]) {
        let mut bytes = Vec::new();
        while let Some(piece) = self.client.poll_transmit() {
            match piece {
                Piece::Head(piece) | Piece::Payload(piece) => bytes.extend(piece),
                Piece::Zeroes(_) | Piece::End(_) => {}
            }
        }
        self.desk.receive(&bytes, chunks);
    }

    fn client_takes(&mut self, bytes: &[u8], chunks: &[usize]) {
        let mut chunks = chunks.iter().cycle().copied();
        let (mut given, mut rest): (&[u8], &[u8]) = (&[], bytes);
        loop {
            match self.client.next(&mut given) {
                ClientNext::Read(_) => {
                    if rest.is_empty() {
                        return;
                    }
                    let chunk = chunks.next().unwrap_or(1).min(rest.len());
                    (given, rest) = rest.split_at(chunk);
                }
                ClientNext::Data { cookie, at, len } => {
                    let (at, len) = (at as usize, len as usize);
                    let all = [given, rest].concat();
                    if all.len() < len {
                        return;
                    }
                    self.buffer(cookie)[at..at + len].copy_from_slice(&all[..len]);
                    let taken = given.len().min(len);
                    (given, rest) = (&given[taken..], &rest[len - taken..]);
                    self.client.payload_received();
                }
                ClientNext::Hole { cookie, at, len } => {
                    self.buffer(cookie)[at as usize..][..len as usize].fill(0);
                }
                ClientNext::Done { cookie, result } => self.answered.push((cookie, result)),
                ClientNext::Ready(_) => {}
                ClientNext::StartTls => panic!("TLS was not asked for"),
                ClientNext::Fail(_) => {
                    self.failed = true;
                    return;
                }
            }
        }
    }

    fn buffer(&mut self, cookie: Cookie) -> &mut [u8] {
        &mut self.sent.get_mut(&cookie).expect("it was sent").1
    }

    /// All was answered as the model has it.
    fn check(&mut self, model: &[u8]) {
        assert!(!self.failed);
        for (cookie, result) in std::mem::take(&mut self.answered) {
            let (command, buffer) = self.sent.remove(&cookie).expect("it was sent");
            match (command, result) {
                (Command::Read { offset, len }, Ok(Answer::Done)) => {
                    assert!(buffer == model[offset as usize..][..len as usize]);
                }
                (Command::BlockStatus { offset, .. }, Ok(Answer::Status(extents))) => {
                    let mut at = offset as usize;
                    for (len, state) in extents {
                        let hole = state.contains(StateFlags::HOLE);
                        let end = at + len as usize;
                        let (from, to) = (at / BLOCK * BLOCK, end.div_ceil(BLOCK) * BLOCK);
                        let zero = model[at..end].iter().all(|byte| *byte == 0);
                        assert!(!hole || zero, "{from}..{to} is no hole");
                        at = end;
                    }
                }
                (_, Ok(Answer::Done)) => {}
                (command, result) => panic!("{command:?}: {result:?}"),
            }
        }
        assert!(self.sent.is_empty());
    }
}

#[test]
fn a_limit_on_requests_is_kept_with_a_client_that_sends_all_at_once() {
    let limits = Limits {
        options: 5,
        requests: 3,
        bytes: 1200,
    };
    let mut desk = Desk::new(export(), Tls::Absent, limits);
    let go = OptionRequest::ExportName("disk".to_owned()).encode();
    let read = RequestHeader {
        flags: CommandFlags::NONE,
        command: 0,
        cookie: 0,
        offset: 0,
        len: 512,
    };
    let bytes = [both(), go, read.encode().repeat(100)].concat();
    desk.receive(&bytes, &[usize::MAX]);
    assert_eq!(desk.most_pending, (3, 1024));
    assert_eq!(desk.log.len(), 102);
}
