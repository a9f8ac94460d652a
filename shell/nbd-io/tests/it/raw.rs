//! A client that sends what it is told, right or wrong.

use nbd::wire::{
    Chunk, ClientFlags, CommandFlags, GREETING_BYTES, OPTION_MAGIC, OptionReply, OptionReplyHeader,
    OptionRequest, ReplyHeader, RequestHeader, chunk,
};
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

pub(crate) struct Raw(pub(crate) UnixStream);

/// One reply, or one chunk of it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    Simple {
        error: u32,
        cookie: u64,
    },
    Data {
        cookie: u64,
        offset: u64,
        data: Vec<u8>,
        done: bool,
    },
    Chunk {
        cookie: u64,
        chunk: Chunk,
        done: bool,
    },
}

impl Raw {
    /// Greeted, and nothing said.
    pub(crate) fn connect(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(30)))
            .unwrap();
        stream
            .set_write_timeout(Some(Duration::from_secs(30)))
            .unwrap();
        let mut raw = Self(stream);
        raw.bytes(GREETING_BYTES);
        raw
    }

    /// The handshake is over, with structured replies and block status if the server has them.
    pub(crate) fn serving(socket: &Path, export: &str, structured: bool) -> Self {
        let mut raw = Self::connect(socket);
        raw.flags();
        if structured {
            raw.option(&OptionRequest::StructuredReply);
            raw.option(&OptionRequest::SetMetaContext {
                name: export.to_owned(),
                queries: vec!["base:allocation".to_owned()],
            });
        }
        let replies = raw.option(&OptionRequest::Go {
            name: export.to_owned(),
            wants: vec![3],
        });
        assert_eq!(replies.last(), Some(&OptionReply::Ack), "{replies:?}");
        raw
    }

    pub(crate) fn flags(&mut self) {
        let flags = ClientFlags::FIXED_NEWSTYLE | ClientFlags::NO_ZEROES;
        self.send(&flags.0.to_be_bytes());
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).unwrap();
    }

    pub(crate) fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.0.read_exact(&mut bytes).unwrap();
        bytes
    }

    /// Whatever comes, up to the end of the connection.
    pub(crate) fn rest(&mut self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        match self.0.read_to_end(&mut bytes) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(bytes),
            other => other.map(|_| bytes),
        }
    }

    pub(crate) fn option(&mut self, request: &OptionRequest) -> Vec<OptionReply> {
        self.send(&request.encode());
        self.replies(request.code())
    }

    pub(crate) fn raw_option(&mut self, option: u32, data: &[u8]) -> Vec<OptionReply> {
        self.send(&OPTION_MAGIC.to_be_bytes());
        self.send(&option.to_be_bytes());
        self.send(&(data.len() as u32).to_be_bytes());
        self.send(data);
        self.replies(option)
    }

    /// Up to the last.
    fn replies(&mut self, option: u32) -> Vec<OptionReply> {
        let mut replies = Vec::new();
        loop {
            let header = self.bytes(OptionReplyHeader::BYTES).try_into().unwrap();
            let header = OptionReplyHeader::decode(&header).unwrap();
            assert_eq!(header.option, option);
            let data = self.bytes(header.len as usize);
            let reply = OptionReply::decode(header.kind, &data).unwrap();
            let last = matches!(reply, OptionReply::Ack | OptionReply::Refused { .. });
            replies.push(reply);
            if last {
                return replies;
            }
        }
    }

    pub(crate) fn request(&mut self, command: u16, flags: u16, cookie: u64, place: (u64, u32)) {
        let header = RequestHeader {
            flags: CommandFlags(flags),
            command,
            cookie,
            offset: place.0,
            len: place.1,
        };
        self.send(&header.encode());
    }

    /// The next reply; a simple one to a read has so many bytes behind it.
    pub(crate) fn reply(&mut self, read_len: usize) -> Reply {
        let magic: [u8; 4] = self.bytes(4).try_into().unwrap();
        let size = ReplyHeader::size(magic).unwrap();
        let header = [&magic[..], &self.bytes(size - 4)].concat();
        match ReplyHeader::decode(&header).unwrap() {
            ReplyHeader::Simple { error, cookie } if error == 0 && read_len > 0 => Reply::Data {
                cookie,
                offset: 0,
                data: self.bytes(read_len),
                done: true,
            },
            ReplyHeader::Simple { error, cookie } => Reply::Simple { error, cookie },
            ReplyHeader::Chunk {
                flags,
                kind,
                cookie,
                len,
            } => {
                let mut payload = self.bytes(len as usize);
                let done = flags & chunk::DONE != 0;
                if kind == chunk::OFFSET_DATA {
                    let data = payload.split_off(8);
                    let offset = u64::from_be_bytes(payload.try_into().unwrap());
                    return Reply::Data {
                        cookie,
                        offset,
                        data,
                        done,
                    };
                }
                let chunk = Chunk::decode(kind, &payload).unwrap();
                Reply::Chunk {
                    cookie,
                    chunk,
                    done,
                }
            }
        }
    }

    /// All of a reply as one word or two: what became of it, and what was read, holes as zeroes.
    pub(crate) fn outcome(&mut self, command: u16, place: (u64, u32)) -> Outcome {
        let read = if command == nbd::wire::command::READ {
            place.1 as usize
        } else {
            0
        };
        let mut outcome = Outcome {
            error: 0,
            data: vec![0; read],
            status: Vec::new(),
        };
        loop {
            let done = match self.reply(read) {
                Reply::Simple { error, .. } => {
                    outcome.error = error;
                    true
                }
                Reply::Data {
                    offset, data, done, ..
                } => {
                    // A simple reply does not say where it begins.
                    let at = offset.saturating_sub(place.0) as usize;
                    outcome.data[at..at + data.len()].copy_from_slice(&data);
                    done
                }
                Reply::Chunk { chunk, done, .. } => {
                    match chunk {
                        Chunk::Error(error) => outcome.error = error.error,
                        Chunk::Status(status) => {
                            outcome.status = status.extents.iter().map(|e| (e.0, e.1.0)).collect();
                        }
                        Chunk::None | Chunk::Hole { .. } | Chunk::Data { .. } => {}
                    }
                    done
                }
            };
            if done {
                return outcome;
            }
        }
    }
}

/// What became of a request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) error: u32,
    pub(crate) data: Vec<u8>,
    pub(crate) status: Vec<(u32, u32)>,
}
