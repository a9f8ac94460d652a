//! A store, the disk under it, and the IO that is between them.

use crate::disk::{Disk, carry_out};
use crate::rng::Rng;
use blocks::{Formatted, Identity, Io, OpenError, Opening, Recovered, Store, Token};

pub(crate) const IDENTITY: Identity = Identity {
    cluster: 0xc1,
    host: 0x01,
    disk: 0xd1,
};

pub(crate) struct Machine {
    pub(crate) disk: Disk,
    pub(crate) bytes: u64,
    pub(crate) store: Store,
    /// IO that was handed out and is not done; for a sync, what it reaches.
    pub(crate) ios: Vec<(Token, Io, u64)>,
}

impl Machine {
    /// Of a disk that has a store.
    pub(crate) fn open(
        mut disk: Disk,
        bytes: u64,
        rng: &mut Rng,
    ) -> Result<(Self, Recovered), OpenError> {
        let (store, recovered) = open(&mut disk, bytes, rng)?;
        let ios = Vec::new();
        let machine = Self {
            disk,
            bytes,
            store,
            ios,
        };
        Ok((machine, recovered))
    }

    /// Takes the next IO that the store hands out.
    pub(crate) fn take_io(&mut self) -> Option<(Token, Io)> {
        let (token, io) = self.store.poll_io()?;
        self.ios.push((token, io.clone(), self.disk.mark()));
        Some((token, io))
    }

    /// Carries out one of those that were handed out.
    pub(crate) fn carry_out(&mut self, number: usize) -> Token {
        let (token, io, mark) = self.ios.remove(number);
        let done = carry_out(&mut self.disk, &io, mark);
        self.store.handle_done(token, done);
        token
    }

    /// The process ends. What was handed out may be carried out or not; power may be lost too.
    pub(crate) fn crash(&mut self, power: bool, rng: &mut Rng) {
        for (_, io, _) in std::mem::take(&mut self.ios) {
            if let Io::Write { at, buffers } | Io::WriteSync { at, buffers } = &io
                && rng.one_in(2)
            {
                self.disk.write(*at, buffers);
            }
        }
        if power {
            self.disk.lose_power(rng);
        }
    }
}

/// Makes an empty disk.
pub(crate) fn formatted(bytes: u64, wal_bytes: u64) -> Disk {
    let formatted = Formatted::new(IDENTITY, 0x5eed, bytes, wal_bytes).expect("it is large enough");
    let mut disk = Disk::default();
    for (at, buffer) in formatted.log.iter().chain(&formatted.superblocks) {
        disk.write(*at, std::slice::from_ref(buffer));
        disk.sync(disk.mark());
    }
    disk
}

/// Opens it, doing its IO in some order.
pub(crate) fn open(
    disk: &mut Disk,
    bytes: u64,
    rng: &mut Rng,
) -> Result<(Store, Recovered), OpenError> {
    let mut opening = Opening::new(IDENTITY, bytes);
    let mut ios = Vec::new();
    loop {
        ios.extend(std::iter::from_fn(|| opening.poll_io()));
        if ios.is_empty() {
            return opening
                .finish()
                .expect("nothing is under way: it is finished");
        }
        let (token, io) = ios.swap_remove(rng.below(ios.len() as u64) as usize);
        opening.handle_done(token, carry_out(disk, &io, u64::MAX));
    }
}

/// The host dies while it opens it, after so much IO at most.
pub(crate) fn open_in_part(disk: &mut Disk, bytes: u64, most: u64, rng: &mut Rng) {
    let mut opening = Opening::new(IDENTITY, bytes);
    let mut ios = Vec::new();
    for _ in 0..most {
        ios.extend(std::iter::from_fn(|| opening.poll_io()));
        if ios.is_empty() {
            break;
        }
        let (token, io) = ios.swap_remove(rng.below(ios.len() as u64) as usize);
        opening.handle_done(token, carry_out(disk, &io, u64::MAX));
    }
    disk.lose_power(rng);
}
