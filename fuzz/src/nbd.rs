//! NBD: what a client says to a server, what a server says to a client, and the messages by themselves.

use nbd::wire::{
    Chunk, ClientFlags, HandshakeFlags, Info, OptionReply, OptionReplyHeader, OptionRequest,
    ReplyHeader, RequestHeader, TransmissionFlags, chunk, command, greeting, option,
};
use nbd::{
    BlockSizes, Client, ClientConfig, ClientNext, Command, Export, Extent, Limits, Listed, Next,
    Part, Piece, Request, Server, Tls,
};

const SIZE: u64 = 1 << 20;
const LIMITS: Limits = Limits {
    options: 16,
    requests: 8,
    bytes: 1 << 20,
};

/// `| how 1 | what a client says |`: without or with TLS, all at once or byte by byte, from the beginning or with an
/// export chosen.
pub fn nbd_server(data: &[u8]) {
    let Some((how, bytes)) = data.split_first() else {
        return;
    };
    let tls = [Tls::Absent, Tls::Required][usize::from(how & 1)];
    let mut bench = Bench {
        server: Server::new(tls, LIMITS),
        export: Export::new("disk", SIZE, BlockSizes::DEFAULT).expect("it is one"),
        sent: 0,
        asked: 0,
    };
    if how & 1 == 0 && how & 2 != 0 {
        bench.hear(&chosen(), usize::MAX);
        assert!(bench.server.is_serving());
    }
    bench.hear(bytes, if how & 4 == 0 { usize::MAX } else { 1 });
    // Answers are no more than what was asked to be read, and something for each message.
    assert!(bench.sent <= bench.asked + 70_000 + 400 * bytes.len() as u64);
}

struct Bench {
    server: Server<Vec<u8>>,
    export: Export,
    sent: u64,
    asked: u64,
}

impl Bench {
    fn hear(&mut self, bytes: &[u8], chunk: usize) {
        let mut rest = bytes;
        let mut given: &[u8] = &[];
        loop {
            assert!(self.server.pending() <= LIMITS.requests.max(1));
            match self.server.next(&mut given) {
                Next::Read(needed) => {
                    let most = if self.server.is_serving() {
                        chunk
                    } else {
                        needed.min(chunk)
                    };
                    if rest.is_empty() {
                        return;
                    }
                    (given, rest) = rest.split_at(most.min(rest.len()));
                }
                Next::Payload(len) => {
                    assert!(len <= nbd::PAYLOAD_MAX);
                    let from_given = given.len().min(len as usize);
                    let from_rest = len as usize - from_given;
                    if rest.len() < from_rest {
                        return;
                    }
                    (given, rest) = (&given[from_given..], &rest[from_rest..]);
                    let write = self.server.payload_received();
                    within(write.range);
                    self.server.finish(write.ticket, Ok(()));
                }
                Next::Find(name) => {
                    let known = name.is_empty() || name == "disk";
                    self.server.found(known.then_some(&self.export));
                }
                Next::List => self.server.listed(&[Listed {
                    name: "disk".to_owned(),
                    description: String::new(),
                }]),
                Next::StartTls => self.server.tls_started(),
                Next::Serve => {}
                Next::Request(request) => self.answer(request),
                Next::Wait => {
                    let before = self.server.pending();
                    self.send();
                    assert!(self.server.pending() < before, "it waits for nothing");
                }
                Next::Close(_) => return,
            }
            self.send();
        }
    }

    fn answer(&mut self, request: Request) {
        match request {
            Request::Read { ticket, range } => {
                within(range);
                self.asked += u64::from(range.len);
                self.server
                    .finish_read(ticket, Ok(vec![Part::Hole(range.len)]));
            }
            Request::BlockStatus { ticket, range, .. } => {
                within(range);
                let extent = Extent {
                    len: 1 << 40,
                    state: Default::default(),
                };
                self.server.finish_status(ticket, Ok(vec![extent]));
            }
            Request::Trim { ticket, range, .. }
            | Request::WriteZeroes { ticket, range, .. }
            | Request::Cache { ticket, range } => {
                within(range);
                self.server.finish(ticket, Ok(()));
            }
            Request::Flush { ticket } => self.server.finish(ticket, Ok(())),
        }
    }

    fn send(&mut self) {
        while let Some(piece) = self.server.poll_transmit() {
            match piece {
                Piece::Head(bytes) | Piece::Payload(bytes) => self.sent += bytes.len() as u64,
                Piece::Zeroes(len) => self.sent += u64::from(len),
                Piece::End(sent) => self.server.sent(sent),
            }
        }
    }
}

fn within(range: nbd::ByteRange) {
    assert!(range.len > 0 && range.offset + u64::from(range.len) <= SIZE);
}

/// `| how 1 | what a server says |`: from the beginning, or with an export served and requests in flight.
pub fn nbd_client(data: &[u8]) {
    let Some((how, bytes)) = data.split_first() else {
        return;
    };
    let config = ClientConfig {
        export: "disk".to_owned(),
        tls: how & 1 != 0,
        allocation: true,
    };
    let mut client: Client<Vec<u8>> = Client::new(config);
    if how & 3 == 2 {
        assert!(hear(&mut client, &served()));
        let read = |offset, len| Command::Read { offset, len };
        let one = how & 4 != 0;
        let status = Command::BlockStatus {
            offset: 0,
            len: 1 << 20,
            one,
        };
        for command in [read(0, 4096), read(100, 100), status, Command::Flush] {
            client.send(command).expect("the export takes it");
        }
    }
    hear(&mut client, bytes);
    let unanswered = client.into_unanswered();
    assert!(unanswered.len() <= 4);
}

/// Whether it is well at the end.
fn hear(client: &mut Client<Vec<u8>>, bytes: &[u8]) -> bool {
    let mut given = bytes;
    loop {
        match client.next(&mut given) {
            ClientNext::Read(_) => return true,
            ClientNext::StartTls => client.tls_started(),
            ClientNext::Ready(export) => assert!(export.size <= i64::MAX as u64),
            ClientNext::Data { at, len, .. } => {
                assert!(at + len <= 4096);
                if given.len() < len as usize {
                    return true;
                }
                given = &given[len as usize..];
                client.payload_received();
            }
            ClientNext::Hole { at, len, .. } => assert!(at + len <= 4096),
            ClientNext::Done { .. } => {}
            ClientNext::Fail(_) => return false,
        }
        while client.poll_transmit().is_some() {}
    }
}

/// `| which 1 | kind 4 | a message's data |`: what is taken is written and taken again, the same.
pub fn nbd_codec(data: &[u8]) {
    let Some((&which, rest)) = data.split_first() else {
        return;
    };
    let Some((kind, bytes)) = rest.split_first_chunk() else {
        return;
    };
    let kind = u32::from_be_bytes(*kind);
    match which % 4 {
        0 => {
            if let Ok(request) = OptionRequest::decode(kind, bytes)
                && request != OptionRequest::Abort
            {
                assert_eq!(request.encode()[16..], *bytes);
            }
        }
        1 => {
            if let Some(reply) = OptionReply::decode(kind, bytes) {
                let again = reply.encode(7);
                let header = again.first_chunk().and_then(OptionReplyHeader::decode);
                assert_eq!(header.map(|header| header.kind), Some(kind));
                assert_eq!(OptionReply::decode(kind, &again[20..]), Some(reply));
            }
        }
        2 => {
            if let Some(header) = bytes.first_chunk().and_then(RequestHeader::decode) {
                assert_eq!(header.encode(), bytes[..28]);
            }
            if let Ok(header) = ReplyHeader::decode(bytes) {
                assert_eq!(header.encode(), bytes);
            }
        }
        _ => {
            if let Ok(chunk) = Chunk::decode(kind as u16, bytes) {
                let again = chunk.encode(7, 0, 0);
                let decoded = Chunk::decode(chunk.kind(), &again[20..]);
                assert_eq!(decoded, Ok(chunk));
            }
        }
    }
}

fn chosen() -> Vec<u8> {
    let flags = ClientFlags::FIXED_NEWSTYLE | ClientFlags::NO_ZEROES;
    let name = || "disk".to_owned();
    let set = OptionRequest::SetMetaContext {
        name: name(),
        queries: vec![nbd::BASE_ALLOCATION.to_owned()],
    };
    let go = OptionRequest::Go {
        name: name(),
        wants: vec![3],
    };
    let options = [OptionRequest::StructuredReply, set, go].map(|option| option.encode());
    [flags.0.to_be_bytes().to_vec(), options.concat()].concat()
}

fn served() -> Vec<u8> {
    let hello = greeting(HandshakeFlags::FIXED_NEWSTYLE | HandshakeFlags::NO_ZEROES);
    let context = OptionReply::MetaContext {
        id: 1,
        name: nbd::BASE_ALLOCATION.to_owned(),
    };
    let flags = TransmissionFlags::HAS_FLAGS | TransmissionFlags::SEND_FLUSH;
    let replies = [
        OptionReply::Ack.encode(option::STRUCTURED_REPLY),
        context.encode(option::SET_META_CONTEXT),
        OptionReply::Ack.encode(option::SET_META_CONTEXT),
        OptionReply::Info(Info::Export { size: SIZE, flags }).encode(option::GO),
        OptionReply::Ack.encode(option::GO),
    ];
    [hello.to_vec(), replies.concat()].concat()
}

/// What both sides say to begin with, by target.
pub fn samples() -> Vec<(&'static str, Vec<u8>)> {
    let request = |command, len| {
        let header = RequestHeader {
            flags: Default::default(),
            command,
            cookie: 1,
            offset: 0,
            len,
        };
        header.encode().to_vec()
    };
    let commands = [command::READ, command::FLUSH, command::TRIM, command::CACHE];
    let more = [command::WRITE_ZEROES, command::BLOCK_STATUS, 99];
    let requests = commands.iter().chain(&more).map(|c| request(*c, 512));
    let write = [request(command::WRITE, 4), b"data".to_vec()].concat();
    let requests = [
        requests.collect::<Vec<_>>().concat(),
        write,
        request(command::DISC, 0),
    ]
    .concat();
    let list = [&[0, 0, 0, 3][..], &OptionRequest::List.encode()].concat();
    let tls = [
        &[1, 0, 0, 0, 3][..],
        &OptionRequest::StartTls.encode(),
        &chosen()[4..],
    ]
    .concat();
    let data = [
        Chunk::Data { offset: 0 }.encode(1, chunk::DONE, 4),
        b"data".to_vec(),
    ]
    .concat();
    let hole = Chunk::Hole {
        offset: 100,
        len: 100,
    }
    .encode(2, chunk::DONE, 0);
    let simple = ReplyHeader::Simple {
        error: 5,
        cookie: 4,
    }
    .encode();
    vec![
        ("nbd_server", [&[0][..], &chosen(), &requests].concat()),
        ("nbd_server", [&[2][..], &requests].concat()),
        ("nbd_server", [&[4][..], &list].concat()),
        ("nbd_server", tls),
        ("nbd_client", [&[0][..], &served()].concat()),
        ("nbd_client", [&[2][..], &data, &hole, &simple].concat()),
        (
            "nbd_codec",
            [&[0, 0, 0, 0, 10][..], &chosen()[36..]].concat(),
        ),
        (
            "nbd_codec",
            [&[1, 0, 0, 0, 3][..], &served()[18..]].concat(),
        ),
        (
            "nbd_codec",
            [&[2, 0, 0, 0, 0][..], &requests[..28]].concat(),
        ),
        ("nbd_codec", [&[3, 0, 0, 0, 2][..], &hole[20..]].concat()),
    ]
}
