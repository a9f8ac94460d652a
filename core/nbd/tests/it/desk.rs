//! A server's machine with a disk of bytes behind it, and what goes in and comes out.

use nbd::wire::StateFlags;
use nbd::{
    BlockSizes, ByteRange, Ending, Errno, Export, Extent, Failure, Limits, Listed, Next, Part,
    Piece, Request, Server, Tls,
};

/// Bytes, of which blocks of 512 that are all zero are holes.
pub(crate) struct Disk(pub(crate) Vec<u8>);

pub(crate) const BLOCK: usize = 512;

impl Disk {
    pub(crate) fn new(size: usize) -> Self {
        Self(vec![0; size])
    }

    pub(crate) fn bytes(&mut self, range: ByteRange) -> &mut [u8] {
        let from = range.offset as usize;
        &mut self.0[from..from + range.len as usize]
    }

    /// Pieces of blocks within the range, with whether they are holes.
    fn pieces(&self, range: ByteRange) -> Vec<(usize, usize, bool)> {
        let (mut at, end) = (
            range.offset as usize,
            range.offset as usize + range.len as usize,
        );
        let mut pieces: Vec<(usize, usize, bool)> = Vec::new();
        while at < end {
            let next = ((at / BLOCK + 1) * BLOCK).min(end);
            let hole = self.0[at..next].iter().all(|byte| *byte == 0);
            match pieces.last_mut() {
                Some((_, to, same)) if *same == hole => *to = next,
                _ => pieces.push((at, next, hole)),
            }
            at = next;
        }
        pieces
    }

    pub(crate) fn read(&self, range: ByteRange) -> Vec<Part<Vec<u8>>> {
        let part = |(from, to, hole): (usize, usize, bool)| match hole {
            true => Part::Hole((to - from) as u32),
            false => Part::Data(self.0[from..to].to_vec()),
        };
        self.pieces(range).into_iter().map(part).collect()
    }

    pub(crate) fn status(&self, range: ByteRange) -> Vec<Extent> {
        let extent = |(from, to, hole): (usize, usize, bool)| Extent {
            len: (to - from) as u64,
            state: (StateFlags::HOLE | StateFlags::ZERO).only_if(hole),
        };
        self.pieces(range).into_iter().map(extent).collect()
    }
}

/// A server with what has been seen of it.
pub(crate) struct Desk {
    pub(crate) server: Server<Vec<u8>>,
    pub(crate) export: Export,
    pub(crate) disk: Disk,
    /// What the client was sent.
    pub(crate) sent: Vec<u8>,
    /// Requests in the order in which they were carried out, and other events.
    pub(crate) log: Vec<String>,
    pub(crate) ended: Option<Ending>,
    /// Requests that wait are answered last first.
    pub(crate) backwards: bool,
    waiting: Vec<Request>,
    pub(crate) most_pending: (u32, u64),
}

pub(crate) const SIZE: usize = 64 * 1024;

pub(crate) fn export() -> Export {
    let export = Export::new("disk", SIZE as u64, BlockSizes::DEFAULT).unwrap();
    export.described("for tests").unwrap()
}

impl Desk {
    pub(crate) fn new(export: Export, tls: Tls, limits: Limits) -> Self {
        let mut disk = Disk::new(export.size() as usize);
        for (n, byte) in disk.0.iter_mut().enumerate().skip(4096).take(8192) {
            *byte = (n % 251 + 1) as u8;
        }
        Self {
            server: Server::new(tls, limits),
            export,
            disk,
            sent: Vec::new(),
            log: Vec::new(),
            ended: None,
            backwards: false,
            waiting: Vec::new(),
            most_pending: (0, 0),
        }
    }

    pub(crate) fn plain() -> Self {
        Self::new(export(), Tls::Absent, Limits::default())
    }

    /// All of it comes, in pieces of these sizes over and over.
    pub(crate) fn receive(&mut self, bytes: &[u8], chunks: &[usize]) {
        let mut chunks = chunks.iter().cycle().copied();
        let mut rest = bytes;
        let mut given: &[u8] = &[];
        while self.ended.is_none() {
            let pending = (self.server.pending(), self.server.pending_bytes());
            self.most_pending = (
                self.most_pending.0.max(pending.0),
                self.most_pending.1.max(pending.1),
            );
            match self.server.next(&mut given) {
                Next::Read(needed) => {
                    assert!(given.is_empty(), "more is needed than what is left");
                    let chunk = chunks.next().unwrap_or(usize::MAX).max(1);
                    let most = if self.server.is_serving() {
                        chunk
                    } else {
                        needed.min(chunk)
                    };
                    if rest.is_empty() {
                        break;
                    }
                    (given, rest) = rest.split_at(most.min(rest.len()));
                }
                Next::Payload(len) => {
                    let len = len as usize;
                    if given.len() + rest.len() < len {
                        break;
                    }
                    let taken = given.len().min(len);
                    let (first, second) = (&given[..taken], &rest[..len - taken]);
                    let payload = [first, second].concat();
                    (given, rest) = (&given[taken..], &rest[len - taken..]);
                    self.write(&payload);
                }
                Next::Find(name) => {
                    self.log.push(format!("find {name:?}"));
                    let known = ["", "disk"].contains(&name.as_str());
                    self.server.found(known.then_some(&self.export));
                }
                Next::List => {
                    let listed = Listed {
                        name: self.export.name().to_owned(),
                        description: self.export.description().to_owned(),
                    };
                    self.server.listed(&[listed]);
                }
                Next::StartTls => {
                    self.log.push("tls".to_owned());
                    self.server.tls_started();
                }
                Next::Serve => self.log.push("serve".to_owned()),
                Next::Request(request) => self.waiting.push(request),
                Next::Wait => assert!(self.progress(), "it waits for nothing"),
                Next::Close(ending) => self.ended = Some(ending),
            }
        }
        while self.progress() {}
        if self.ended.is_none()
            && let Next::Close(ending) = self.server.next(&mut { given })
        {
            self.ended = Some(ending);
        }
    }

    fn write(&mut self, payload: &[u8]) {
        let write = self.server.payload_received();
        self.log
            .push(format!("write {:?} fua {}", write.range, write.fua));
        self.disk.bytes(write.range).copy_from_slice(payload);
        self.server.finish(write.ticket, Ok(()));
    }

    /// Answers a request, or sends what is to be sent.
    pub(crate) fn progress(&mut self) -> bool {
        let answered = match self.waiting.is_empty() {
            true => false,
            false => {
                let at = if self.backwards {
                    self.waiting.len() - 1
                } else {
                    0
                };
                let request = self.waiting.remove(at);
                self.carry_out(request);
                true
            }
        };
        self.transmit() || answered
    }

    pub(crate) fn transmit(&mut self) -> bool {
        let mut some = false;
        while let Some(piece) = self.server.poll_transmit() {
            some = true;
            match piece {
                Piece::Head(bytes) | Piece::Payload(bytes) => self.sent.extend(bytes),
                Piece::Zeroes(count) => self.sent.extend(vec![0; count as usize]),
                Piece::End(sent) => self.server.sent(sent),
            }
        }
        some
    }

    fn carry_out(&mut self, request: Request) {
        match request {
            Request::Read { ticket, range } => {
                self.log.push(format!("read {range:?}"));
                let parts = self.disk.read(range);
                self.server.finish_read(ticket, Ok(parts));
            }
            Request::Flush { ticket } => {
                self.log.push("flush".to_owned());
                self.server.finish(ticket, Ok(()));
            }
            Request::Trim { ticket, range, fua } => {
                self.log.push(format!("trim {range:?} fua {fua}"));
                self.disk.bytes(range).fill(0);
                self.server.finish(ticket, Ok(()));
            }
            Request::WriteZeroes {
                ticket,
                range,
                fua,
                no_hole,
                fast,
            } => {
                self.log.push(format!(
                    "zero {range:?} fua {fua} no_hole {no_hole} fast {fast}"
                ));
                // Zeroes that stay allocated are as slow as a write, here.
                if fast && no_hole {
                    let slow = Failure::from(Errno::NotSupported);
                    return self.server.finish(ticket, Err(slow));
                }
                self.disk.bytes(range).fill(0);
                self.server.finish(ticket, Ok(()));
            }
            Request::Cache { ticket, range } => {
                self.log.push(format!("cache {range:?}"));
                self.server.finish(ticket, Ok(()));
            }
            Request::BlockStatus { ticket, range, one } => {
                self.log.push(format!("status {range:?} one {one}"));
                let extents = self.disk.status(range);
                self.server.finish_status(ticket, Ok(extents));
            }
        }
    }
}
