//! Messages on the wire (RFC 1035 §4, RFC 6891).

/// How a question came, which bounds the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    /// As long as the asker takes, at most [`MOST_UDP_BYTES`].
    Udp,
    /// Up to 65,535 bytes.
    Tcp,
}

/// An answer by UDP is not longer: what passes any network without fragments (RFC 9715).
pub const MOST_UDP_BYTES: u16 = 1232;
/// What everybody takes (RFC 1035 §2.3.4).
const LEAST_UDP_BYTES: u16 = 512;
pub(crate) const HEADER_BYTES: usize = 12;
/// Of a name, with the octets of lengths.
const MOST_NAME_BYTES: usize = 255;
/// Records beside the question that are looked through for EDNS; no client sends more than two.
const MOST_RECORDS: u16 = 8;

/// RCODEs (RFC 1035 §4.1.1, RFC 6895).
pub(crate) mod rcode {
    pub(crate) const NOERROR: u16 = 0;
    pub(crate) const FORMERR: u16 = 1;
    pub(crate) const SERVFAIL: u16 = 2;
    pub(crate) const NXDOMAIN: u16 = 3;
    pub(crate) const NOTIMP: u16 = 4;
    pub(crate) const REFUSED: u16 = 5;
    pub(crate) const BADVERS: u16 = 16;
}

/// Types and classes (RFC 1035 §3.2, RFC 6895 §3.1).
pub(crate) mod kind {
    pub(crate) const IN: u16 = 1;
    pub(crate) const A: u16 = 1;
    pub(crate) const SOA: u16 = 6;
    pub(crate) const PTR: u16 = 12;
    pub(crate) const HINFO: u16 = 13;
    pub(crate) const AAAA: u16 = 28;
    pub(crate) const OPT: u16 = 41;
    pub(crate) const TKEY: u16 = 249;
    pub(crate) const TSIG: u16 = 250;
    pub(crate) const IXFR: u16 = 251;
    pub(crate) const MAILA: u16 = 254;
    pub(crate) const ANY: u16 = 255;
}

const QR: u16 = 0x8000;
const AA: u16 = 0x0400;
pub(crate) const TC: u16 = 0x0200;
const RD: u16 = 0x0100;
const RA: u16 = 0x0080;
const CD: u16 = 0x0010;
const OPCODE: u16 = 0x7800;
/// Of EDNS: the asker takes signatures.
const DO: u16 = 0x8000;

/// One question, with what it says of the answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Question {
    pub(crate) id: u16,
    pub(crate) wants_recursion: bool,
    pub(crate) checking_disabled: bool,
    /// As it came: `| name | type 2 | class 2 |`.
    pub(crate) bytes: Vec<u8>,
    /// The labels in lower case, the first first.
    pub(crate) labels: Vec<Vec<u8>>,
    pub(crate) kind: u16,
    pub(crate) class: u16,
    pub(crate) edns: Option<Edns>,
}

/// The asker speaks EDNS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Edns {
    pub(crate) udp_bytes: u16,
    pub(crate) version: u8,
    pub(crate) dnssec: bool,
}

/// Why it is no question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Malformed {
    /// Whoever sent it gets no answer: it has no header, or is an answer itself.
    Silent,
    /// Whoever sent it is told.
    Told { id: u16, opcode: u16, rcode: u16 },
}

/// Reads big-endian numbers and names; none at the end.
pub(crate) struct Reader<'a> {
    bytes: &'a [u8],
    pub(crate) at: usize,
}

impl<'a> Reader<'a> {
    pub(crate) const fn new(bytes: &'a [u8], at: usize) -> Self {
        Self { bytes, at }
    }

    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let end = self.at.checked_add(count)?;
        let taken = self.bytes.get(self.at..end)?;
        self.at = end;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1).map(|b| b[0])
    }

    pub(crate) fn two(&mut self) -> Option<u16> {
        self.take(2).map(|b| u16::from_be_bytes([b[0], b[1]]))
    }

    fn is_at_end(&self) -> bool {
        self.at == self.bytes.len()
    }

    /// A name whose labels are all spelt out, in lower case.
    fn labels(&mut self) -> Option<Vec<Vec<u8>>> {
        let start = self.at;
        let mut labels = Vec::new();
        loop {
            match self.byte()? {
                0 => break,
                length @ 1..=63 => labels.push(self.take(length.into())?.to_ascii_lowercase()),
                // There is nothing before a question that it could point to.
                _ => return None,
            }
            if self.at - start > MOST_NAME_BYTES - 1 {
                return None;
            }
        }
        Some(labels)
    }

    /// `| name | type 2 | class 2 | TTL 4 | length 2 | data |`, looked at for EDNS only.
    fn record(&mut self) -> Option<Option<Edns>> {
        let root = self.bytes.get(self.at) == Some(&0);
        loop {
            match self.byte()? {
                0 => break,
                length @ 1..=63 => drop(self.take(length.into())?),
                0xc0.. => {
                    self.byte()?;
                    break;
                }
                _ => return None,
            }
        }
        let (kind, class) = (self.two()?, self.two()?);
        let (high, low) = (self.two()?, self.two()?);
        let length = self.two()?;
        self.take(length.into())?;
        // RFC 6891 §6.1.2: the class is the size, the TTL has the version and flags.
        Some((kind == kind::OPT).then(|| Edns {
            udp_bytes: class,
            version: if root { high.to_be_bytes()[1] } else { 0 },
            dnssec: low & DO != 0,
        }))
    }
}

impl Question {
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(bytes, 0);
        let mut two = || reader.two().ok_or(Malformed::Silent);
        let (id, flags) = (two()?, two()?);
        let (questions, answers, authorities, others) = (two()?, two()?, two()?, two()?);
        if flags & QR != 0 {
            return Err(Malformed::Silent);
        }
        let told = |rcode| Malformed::Told {
            id,
            opcode: flags & OPCODE,
            rcode,
        };
        if flags & OPCODE != 0 {
            return Err(told(rcode::NOTIMP));
        }
        if questions != 1 || answers != 0 || authorities != 0 || others > MOST_RECORDS {
            return Err(told(rcode::FORMERR));
        }
        let bad = || told(rcode::FORMERR);
        let labels = reader.labels().ok_or_else(bad)?;
        let kind = reader.two().ok_or_else(bad)?;
        let class = reader.two().ok_or_else(bad)?;
        let asked = bytes[HEADER_BYTES..reader.at].to_vec();
        let mut edns = None;
        for _ in 0..others {
            let found = reader.record().ok_or_else(bad)?;
            if edns.is_some() && found.is_some() {
                return Err(bad());
            }
            edns = edns.or(found);
        }
        if !reader.is_at_end() {
            return Err(bad());
        }
        Ok(Self {
            id,
            wants_recursion: flags & RD != 0,
            checking_disabled: flags & CD != 0,
            bytes: asked,
            labels,
            kind,
            class,
            edns,
        })
    }

    /// Bytes that the asker takes.
    pub(crate) fn most_bytes(&self, transport: Transport) -> usize {
        match (transport, self.edns) {
            (Transport::Tcp, _) => usize::from(u16::MAX),
            (Transport::Udp, None) => LEAST_UDP_BYTES.into(),
            (Transport::Udp, Some(edns)) => {
                edns.udp_bytes.clamp(LEAST_UDP_BYTES, MOST_UDP_BYTES).into()
            }
        }
    }

    /// The question as it is asked of somebody else.
    pub(crate) fn encode(&self, id: u16, transport: Transport) -> Vec<u8> {
        let flags = RD | if self.checking_disabled { CD } else { 0 };
        let mut out = header(id, flags, [1, 0, 0, self.edns.is_some().into()]);
        out.extend(&self.bytes);
        if let Some(edns) = self.edns {
            let most = self.most_bytes(transport).min(MOST_UDP_BYTES.into()) as u16;
            opt(&mut out, most, 0, edns.dnssec);
        }
        out
    }
}

/// One record of an answer; its name is the question's, or an ending of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    /// How many bytes of the question's name come before it.
    pub(crate) skip: usize,
    pub(crate) kind: u16,
    pub(crate) ttl_secs: u32,
    pub(crate) data: Vec<u8>,
}

/// An answer of our own.
pub(crate) struct Message<'a> {
    question: &'a Question,
    rcode: u16,
    pub(crate) answers: Vec<Record>,
    /// For how long the answer holds that there is nothing (RFC 2308).
    pub(crate) authority: Option<Record>,
}

impl<'a> Message<'a> {
    pub(crate) const fn new(question: &'a Question, rcode: u16) -> Self {
        Self {
            question,
            rcode,
            answers: Vec::new(),
            authority: None,
        }
    }

    pub(crate) fn encode(&self, transport: Transport) -> Vec<u8> {
        let whole = self.with(&self.answers, self.authority.as_ref(), 0);
        if whole.len() <= self.question.most_bytes(transport) {
            return whole;
        }
        // RFC 2181 §9: the asker comes again by TCP.
        self.with(&[], None, TC)
    }

    fn with(&self, answers: &[Record], authority: Option<&Record>, flag: u16) -> Vec<u8> {
        let question = self.question;
        let own = self.authority.is_some() || !self.answers.is_empty();
        let mut flags = QR | RA | flag | self.rcode & 0xf;
        flags |= if own { AA } else { 0 };
        flags |= if question.wants_recursion { RD } else { 0 };
        flags |= if question.checking_disabled { CD } else { 0 };
        let counts = [
            1,
            answers.len() as u16,
            authority.is_some().into(),
            question.edns.is_some().into(),
        ];
        let mut out = header(question.id, flags, counts);
        out.extend(&question.bytes);
        for record in answers.iter().chain(authority) {
            let name = (HEADER_BYTES + record.skip) as u16;
            out.extend((0xc000 | name).to_be_bytes());
            out.extend(record.kind.to_be_bytes());
            out.extend(kind::IN.to_be_bytes());
            out.extend(record.ttl_secs.to_be_bytes());
            out.extend((record.data.len() as u16).to_be_bytes());
            out.extend(&record.data);
        }
        if let Some(edns) = question.edns {
            opt(&mut out, MOST_UDP_BYTES, self.rcode >> 4, edns.dnssec);
        }
        out
    }
}

/// An answer to what could not be read.
pub(crate) fn bare(id: u16, opcode: u16, rcode: u16) -> Vec<u8> {
    header(id, QR | opcode | rcode, [0; 4])
}

/// `| ID 2 | flags 2 | questions 2 | answers 2 | authorities 2 | others 2 |`
fn header(id: u16, flags: u16, counts: [u16; 4]) -> Vec<u8> {
    let words = [id, flags].into_iter().chain(counts);
    words.flat_map(u16::to_be_bytes).collect()
}

/// `| root 1 | OPT 2 | size 2 | RCODE 1 | version 1 | flags 2 | length 2 |`, without options.
fn opt(out: &mut Vec<u8>, udp_bytes: u16, high_rcode: u16, dnssec: bool) {
    out.push(0);
    out.extend(kind::OPT.to_be_bytes());
    out.extend(udp_bytes.to_be_bytes());
    out.push(high_rcode as u8);
    out.push(0);
    out.extend(if dnssec { DO } else { 0 }.to_be_bytes());
    out.extend([0, 0]);
}

/// What is asked at the beginning of an answer: `(id, flags, question)`; none if it is no answer to one
/// question.
pub(crate) fn asked(reply: &[u8]) -> Option<(u16, u16, &[u8])> {
    let mut reader = Reader::new(reply, 0);
    let (id, flags, questions) = (reader.two()?, reader.two()?, reader.two()?);
    if flags & QR == 0 || flags & OPCODE != 0 || questions != 1 {
        return None;
    }
    reader.at = HEADER_BYTES;
    reader.labels()?;
    let _kind_and_class = (reader.two()?, reader.two()?);
    Some((id, flags, &reply[HEADER_BYTES..reader.at]))
}
