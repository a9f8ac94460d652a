//! Options, until the client has chosen an export ("Fixed newstyle negotiation", "Option types").

use super::transmission::Transmission;
use super::{Ending, Listed, Next, Phase, Server, Tls};
use crate::export::Export;
use crate::wire::{
    BadOption, ClientFlags, EXPORT_NAME_ZEROES, Info, OptionHeader, OptionReply, OptionRequest,
    RefusedOption, info, option,
};
use crate::{BASE_ALLOCATION, PAYLOAD_MAX};

/// Data of an option that is read whole. The longest that makes sense are 64 queries.
const OPTION_BYTES_MAX: u32 = 1 << 16;
/// Data of an option that is thrown away, so that an error can be said. Who announces more is not believed.
const SKIP_BYTES_MAX: u32 = PAYLOAD_MAX;
/// The metadata context that there is.
pub(super) const ALLOCATION_ID: u32 = 1;

#[derive(Debug)]
pub(super) enum Handshake {
    ClientFlags,
    Header,
    Data(OptionHeader),
    Skip {
        option: u32,
        left: u32,
        refusal: RefusedOption,
    },
    /// The caller is asked about this option.
    Asked(OptionRequest),
    /// The client's next bytes are TLS.
    Tls,
    /// The client is told of the export.
    Chosen(Transmission),
}

/// What was agreed on.
#[derive(Debug, Default)]
pub(super) struct Session {
    fixed: bool,
    no_zeroes: bool,
    secure: bool,
    pub(super) structured: bool,
    /// The export whose allocation the client wants to know, by the name that it used.
    allocation_of: Option<String>,
    options: u32,
}

impl<P: AsRef<[u8]>> Server<P> {
    pub(super) fn shake_hands(&mut self, input: &mut &[u8]) -> Option<Next> {
        let Phase::Handshake(step) = &mut self.phase else {
            return None;
        };
        match step {
            Handshake::ClientFlags => match self.gather.array(input) {
                Ok(flags) => self.client_flags(ClientFlags(u32::from_be_bytes(flags))),
                Err(more) => Some(Next::Read(more)),
            },
            // One option at a time: a client that does not read its answers is not read either.
            Handshake::Header if self.pending > 0 => Some(Next::Wait),
            Handshake::Header => match self.gather.array(input) {
                Ok(header) => self.option_header(&header),
                Err(more) => Some(Next::Read(more)),
            },
            Handshake::Data(header) => match self.gather.bytes(header.len as usize, input) {
                Ok(data) => {
                    let option = header.option;
                    self.option(option, &data)
                }
                Err(more) => Some(Next::Read(more)),
            },
            Handshake::Skip { left, .. } if *left > 0 => {
                let skipped = (*left as usize).min(input.len());
                *input = &input[skipped..];
                *left -= skipped as u32;
                (*left > 0).then_some(Next::Read(*left as usize))
            }
            Handshake::Skip {
                option, refusal, ..
            } => {
                let (option, refusal) = (*option, *refusal);
                self.refuse(option, refusal, "the option's data was not looked at")
            }
            Handshake::Asked(_) => Some(Next::Wait),
            Handshake::Tls if self.pending > 0 => Some(Next::Wait),
            Handshake::Tls => Some(Next::StartTls),
            Handshake::Chosen(_) => self.begin(),
        }
    }

    fn client_flags(&mut self, flags: ClientFlags) -> Option<Next> {
        let known = ClientFlags::FIXED_NEWSTYLE | ClientFlags::NO_ZEROES;
        if !flags.without(known).is_empty() {
            return self.end(Ending::Violation(
                "the client has flags that were not offered",
            ));
        }
        self.session.fixed = flags.contains(ClientFlags::FIXED_NEWSTYLE);
        self.session.no_zeroes = flags.contains(ClientFlags::NO_ZEROES);
        self.await_option()
    }

    fn await_option(&mut self) -> Option<Next> {
        self.phase = Phase::Handshake(Handshake::Header);
        None
    }

    fn option_header(&mut self, header: &[u8; OptionHeader::BYTES]) -> Option<Next> {
        let Some(header) = OptionHeader::decode(header) else {
            return self.end(Ending::Violation(
                "an option does not begin with its magic number",
            ));
        };
        self.session.options += 1;
        if self.session.options > self.limits.options {
            return self.end(Ending::Violation("too many options"));
        }
        if header.option != option::EXPORT_NAME && !self.session.fixed {
            return self.end(Ending::Violation(
                "an option without fixed newstyle negotiation",
            ));
        }
        if header.len <= OPTION_BYTES_MAX {
            self.phase = Phase::Handshake(Handshake::Data(header));
            return None;
        }
        if header.len > SKIP_BYTES_MAX || header.option == option::EXPORT_NAME {
            return self.end(Ending::Violation("an option announces too much data"));
        }
        let refusal = match OptionRequest::decode(header.option, &[]) {
            _ if self.wants_tls() => RefusedOption::TlsRequired,
            Err(BadOption::Unknown) => RefusedOption::Unsupported,
            _ => RefusedOption::TooBig,
        };
        self.phase = Phase::Handshake(Handshake::Skip {
            option: header.option,
            left: header.len,
            refusal,
        });
        None
    }

    fn wants_tls(&self) -> bool {
        self.tls == Tls::Required && !self.session.secure
    }

    fn option(&mut self, code: u32, data: &[u8]) -> Option<Next> {
        let request = OptionRequest::decode(code, data);
        if code == option::SET_META_CONTEXT {
            // What was selected before is gone, even if this fails.
            self.session.allocation_of = None;
        }
        if code == option::EXPORT_NAME {
            return self.export_name(request);
        }
        if code == option::ABORT {
            self.reply(code, &[OptionReply::Ack]);
            return self.end(Ending::Client);
        }
        if self.stopping {
            return self.refuse(
                code,
                RefusedOption::Shutdown,
                "this server is shutting down",
            );
        }
        if self.wants_tls() && code != option::STARTTLS {
            return self.refuse(
                code,
                RefusedOption::TlsRequired,
                "this server needs TLS first",
            );
        }
        match request {
            Ok(request) => self.asked(request),
            Err(BadOption::Unknown) => {
                self.refuse(code, RefusedOption::Unsupported, "this option is not known")
            }
            Err(BadOption::Malformed(why)) => self.refuse(code, RefusedOption::Invalid, why),
            Err(BadOption::TooManyQueries) => {
                self.refuse(code, RefusedOption::TooBig, "too many queries")
            }
        }
    }

    fn export_name(&mut self, request: Result<OptionRequest, BadOption>) -> Option<Next> {
        match request {
            _ if self.wants_tls() => self.end(Ending::Refused("an export without TLS")),
            _ if self.stopping => self.end(Ending::Shutdown),
            Ok(request) => self.ask(request),
            Err(_) => self.end(Ending::Violation("the export's name is no string")),
        }
    }

    fn asked(&mut self, request: OptionRequest) -> Option<Next> {
        let code = request.code();
        match &request {
            OptionRequest::StartTls => self.start_tls(),
            OptionRequest::StructuredReply => {
                self.session.structured = true;
                self.acknowledge(code)
            }
            OptionRequest::ListMetaContext { queries, .. }
            | OptionRequest::SetMetaContext { queries, .. } => {
                if !self.session.structured {
                    let why = "metadata needs structured replies, which were not asked for";
                    return self.refuse(code, RefusedOption::Invalid, why);
                }
                let has_namespace = |query: &String| query.find(':').is_some_and(|at| at > 0);
                if !queries.iter().all(has_namespace) {
                    let why = "a query has no namespace with a colon behind it";
                    return self.refuse(code, RefusedOption::Invalid, why);
                }
                self.ask(request)
            }
            OptionRequest::List | OptionRequest::Info { .. } | OptionRequest::Go { .. } => {
                self.ask(request)
            }
            OptionRequest::ExportName(_) | OptionRequest::Abort => {
                unreachable!("they were answered before")
            }
        }
    }

    fn start_tls(&mut self) -> Option<Next> {
        let code = option::STARTTLS;
        match self.tls {
            Tls::Absent => self.refuse(code, RefusedOption::Policy, "there is no TLS here"),
            Tls::Required if self.session.secure => {
                self.refuse(code, RefusedOption::Invalid, "TLS is there already")
            }
            Tls::Required => {
                self.reply(code, &[OptionReply::Ack]);
                self.phase = Phase::Handshake(Handshake::Tls);
                None
            }
        }
    }

    /// The connection is encrypted from here on. Nothing holds any more that was agreed on before: somebody
    /// in between may have said it.
    pub fn tls_started(&mut self) {
        assert!(
            matches!(self.phase, Phase::Handshake(Handshake::Tls)),
            "TLS starts when it was asked for"
        );
        self.session.secure = true;
        self.session.structured = false;
        self.session.allocation_of = None;
        self.phase = Phase::Handshake(Handshake::Header);
    }

    fn ask(&mut self, request: OptionRequest) -> Option<Next> {
        let next = match &request {
            OptionRequest::List => Next::List,
            OptionRequest::ExportName(name)
            | OptionRequest::Info { name, .. }
            | OptionRequest::Go { name, .. }
            | OptionRequest::ListMetaContext { name, .. }
            | OptionRequest::SetMetaContext { name, .. } => Next::Find(name.clone()),
            OptionRequest::Abort | OptionRequest::StartTls | OptionRequest::StructuredReply => {
                unreachable!("they name no export")
            }
        };
        self.phase = Phase::Handshake(Handshake::Asked(request));
        Some(next)
    }

    /// Answers [`Next::List`].
    pub fn listed(&mut self, exports: &[Listed]) {
        let Phase::Handshake(Handshake::Asked(OptionRequest::List)) = self.phase else {
            panic!("exports are listed when that was asked for");
        };
        let mut replies: Vec<_> = exports
            .iter()
            .map(|export| OptionReply::Server {
                name: export.name.clone(),
                description: export.description.clone(),
            })
            .collect();
        replies.push(OptionReply::Ack);
        self.reply(option::LIST, &replies);
        self.await_option();
    }

    /// Answers [`Next::Find`]: the export of that name, or none if this client cannot have it.
    pub fn found(&mut self, export: Option<&Export>) {
        let asked = std::mem::replace(&mut self.phase, Phase::Handshake(Handshake::Header));
        let Phase::Handshake(Handshake::Asked(request)) = asked else {
            panic!("an export is found when it was asked for");
        };
        let code = request.code();
        let Some(export) = export else {
            if code == option::EXPORT_NAME {
                self.end(Ending::Refused("there is no such export"));
            } else {
                let why = "there is no such export";
                self.refuse(code, RefusedOption::UnknownExport, why);
            }
            return;
        };
        match request {
            OptionRequest::ExportName(name) => self.serve_by_name(&name, export),
            OptionRequest::Info { wants, .. } => self.tell(code, export, &wants),
            OptionRequest::Go { name, wants } => {
                self.tell(code, export, &wants);
                self.choose(&name, export);
            }
            OptionRequest::ListMetaContext { queries, .. } => {
                let all = |query: &String| query == BASE_ALLOCATION || query == "base:";
                let matches = queries.is_empty() || queries.iter().any(all);
                self.contexts(code, matches, 0);
            }
            OptionRequest::SetMetaContext { name, queries } => {
                let matches = queries.iter().any(|query| query == BASE_ALLOCATION);
                self.session.allocation_of = matches.then_some(name);
                self.contexts(code, matches, ALLOCATION_ID);
            }
            OptionRequest::Abort
            | OptionRequest::List
            | OptionRequest::StartTls
            | OptionRequest::StructuredReply => unreachable!("they name no export"),
        }
    }

    /// `| size 8 | transmission flags 2 | zeroes 124 |`
    fn serve_by_name(&mut self, name: &str, export: &Export) {
        let flags = export.flags(self.session.structured);
        let mut bytes = Vec::new();
        bytes.extend(export.size().to_be_bytes());
        bytes.extend(flags.0.to_be_bytes());
        if !self.session.no_zeroes {
            bytes.extend([0; EXPORT_NAME_ZEROES]);
        }
        self.outbox.head(bytes);
        self.outbox.end(0);
        self.pending += 1;
        self.choose(name, export);
    }

    fn tell(&mut self, code: u32, export: &Export, wants: &[u16]) {
        // The sizes are told unasked too: who does not know them sends what has to be refused.
        let mut replies = vec![
            OptionReply::Info(export.info(self.session.structured)),
            OptionReply::Info(export.block_size_info()),
        ];
        if wants.contains(&info::NAME) {
            replies.push(OptionReply::Info(Info::Name(export.name().to_owned())));
        }
        if wants.contains(&info::DESCRIPTION) && !export.description().is_empty() {
            let description = export.description().to_owned();
            replies.push(OptionReply::Info(Info::Description(description)));
        }
        replies.push(OptionReply::Ack);
        self.reply(code, &replies);
    }

    fn contexts(&mut self, code: u32, matches: bool, id: u32) {
        let context = OptionReply::MetaContext {
            id,
            name: BASE_ALLOCATION.to_owned(),
        };
        let replies = [context, OptionReply::Ack];
        self.reply(code, if matches { &replies } else { &replies[1..] });
    }

    fn choose(&mut self, name: &str, export: &Export) {
        let allocation = self.session.allocation_of.as_deref() == Some(name);
        let structured = self.session.structured;
        let transmission = Transmission::new(export.clone(), structured, allocation);
        self.phase = Phase::Handshake(Handshake::Chosen(transmission));
    }

    fn begin(&mut self) -> Option<Next> {
        let chosen = std::mem::replace(&mut self.phase, Phase::Ended(Ending::Shutdown));
        if let Phase::Handshake(Handshake::Chosen(transmission)) = chosen {
            self.phase = Phase::Transmission(transmission);
        }
        Some(Next::Serve)
    }

    fn acknowledge(&mut self, code: u32) -> Option<Next> {
        self.reply(code, &[OptionReply::Ack]);
        self.await_option()
    }

    fn refuse(&mut self, code: u32, refusal: RefusedOption, why: &str) -> Option<Next> {
        let message = why.to_owned();
        self.reply(code, &[OptionReply::Refused { refusal, message }]);
        self.await_option()
    }

    fn reply(&mut self, code: u32, replies: &[OptionReply]) {
        for reply in replies {
            self.outbox.head(reply.encode(code));
        }
        self.outbox.end(0);
        self.pending += 1;
    }
}
