//! Options, until the server serves the export.

use super::answers::Step;
use super::{Client, ClientError, Next, Phase};
use crate::BASE_ALLOCATION;
use crate::export::BlockSizes;
use crate::wire::{
    ClientFlags, EXPORT_NAME_ZEROES, Fields, GREETING_BYTES, HandshakeFlags, INIT_MAGIC, Info,
    OPTION_MAGIC, OptionReply, OptionReplyHeader, OptionRequest, RefusedOption, TransmissionFlags,
    info, option,
};

/// Replies to one option at most, and bytes of one: enough for a name and a description.
const REPLIES_MAX: u32 = 256;
const REPLY_BYTES_MAX: u32 = 1 << 14;

/// What a client wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientConfig {
    /// The export's name; an empty one is the server's default.
    pub export: String,
    /// Nothing is said before there is TLS.
    pub tls: bool,
    /// Block status is going to be asked for.
    pub allocation: bool,
}

/// An export, as its server tells of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Export {
    /// Bytes.
    pub size: u64,
    /// What may be asked.
    pub flags: TransmissionFlags,
    /// Size constraints; the usual ones, if it did not say.
    pub block_sizes: BlockSizes,
    /// Replies are structured.
    pub structured: bool,
    /// By which number block status goes, if it may be asked for.
    pub allocation: Option<u32>,
    /// The canonical name, if the server said it.
    pub name: Option<String>,
    /// For people, if the server said it.
    pub description: Option<String>,
}

#[derive(Debug)]
pub(super) struct Handshake {
    config: ClientConfig,
    no_zeroes: bool,
    structured: bool,
    allocation: Option<u32>,
    step: Awaited,
    replies: u32,
    told: Told,
}

#[derive(Debug, Default)]
struct Told {
    export: Option<(u64, TransmissionFlags)>,
    block_sizes: Option<BlockSizes>,
    name: Option<String>,
    description: Option<String>,
}

#[derive(Debug)]
enum Awaited {
    Greeting,
    Reply {
        option: u32,
    },
    ReplyData(OptionReplyHeader),
    Tls,
    /// The answer to `NBD_OPT_EXPORT_NAME`.
    ExportName,
}

impl Handshake {
    pub(super) fn new(config: ClientConfig) -> Self {
        Self {
            config,
            no_zeroes: false,
            structured: false,
            allocation: None,
            step: Awaited::Greeting,
            replies: 0,
            told: Told::default(),
        }
    }

    fn export(&self, size: u64, flags: TransmissionFlags) -> Export {
        Export {
            size,
            flags,
            block_sizes: self.told.block_sizes.unwrap_or(BlockSizes::DEFAULT),
            structured: self.structured,
            allocation: self.allocation,
            name: self.told.name.clone(),
            description: self.told.description.clone(),
        }
    }

    /// What is asked when this is settled. [`option::GO`] is the last.
    fn after(&self, option: u32) -> OptionRequest {
        let name = self.config.export.clone();
        match option {
            option::STARTTLS => OptionRequest::StructuredReply,
            option::STRUCTURED_REPLY if self.structured && self.config.allocation => {
                let queries = vec![BASE_ALLOCATION.to_owned()];
                OptionRequest::SetMetaContext { name, queries }
            }
            _ => {
                let wants = vec![info::NAME, info::DESCRIPTION, info::BLOCK_SIZE];
                OptionRequest::Go { name, wants }
            }
        }
    }
}

impl<P: AsRef<[u8]> + Clone> Client<P> {
    pub(super) fn shake_hands(&mut self, input: &mut &[u8]) -> Option<Next> {
        let Phase::Handshake(handshake) = &mut self.phase else {
            return None;
        };
        match &handshake.step {
            Awaited::Greeting => match self.gather.array(input) {
                Ok(greeting) => self.greeted(&greeting),
                Err(more) => Some(Next::Read(more)),
            },
            Awaited::Reply { option } => match self.gather.array(input) {
                Ok(header) => {
                    let option = *option;
                    self.option_reply_header(option, &header)
                }
                Err(more) => Some(Next::Read(more)),
            },
            Awaited::ReplyData(header) => match self.gather.bytes(header.len as usize, input) {
                Ok(data) => {
                    let header = *header;
                    self.option_reply(header, &data)
                }
                Err(more) => Some(Next::Read(more)),
            },
            Awaited::Tls => Some(Next::StartTls),
            Awaited::ExportName => {
                let zeroes = if handshake.no_zeroes {
                    0
                } else {
                    EXPORT_NAME_ZEROES
                };
                match self.gather.bytes(10 + zeroes, input) {
                    Ok(told) => self.served_by_name(&told),
                    Err(more) => Some(Next::Read(more)),
                }
            }
        }
    }

    fn greeted(&mut self, greeting: &[u8; GREETING_BYTES]) -> Option<Next> {
        let mut fields = Fields(greeting);
        let magics = (fields.u64(), fields.u64());
        let flags = HandshakeFlags(fields.u16().unwrap_or_default());
        let fixed = flags.contains(HandshakeFlags::FIXED_NEWSTYLE);
        if magics != (Some(INIT_MAGIC), Some(OPTION_MAGIC)) || !fixed {
            return self.fail(ClientError::NotNbd);
        }
        let Phase::Handshake(handshake) = &mut self.phase else {
            return None;
        };
        handshake.no_zeroes = flags.contains(HandshakeFlags::NO_ZEROES);
        let wanted =
            ClientFlags::FIXED_NEWSTYLE | ClientFlags::NO_ZEROES.only_if(handshake.no_zeroes);
        let first = match handshake.config.tls {
            true => OptionRequest::StartTls,
            false => OptionRequest::StructuredReply,
        };
        self.outbox.head(wanted.0.to_be_bytes().to_vec());
        self.ask(first)
    }

    fn ask(&mut self, request: OptionRequest) -> Option<Next> {
        let Phase::Handshake(handshake) = &mut self.phase else {
            return None;
        };
        handshake.replies = 0;
        handshake.told = Told::default();
        handshake.step = match request.code() {
            option::EXPORT_NAME => Awaited::ExportName,
            option => Awaited::Reply { option },
        };
        self.outbox.head(request.encode());
        None
    }

    fn option_reply_header(
        &mut self,
        option: u32,
        header: &[u8; OptionReplyHeader::BYTES],
    ) -> Option<Next> {
        let Phase::Handshake(handshake) = &mut self.phase else {
            return None;
        };
        handshake.replies += 1;
        let too_many = handshake.replies > REPLIES_MAX;
        match OptionReplyHeader::decode(header) {
            None => self.violation("an option's reply does not begin with its magic number"),
            Some(header) if header.option != option => {
                self.violation("a reply to an option that was not sent")
            }
            Some(header) if header.len > REPLY_BYTES_MAX || too_many => {
                self.violation("replies to an option that are too many or too long")
            }
            Some(header) => {
                handshake.step = Awaited::ReplyData(header);
                None
            }
        }
    }

    fn option_reply(&mut self, header: OptionReplyHeader, data: &[u8]) -> Option<Next> {
        let Phase::Handshake(handshake) = &mut self.phase else {
            return None;
        };
        let option = header.option;
        handshake.step = Awaited::Reply { option };
        match OptionReply::decode(header.kind, data) {
            Some(OptionReply::Ack) => self.acknowledged(option),
            Some(OptionReply::Info(told)) if option == option::GO => self.told(told),
            Some(OptionReply::MetaContext { id, name }) if option == option::SET_META_CONTEXT => {
                if name == BASE_ALLOCATION {
                    handshake.allocation = Some(id);
                }
                None
            }
            Some(OptionReply::Refused { refusal, message }) => {
                self.refused(option, refusal, message)
            }
            _ => self.violation("a reply that does not fit the option, or is malformed"),
        }
    }

    fn acknowledged(&mut self, option: u32) -> Option<Next> {
        let Phase::Handshake(handshake) = &mut self.phase else {
            return None;
        };
        match option {
            option::STARTTLS => {
                handshake.step = Awaited::Tls;
                None
            }
            option::GO => match handshake.told.export {
                Some((size, flags)) => {
                    let export = handshake.export(size, flags);
                    self.ready(export)
                }
                None => self.violation("an export is served without having been told of"),
            },
            other => {
                handshake.structured |= other == option::STRUCTURED_REPLY;
                let next = handshake.after(other);
                self.ask(next)
            }
        }
    }

    fn refused(&mut self, option: u32, refusal: RefusedOption, message: String) -> Option<Next> {
        let Phase::Handshake(handshake) = &mut self.phase else {
            return None;
        };
        let export = handshake.config.export.clone();
        match (option, refusal) {
            (_, RefusedOption::TlsRequired) => self.fail(ClientError::TlsRequired),
            (option::STARTTLS, _) => self.fail(ClientError::NoTls { refusal, message }),
            (option::GO, RefusedOption::Unsupported) => self.ask(OptionRequest::ExportName(export)),
            (option::GO, _) | (_, RefusedOption::Shutdown) => self.fail(ClientError::NotServed {
                export,
                refusal,
                message,
            }),
            _ => {
                handshake.allocation = None;
                let next = handshake.after(option);
                self.ask(next)
            }
        }
    }

    fn told(&mut self, told: Info) -> Option<Next> {
        let Phase::Handshake(handshake) = &mut self.phase else {
            return None;
        };
        match told {
            Info::Export { size, flags } => handshake.told.export = Some((size, flags)),
            Info::Name(name) => handshake.told.name = Some(name),
            Info::Description(text) => handshake.told.description = Some(text),
            Info::Other(_) => {}
            Info::BlockSize {
                minimum,
                preferred,
                payload_max,
            } => match BlockSizes::new(minimum, preferred, payload_max) {
                Ok(sizes) => handshake.told.block_sizes = Some(sizes),
                Err(_) => return self.violation("block sizes that the protocol does not allow"),
            },
        }
        None
    }

    /// `| size 8 | transmission flags 2 | zeroes |`
    fn served_by_name(&mut self, told: &[u8]) -> Option<Next> {
        let mut fields = Fields(told);
        let (Some(size), Some(flags)) = (fields.u64(), fields.u16()) else {
            return None;
        };
        let Phase::Handshake(handshake) = &self.phase else {
            return None;
        };
        let export = handshake.export(size, TransmissionFlags(flags));
        self.ready(export)
    }

    fn ready(&mut self, export: Export) -> Option<Next> {
        if export.size > i64::MAX as u64 {
            return self.violation("an export of 2^63 bytes or more");
        }
        self.phase = Phase::Transmission(export.clone(), Step::Header);
        self.say_goodbye();
        Some(Next::Ready(export))
    }

    /// The connection is encrypted from here on.
    pub fn tls_started(&mut self) {
        let next = match &self.phase {
            Phase::Handshake(handshake) if matches!(handshake.step, Awaited::Tls) => {
                handshake.after(option::STARTTLS)
            }
            _ => panic!("TLS starts when it was asked for"),
        };
        self.ask(next);
    }
}
