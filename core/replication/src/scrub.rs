//! Scrubbing: all that is on the disk is read, over and over, at a pace that is set. One place for all
//! volumes of a host, so that an idle volume costs nothing for it.

use crate::Time;
use crate::steps::MOST_COMPARED;
use blocks::{Buffer, ReadError, Store, VolumeId};

/// What scrubbing did since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ScrubInfo {
    /// Times that all volumes were gone through.
    pub rounds: u64,
    /// Chunks that were read.
    pub chunks: u64,
    /// Blocks that were damaged.
    pub damaged: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Scrub {
    /// MiB in a second.
    rate: u64,
    at: Option<Time>,
    /// The next chunk to be read.
    volume: Option<VolumeId>,
    chunk: u64,
    pub(crate) info: ScrubInfo,
}

impl Scrub {
    pub(crate) fn set(&mut self, mib_per_second: u64, now: Time) {
        self.rate = mib_per_second;
        self.at = (mib_per_second > 0).then_some(now);
    }

    pub(crate) const fn deadline(&self) -> Option<Time> {
        self.at
    }

    pub(crate) fn is_due(&mut self, now: Time) -> bool {
        let due = self.at.is_some_and(|at| at <= now);
        if due {
            self.at = Some(now + 1_000_000 / self.rate.clamp(1, 1_000_000));
        }
        due
    }

    /// The next chunk that has something.
    pub(crate) fn next(
        &mut self,
        store: &Store,
        volumes: impl Iterator<Item = VolumeId>,
    ) -> Option<(VolumeId, u64)> {
        let first = self.volume;
        let mut volumes = volumes.filter(|volume| Some(*volume) >= first);
        let written = |volume, from| {
            let mut chunks = store.chunks_changed_since(volume, 0, from)?;
            chunks.next().map(|(chunk, _)| chunk)
        };
        let found = volumes.find_map(|volume| {
            let from = if Some(volume) == first { self.chunk } else { 0 };
            written(volume, from).map(|chunk| (volume, chunk))
        });
        match found {
            Some((volume, chunk)) => {
                (self.volume, self.chunk) = (Some(volume), chunk + 1);
                self.info.chunks += 1;
            }
            None => {
                (self.volume, self.chunk) = (None, 0);
                self.info.rounds += 1;
            }
        }
        found
    }

    /// Whether digests from this chunk on are compared.
    pub(crate) const fn compares(&self, chunk: u64) -> bool {
        chunk.is_multiple_of(MOST_COMPARED)
    }

    pub(crate) fn note(&mut self, result: &Result<Vec<Buffer>, ReadError>) {
        if let Err(ReadError::Damaged { lbas }) = result {
            self.info.damaged += lbas.len() as u64;
        }
    }
}
