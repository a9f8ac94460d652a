//! What a server answers to requests.

use crate::desk::{Desk, SIZE, export};
use crate::handshake::{both, raw};
use nbd::wire::{Chunk, CommandFlags, OptionRequest, ReplyHeader, RequestHeader, chunk, command};
use nbd::{BlockSizes, Ending, Errno, Export, Failure, Limits, Next, Tls};

#[derive(Clone, Copy, PartialEq)]
enum Replies {
    Simple,
    Structured,
}
use Replies::{Simple, Structured};

/// A desk whose client has chosen the export.
fn serving(export: Export, limits: Limits, replies: Replies) -> Desk {
    let mut desk = Desk::new(export, Tls::Absent, limits);
    let mut bytes = both();
    if replies == Structured {
        bytes.extend(OptionRequest::StructuredReply.encode());
        let (name, queries) = ("disk".to_owned(), vec!["base:allocation".to_owned()]);
        bytes.extend(OptionRequest::SetMetaContext { name, queries }.encode());
    }
    bytes.extend(raw(1, b"disk"));
    desk.receive(&bytes, &[usize::MAX]);
    assert!(desk.server.is_serving());
    desk.sent.clear();
    desk.log.clear();
    desk
}

fn simple() -> Desk {
    serving(export(), Limits::default(), Simple)
}

fn structured() -> Desk {
    serving(export(), Limits::default(), Structured)
}

fn request(command: u16, flags: u16, offset: u64, len: u32) -> Vec<u8> {
    let header = RequestHeader {
        flags: CommandFlags(flags),
        command,
        cookie: 0xc00c1e,
        offset,
        len,
    };
    header.encode().to_vec()
}

/// Everything that was answered, as text; data as its length.
fn said(desk: &mut Desk, read_len: usize) -> Vec<String> {
    let sent = std::mem::take(&mut desk.sent);
    let mut rest = &sent[..];
    let mut said = Vec::new();
    while let Some(magic) = rest.first_chunk() {
        let (header, behind) = rest.split_at(ReplyHeader::size(*magic).unwrap());
        rest = behind;
        match ReplyHeader::decode(header).unwrap() {
            ReplyHeader::Simple { error, cookie } => {
                assert_eq!(cookie, 0xc00c1e);
                said.push(match error {
                    0 => "ok".to_owned(),
                    error => format!("{:?}", Errno::from_code(error).unwrap()),
                });
                if error == 0 {
                    rest = &rest[read_len..];
                }
            }
            ReplyHeader::Chunk {
                flags,
                kind,
                cookie,
                len,
            } => {
                assert_eq!(cookie, 0xc00c1e);
                let (payload, behind) = rest.split_at(len as usize);
                rest = behind;
                let done = if flags == chunk::DONE { "" } else { ".." };
                said.push(match kind {
                    chunk::OFFSET_DATA => {
                        let offset = u64::from_be_bytes(payload[..8].try_into().unwrap());
                        format!("data {offset}+{}{done}", len - 8)
                    }
                    kind => match Chunk::decode(kind, payload).unwrap() {
                        Chunk::None => format!("none{done}"),
                        Chunk::Hole { offset, len } => format!("hole {offset}+{len}{done}"),
                        Chunk::Status(status) => format!("{:?}{done}", status.extents),
                        Chunk::Error(error) => {
                            assert_eq!(done, "");
                            assert!(!error.message.is_empty());
                            let errno = Errno::from_code(error.error).unwrap();
                            let place = error.offset.map(|at| format!(" at {at}"));
                            format!("{errno:?}{}", place.unwrap_or_default())
                        }
                        Chunk::Data { .. } => unreachable!(),
                    },
                });
            }
        }
    }
    said
}

const R: u16 = command::READ;
const W: u16 = command::WRITE;
const F: u16 = command::FLUSH;
const T: u16 = command::TRIM;
const C: u16 = command::CACHE;
const Z: u16 = command::WRITE_ZEROES;
const S: u16 = command::BLOCK_STATUS;
const END: u64 = SIZE as u64;

/// Each command with each flag, once with simple and once with structured replies.
#[test]
fn flags_that_a_command_does_not_have_are_refused() {
    for replies in [Simple, Structured] {
        for command in [R, W, F, T, C, Z, S, 8, 9, 0xffff] {
            for bit in 0..16 {
                let allowed = match (command, bit) {
                    (8.., _) => false,
                    (S, _) if replies == Simple => false,
                    (_, 0) => true,
                    (Z, 1 | 4) => true,
                    (R, 2) => replies == Structured,
                    (S, 3) => true,
                    _ => false,
                };
                let mut desk = serving(export(), Limits::default(), replies);
                let len = if command == F { 0 } else { 512 };
                let mut bytes = request(command, 1 << bit, 0, len);
                if command == W {
                    bytes.extend([7; 512]);
                }
                desk.receive(&bytes, &[usize::MAX]);
                let read = if command == R { 512 } else { 0 };
                let said = said(&mut desk, read).join(" ");
                assert_eq!(said == "Invalid", !allowed, "{command} {bit}: {said}");
                assert_eq!(desk.log.is_empty(), !allowed);
                // And it is understood what comes next.
                desk.receive(&request(F, 0, 0, 0), &[usize::MAX]);
                assert_eq!(crate::transmission::said(&mut desk, 0), ["ok"]);
            }
        }
    }
}

#[test]
fn ranges_and_lengths_that_cannot_be_are_refused() {
    // command, offset, length, with simple, with structured replies
    let over = nbd::PAYLOAD_MAX + 1;
    let table = [
        (R, END - 1, 1, "ok", "hole 65535+1"),
        (R, END, 1, "Invalid", "Invalid"),
        (R, END - 1, 2, "Invalid", "Invalid"),
        (R, u64::MAX, 2, "Invalid", "Invalid"),
        (R, 0, u32::MAX, "Invalid", "Invalid"),
        (R, 0, 0, "ok", "none"),
        (R, END, 0, "ok", "none"),
        (R, END + 1, 0, "Invalid", "Invalid"),
        (W, END, 1, "NoSpace", "NoSpace"),
        (W, END - 1, 2, "NoSpace", "NoSpace"),
        (W, u64::MAX - 1, 2, "NoSpace", "NoSpace"),
        (W, 0, over, "NoSpace", "NoSpace"),
        (W, 0, 0, "ok", "ok"),
        (T, END, 1, "Invalid", "Invalid"),
        (T, 0, 0, "ok", "ok"),
        (T, 0, SIZE as u32, "ok", "ok"),
        (C, END, 1, "Invalid", "Invalid"),
        (C, 0, SIZE as u32, "ok", "ok"),
        (Z, END, 1, "NoSpace", "NoSpace"),
        (Z, 0, u32::MAX, "NoSpace", "NoSpace"),
        (Z, 0, 0, "ok", "ok"),
        (F, 1, 0, "Invalid", "Invalid"),
        (F, 0, 1, "Invalid", "Invalid"),
        (S, END, 1, "Invalid", "Invalid"),
        (S, 0, 0, "Invalid", "Invalid"),
    ];
    for (command, offset, len, plain, chunks) in table {
        for (mut desk, expected) in [(simple(), plain), (structured(), chunks)] {
            let mut bytes = request(command, 0, offset, len);
            if command == W {
                bytes.extend(vec![7; len as usize]);
            }
            desk.receive(&bytes, &[usize::MAX]);
            let read = if command == R { len as usize } else { 0 };
            let said = said(&mut desk, read);
            assert_eq!(said, [expected], "{command} {offset}+{len}");
        }
    }
}

#[test]
fn payloads_have_a_limit() {
    let sizes = BlockSizes::new(1, 4096, 4096).unwrap();
    let export = || Export::new("disk", END, sizes).unwrap();
    for (command, len, replies, expected) in [
        (R, 4096, Simple, "ok"),
        (R, 4097, Simple, "Invalid"),
        (R, 4097, Structured, "Overflow"),
        (W, 4096, Simple, "ok"),
        (W, 4097, Simple, "Invalid"),
        (W, 4097, Structured, "Invalid"),
        (T, 65536, Structured, "ok"),
        (Z, 65536, Structured, "ok"),
    ] {
        let mut desk = serving(export(), Limits::default(), replies);
        let mut bytes = request(command, 0, 0, len);
        if command == W {
            bytes.extend(vec![7; len as usize]);
        }
        desk.receive(&bytes, &[usize::MAX]);
        let read = if command == R { len as usize } else { 0 };
        assert_eq!(said(&mut desk, read), [expected], "{command} {len}");
    }
}

#[test]
fn what_is_not_a_multiple_of_the_block_size_is_refused() {
    let sizes = BlockSizes::new(4096, 4096, nbd::PAYLOAD_MAX).unwrap();
    let export = Export::new("disk", END, sizes).unwrap();
    for command in [R, W, T, C, Z, S] {
        for (offset, len, fine) in [(0, 4096, true), (512, 4096, false), (0, 512, false)] {
            let mut desk = serving(export.clone(), Limits::default(), Structured);
            let mut bytes = request(command, 0, offset, len);
            if command == W {
                bytes.extend(vec![7; len as usize]);
            }
            desk.receive(&bytes, &[usize::MAX]);
            let said = said(&mut desk, 0).join(" ");
            assert_eq!(said != "Invalid", fine, "{command} {offset}+{len}: {said}");
        }
    }
}

#[test]
fn a_read_only_export_is_not_written() {
    for (command, expected) in [
        (W, "NotPermitted"),
        (T, "NotPermitted"),
        (Z, "NotPermitted"),
        (C, "ok"),
        (F, "ok"),
    ] {
        let mut desk = serving(export().read_only(), Limits::default(), Simple);
        let len = if command == F { 0 } else { 512 };
        let mut bytes = request(command, 0, 0, len);
        if command == W {
            bytes.extend([7; 512]);
        }
        desk.receive(&bytes, &[usize::MAX]);
        assert_eq!(said(&mut desk, 0), [expected], "{command}");
    }
}

#[test]
fn reads_come_in_as_few_chunks_as_there_are_pieces() {
    let mut desk = structured();
    let table = [
        (0, 0, 4096, vec!["hole 0+4096"]),
        (0, 4096, 4096, vec!["data 4096+4096"]),
        (
            0,
            0,
            16384,
            vec!["hole 0+4096..", "data 4096+8192..", "hole 12288+4096"],
        ),
        (CommandFlags::DF.0, 0, 16384, vec!["data 0+16384"]),
        (CommandFlags::DF.0, 0, 4096, vec!["hole 0+4096"]),
        (0, 4095, 2, vec!["hole 4095+1..", "data 4096+1"]),
    ];
    for (flags, offset, len, expected) in table {
        desk.receive(&request(R, flags, offset, len), &[usize::MAX]);
        assert_eq!(said(&mut desk, 0), expected, "{offset}+{len}");
    }
}

#[test]
fn simple_replies_have_the_holes_in_them() {
    let mut desk = simple();
    desk.receive(&request(R, 0, 4000, 200), &[usize::MAX]);
    let (header, data) = desk.sent.split_at(16);
    assert_eq!(header[..8], [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0]);
    assert_eq!(data, &desk.disk.0[4000..4200]);
}

#[test]
fn block_status_says_what_is_there() {
    let mut desk = structured();
    let one = CommandFlags::REQ_ONE.0;
    let (hole, data) = ("HOLE|ZERO", "0x0");
    for (flags, offset, len, expected) in [
        (
            0,
            0,
            65536,
            format!("[(4096, {hole}), (8192, {data}), (53248, {hole})]"),
        ),
        (one, 0, 65536, format!("[(4096, {hole})]")),
        (one, 0, 512, format!("[(512, {hole})]")),
        (0, 4096, 100, format!("[(100, {data})]")),
    ] {
        desk.receive(&request(S, flags, offset, len), &[usize::MAX]);
        assert_eq!(said(&mut desk, 0), [expected]);
    }
}

#[test]
fn zeroes_that_are_no_faster_fail_only_if_that_was_asked() {
    let mut desk = simple();
    let flags = CommandFlags::NO_HOLE | CommandFlags::FAST_ZERO;
    desk.receive(&request(Z, flags.0, 4096, 512), &[usize::MAX]);
    assert_eq!(said(&mut desk, 0), ["NotSupported"]);
    assert_eq!(
        desk.log,
        ["zero ByteRange { offset: 4096, len: 512 } fua false no_hole true fast true"]
    );
}

/// The device's errors, as they come out for each command.
#[test]
fn errors_of_the_device_are_said_where_they_may_be() {
    let failure = |errno| Failure {
        errno,
        message: "because".into(),
        offset: Some(600),
    };
    for errno in [
        Errno::Io,
        Errno::NoSpace,
        Errno::NotPermitted,
        Errno::NoMemory,
        Errno::Shutdown,
    ] {
        for (bytes, place) in [
            (request(T, 0, 512, 512), " at 600"),
            (request(T, 0, 0, 512), ""),
        ] {
            let mut desk = structured();
            let Next::Request(nbd::Request::Trim { ticket, .. }) =
                desk.server.next(&mut &bytes[..])
            else {
                panic!("no request");
            };
            desk.server.finish(ticket, Err(failure(errno)));
            desk.transmit();
            assert_eq!(said(&mut desk, 0), [format!("{errno:?}{place}")]);
        }
    }
    for (flags, said_of_it) in [(0, "Invalid"), (CommandFlags::FAST_ZERO.0, "NotSupported")] {
        let mut desk = simple();
        let bytes = request(Z, flags, 0, 512);
        let Next::Request(nbd::Request::WriteZeroes { ticket, .. }) =
            desk.server.next(&mut &bytes[..])
        else {
            panic!("no request");
        };
        desk.server
            .finish(ticket, Err(failure(Errno::NotSupported)));
        desk.transmit();
        assert_eq!(said(&mut desk, 0), [said_of_it]);
    }
}

#[test]
fn a_read_that_is_not_whole_is_an_error() {
    for (mut desk, parts) in [
        (simple(), vec![nbd::Part::Hole(511)]),
        (
            structured(),
            vec![nbd::Part::Data(vec![1; 512]), nbd::Part::Hole(1)],
        ),
        (simple(), vec![]),
    ] {
        let bytes = request(R, 0, 0, 512);
        let Next::Request(nbd::Request::Read { ticket, .. }) = desk.server.next(&mut &bytes[..])
        else {
            panic!("no request");
        };
        desk.server.finish_read(ticket, Ok(parts));
        desk.transmit();
        assert_eq!(said(&mut desk, 512), ["Io"]);
    }
}

#[test]
fn no_more_is_begun_than_there_is_room_for() {
    let limits = Limits {
        requests: 4,
        bytes: 1000,
        options: 8,
    };
    let mut desk = serving(export(), limits, Simple);
    let bytes = request(R, 0, 0, 400).repeat(9);
    let mut given = &bytes[..];
    let mut begun = Vec::new();
    loop {
        match desk.server.next(&mut given) {
            Next::Request(nbd::Request::Read { ticket, .. }) => begun.push(ticket),
            Next::Wait => break,
            other => panic!("{other:?}"),
        }
    }
    // The third is held: it would be 1200 bytes.
    assert_eq!((begun.len(), given.len() / 28), (2, 6));
    for ticket in begun {
        desk.server
            .finish_read(ticket, Ok(vec![nbd::Part::Hole(400)]));
    }
    // Answered is not sent.
    assert_eq!(desk.server.next(&mut given), Next::Wait);
    desk.transmit();
    assert!(matches!(desk.server.next(&mut given), Next::Request(_)));
    // One that is larger than all that is allowed goes alone.
    let mut desk = serving(export(), limits, Simple);
    let bytes = request(R, 0, 0, 4000);
    assert!(matches!(
        desk.server.next(&mut &bytes[..]),
        Next::Request(_)
    ));
}

#[test]
fn a_client_that_reads_no_answers_is_not_heard_for_long() {
    let mut desk = serving(export(), Limits::default(), Structured);
    let bytes = request(99, 0, 0, 0).repeat(1000);
    let mut given = &bytes[..];
    assert_eq!(desk.server.next(&mut given), Next::Wait);
    assert_eq!(desk.server.pending(), Limits::default().requests);
}

#[test]
fn goodbye_comes_when_all_is_answered() {
    let mut desk = simple();
    let bytes = [request(R, 0, 0, 16), request(command::DISC, 0, 0, 0)].concat();
    let mut given = &bytes[..];
    let Next::Request(nbd::Request::Read { ticket, .. }) = desk.server.next(&mut given) else {
        panic!("no request");
    };
    assert_eq!(desk.server.next(&mut given), Next::Wait);
    desk.server
        .finish_read(ticket, Ok(vec![nbd::Part::Hole(16)]));
    assert_eq!(desk.server.next(&mut given), Next::Wait);
    desk.transmit();
    assert_eq!(desk.server.next(&mut given), Next::Close(Ending::Client));
    assert_eq!(said(&mut desk, 16), ["ok"]);
}

#[test]
fn a_server_that_stops_finishes_what_it_began() {
    let mut desk = structured();
    let bytes = [request(R, 0, 0, 16), request(W, 0, 0, 5), b"hello".to_vec()].concat();
    let mut given = &bytes[..];
    let Next::Request(nbd::Request::Read { ticket, .. }) = desk.server.next(&mut given) else {
        panic!("no request");
    };
    desk.server.shut_down();
    assert_eq!(desk.server.next(&mut given), Next::Read(28));
    assert!(given.is_empty());
    desk.transmit();
    assert_eq!(said(&mut desk, 0), ["Shutdown"]);
    desk.server
        .finish_read(ticket, Ok(vec![nbd::Part::Hole(16)]));
    desk.transmit();
    assert_eq!(said(&mut desk, 0), ["hole 0+16"]);
    assert_eq!(desk.server.next(&mut given), Next::Close(Ending::Shutdown));
}

#[test]
fn what_is_no_request_ends_the_connection() {
    for bytes in [vec![0; 28], [request(W, 0, 0, u32::MAX)].concat()] {
        let mut desk = simple();
        desk.receive(&bytes, &[usize::MAX]);
        assert!(
            matches!(desk.ended, Some(Ending::Violation(_))),
            "{:?}",
            desk.ended
        );
    }
}

/// What was selected before is gone with the next selection, whatever becomes of that.
#[test]
fn a_selection_of_metadata_replaces_the_one_before() {
    let set = |name: &str, query: &str| {
        let queries = vec![query.to_owned()];
        let name = name.to_owned();
        OptionRequest::SetMetaContext { name, queries }.encode()
    };
    let good = set("disk", "base:allocation");
    for (second, expected) in [
        (set("disk", "base:allocation"), true),
        (set("disk", "base:other"), false),
        (set("other", "base:allocation"), false),
        (set("disk", "malformed"), false),
        (raw(10, b"malformed"), false),
    ] {
        let mut desk = Desk::plain();
        let structured = OptionRequest::StructuredReply.encode();
        let bytes = [both(), structured, good.clone(), second, raw(1, b"disk")];
        desk.receive(&bytes.concat(), &[usize::MAX]);
        desk.sent.clear();
        desk.receive(&request(S, 0, 0, 512), &[usize::MAX]);
        assert_eq!(said(&mut desk, 0).join(" ") != "Invalid", expected);
    }
}

/// Another name for the same export is another export, as far as metadata goes.
#[test]
fn block_status_is_of_the_export_that_it_was_selected_for() {
    for (selected, chosen, expected) in
        [("disk", "disk", true), ("", "disk", false), ("", "", true)]
    {
        let mut desk = Desk::plain();
        let queries = vec!["base:allocation".to_owned()];
        let set = OptionRequest::SetMetaContext {
            name: selected.to_owned(),
            queries,
        };
        let go = OptionRequest::Go {
            name: chosen.to_owned(),
            wants: vec![],
        };
        let bytes = [
            both(),
            OptionRequest::StructuredReply.encode(),
            set.encode(),
            go.encode(),
        ];
        desk.receive(&bytes.concat(), &[usize::MAX]);
        desk.sent.clear();
        desk.receive(&request(S, 0, 0, 512), &[usize::MAX]);
        let said = said(&mut desk, 0).join(" ");
        assert_eq!(
            said != "Invalid",
            expected,
            "{selected:?} {chosen:?}: {said}"
        );
    }
}
