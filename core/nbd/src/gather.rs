//! Puts together what comes in pieces.

/// The first bytes of something whose rest has not come yet.
#[derive(Debug, Default)]
pub(crate) struct Gather(Vec<u8>);

impl Gather {
    /// `N` bytes from the front, or how many more are needed. It takes nothing beyond them.
    pub(crate) fn array<const N: usize>(&mut self, input: &mut &[u8]) -> Result<[u8; N], usize> {
        if self.0.is_empty()
            && let Some((taken, rest)) = input.split_first_chunk()
        {
            *input = rest;
            return Ok(*taken);
        }
        self.fill(N, input)?;
        let mut array = [0; N];
        array.copy_from_slice(&self.0);
        self.0.clear();
        Ok(array)
    }

    /// The same for any number. Memory grows with what has come, not with what was announced.
    pub(crate) fn bytes(&mut self, count: usize, input: &mut &[u8]) -> Result<Vec<u8>, usize> {
        self.fill(count, input)?;
        Ok(std::mem::take(&mut self.0))
    }

    /// The first four bytes of what is next, left where they are.
    pub(crate) fn peek(&mut self, input: &mut &[u8]) -> Result<[u8; 4], usize> {
        if self.0.len() < 4 {
            self.fill(4, input)?;
        }
        let first = self.0.first_chunk();
        first.copied().ok_or(4)
    }

    fn fill(&mut self, count: usize, input: &mut &[u8]) -> Result<(), usize> {
        let missing = count.saturating_sub(self.0.len());
        let (taken, rest) = input.split_at(missing.min(input.len()));
        self.0.extend_from_slice(taken);
        *input = rest;
        match count.saturating_sub(self.0.len()) {
            0 => Ok(()),
            more => Err(more),
        }
    }
}
