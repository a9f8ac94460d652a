//! Numbers in bytes, and out of them.

use super::{BadFrame, malformed};

pub(super) struct Put(pub(super) Vec<u8>);

impl Put {
    pub(super) fn u8(&mut self, value: u8) {
        self.0.push(value);
    }

    pub(super) fn u16(&mut self, value: u16) {
        self.0.extend(value.to_le_bytes());
    }

    pub(super) fn u32(&mut self, value: u32) {
        self.0.extend(value.to_le_bytes());
    }

    pub(super) fn u64(&mut self, value: u64) {
        self.0.extend(value.to_le_bytes());
    }

    pub(super) fn u128(&mut self, value: u128) {
        self.0.extend(value.to_le_bytes());
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        self.u32(bytes.len() as u32);
        self.0.extend(bytes);
    }
}

pub(super) struct Take<'a>(pub(super) &'a [u8]);

impl<'a> Take<'a> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], BadFrame> {
        let (found, rest) = self
            .0
            .split_first_chunk()
            .ok_or(malformed("it ends too early"))?;
        self.0 = rest;
        Ok(*found)
    }

    pub(super) fn u8(&mut self) -> Result<u8, BadFrame> {
        Ok(self.array::<1>()?[0])
    }

    pub(super) fn flag(&mut self) -> Result<bool, BadFrame> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(malformed("neither yes nor no")),
        }
    }

    pub(super) fn u16(&mut self) -> Result<u16, BadFrame> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    pub(super) fn u32(&mut self) -> Result<u32, BadFrame> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(super) fn u64(&mut self) -> Result<u64, BadFrame> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    pub(super) fn u128(&mut self) -> Result<u128, BadFrame> {
        Ok(u128::from_le_bytes(self.array()?))
    }

    pub(super) fn bytes(&mut self) -> Result<&'a [u8], BadFrame> {
        let count = self.u32()? as usize;
        let (found, rest) = self
            .0
            .split_at_checked(count)
            .ok_or(malformed("it ends too early"))?;
        self.0 = rest;
        Ok(found)
    }

    /// A number of things of which each has at least so many bytes.
    pub(super) fn count(&mut self, least: usize) -> Result<usize, BadFrame> {
        let count = self.u32()? as usize;
        if count > self.0.len() / least {
            return Err(malformed("more is promised than there is"));
        }
        Ok(count)
    }
}
