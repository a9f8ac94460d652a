//! Reads fields from the front of a message; what is too short is none.

use super::is_string;

/// What is left of a message.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fields<'a>(pub(crate) &'a [u8]);

impl<'a> Fields<'a> {
    pub(crate) fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*taken)
    }

    pub(crate) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    /// A string of so many bytes.
    pub(crate) fn string(&mut self, count: usize) -> Option<String> {
        let text = std::str::from_utf8(self.bytes(count)?).ok()?;
        is_string(text).then(|| text.to_owned())
    }

    /// A string behind its length of 32 bits.
    pub(crate) fn counted_string(&mut self) -> Option<String> {
        let count = usize::try_from(self.u32()?).ok()?;
        self.string(count)
    }

    /// All that is left, as a string.
    pub(crate) fn rest_as_string(&mut self) -> Option<String> {
        self.string(self.0.len())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
