//! DHCPv6 messages (RFC 8415 §8, §21): `| type 1 | transaction 3 | options |`, an option `| code 2 |
//! length 2 | bytes |`.

use crate::wire::Reader;

/// Codes of options.
pub(crate) mod code {
    pub(crate) const CLIENT: u16 = 1;
    pub(crate) const SERVER: u16 = 2;
    pub(crate) const IA_NA: u16 = 3;
    pub(crate) const IA_TA: u16 = 4;
    pub(crate) const IA_ADDRESS: u16 = 5;
    pub(crate) const REQUESTED: u16 = 6;
    pub(crate) const STATUS: u16 = 13;
    pub(crate) const RAPID_COMMIT: u16 = 14;
    /// RFC 3646.
    pub(crate) const RESOLVERS: u16 = 23;
    /// RFC 3646.
    pub(crate) const SEARCH: u16 = 24;
    pub(crate) const IA_PD: u16 = 25;
    /// RFC 8415 §21.23.
    pub(crate) const REFRESH: u16 = 32;
    /// RFC 5908.
    pub(crate) const NTP: u16 = 56;
}

/// RFC 8415 §11: as long as a DUID may be.
const DUID_BYTES: std::ops::RangeInclusive<usize> = 3..=130;

/// A client's message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Request<'a> {
    pub(crate) kind: u8,
    pub(crate) transaction: [u8; 3],
    options: Vec<(u16, &'a [u8])>,
}

impl<'a> Request<'a> {
    pub(crate) fn parse(message: &'a [u8]) -> Option<Self> {
        let mut reader = Reader(message);
        let request = Self {
            kind: reader.u8()?,
            transaction: reader.array()?,
            options: options(reader.0)?,
        };
        let duids = [request.client(), request.server()];
        let sound = |duid: &[u8]| DUID_BYTES.contains(&duid.len());
        duids.into_iter().flatten().all(sound).then_some(request)
    }

    pub(crate) fn option(&self, code: u16) -> Option<&'a [u8]> {
        self.all(code).next()
    }

    pub(crate) fn all(&self, code: u16) -> impl Iterator<Item = &'a [u8]> {
        let of_code = self.options.iter().filter(move |(there, _)| *there == code);
        of_code.map(|(_, bytes)| *bytes)
    }

    pub(crate) fn client(&self) -> Option<&'a [u8]> {
        self.option(code::CLIENT)
    }

    pub(crate) fn server(&self) -> Option<&'a [u8]> {
        self.option(code::SERVER)
    }

    /// Whether the client asks for an option; one that names none takes all.
    pub(crate) fn wants(&self, code: u16) -> bool {
        let Some(asked) = self.option(code::REQUESTED) else {
            return true;
        };
        asked.chunks_exact(2).any(|pair| pair == code.to_be_bytes())
    }
}

/// All options, in order; none if one is longer than what is left.
pub(crate) fn options(bytes: &[u8]) -> Option<Vec<(u16, &[u8])>> {
    let mut reader = Reader(bytes);
    let mut options = Vec::new();
    while !reader.0.is_empty() {
        let code = reader.u16()?;
        let length = usize::from(reader.u16()?);
        options.push((code, reader.bytes(length)?));
    }
    Some(options)
}

pub(crate) fn put(message: &mut Vec<u8>, code: u16, bytes: &[u8]) {
    message.extend(code.to_be_bytes());
    let length = u16::try_from(bytes.len()).expect("answers are far below 64 KiB");
    message.extend(length.to_be_bytes());
    message.extend(bytes);
}
