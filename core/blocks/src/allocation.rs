//! Which blocks of a volume have something on the disk: the others read as zeroes, and take no room.

use crate::map::Map;
use crate::refused::invalid;
use crate::{EXTENT_BLOCKS, Refused, Store, VolumeId};

/// Neighbours that have something, all of them, or nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// How many.
    pub blocks: u64,
    /// They were written, and not zeroed since.
    pub written: bool,
}

impl Store {
    /// Which of these blocks have something, as of now: all that is committed, nothing that is not. Only the first
    /// so many runs are told, and at least one.
    pub fn allocation(
        &mut self,
        volume: VolumeId,
        lba: u64,
        blocks: u64,
        most: usize,
    ) -> Result<Vec<Run>, Refused> {
        let (held, _) = self.volume_mut(volume)?;
        let end = lba.checked_add(blocks).filter(|end| *end <= held.blocks);
        let Some(end) = end.filter(|_| blocks > 0) else {
            let has = held.blocks;
            return Err(invalid(format!(
                "{blocks} blocks at {lba} of a volume of {has}"
            )));
        };
        Ok(runs(&held.map, lba, end, most))
    }
}

fn runs(map: &Map, lba: u64, end: u64, most: usize) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    let mut at = lba;
    while at < end {
        let number = at / u64::from(EXTENT_BLOCKS);
        let next = ((number + 1) * u64::from(EXTENT_BLOCKS)).min(end);
        let valid = map.extent(number).map_or(0, |extent| extent.valid);
        let (blocks, written) = match valid {
            0 => (next - at, false),
            u16::MAX => (next - at, true),
            some => (1, some & 1 << (at % u64::from(EXTENT_BLOCKS)) != 0),
        };
        let full = runs.len() == most.max(1);
        match runs.last_mut() {
            Some(last) if last.written == written => last.blocks += blocks,
            _ if full => break,
            _ => runs.push(Run { blocks, written }),
        }
        at += blocks;
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Digest;
    use crate::space::Space;

    #[test]
    fn neighbours_are_one_run() {
        let (mut map, mut space) = (Map::new(1 << 20), Space::new(8, 64));
        let mut digest = Digest::default();
        for lba in (14..18).chain(32..48).chain([50]) {
            map.write(lba, 1, 1, &mut space, &mut digest);
        }
        let of = |map: &Map, lba, end, most| {
            let all = runs(map, lba, end, most).into_iter();
            let shown = all.map(|run| match run.written {
                true => run.blocks as i64,
                false => -(run.blocks as i64),
            });
            shown.collect::<Vec<i64>>()
        };
        assert_eq!(
            of(&map, 0, 1 << 20, 99),
            [-14, 4, -14, 16, -2, 1, -((1 << 20) - 51)]
        );
        assert_eq!(of(&map, 15, 40, 99), [3, -14, 8]);
        assert_eq!(of(&map, 0, 1 << 20, 2), [-14, 4]);
        assert_eq!(of(&map, 50, 51, 0), [1]);
        map.clear(15, 2, 2, &mut space, &mut digest);
        assert_eq!(of(&map, 14, 19, 99), [1, -2, 1, -1]);
    }
}
