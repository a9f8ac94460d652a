//! The newest checkpoint: directory, volumes, and their maps.

use super::replay::{AT_ONCE, Replay};
use super::{OpenError, page_of};
use crate::format::PageRef;
use crate::format::pages::{Leaf, PageBody};
use crate::volume::Volume;
use crate::{Buffer, EXTENT_BLOCKS, VolumeId};

#[derive(Debug, Clone, Copy)]
pub(super) struct MapPage {
    volume: VolumeId,
    level: u32,
    number: u64,
    page: PageRef,
}

impl Replay {
    /// The next page of the directory, if there is one.
    pub(super) fn directory_page(&self) -> Result<Vec<(u64, usize)>, OpenError> {
        let Some(next) = self.next_directory else {
            return Ok(Vec::new());
        };
        if next.page >= self.layout().map_pages {
            return Err(OpenError::Directory { page: next.page });
        }
        Ok(vec![(self.layout().page_at(next.page), 1)])
    }

    pub(super) fn take_directory(&mut self, result: Option<&Buffer>) -> Result<(), OpenError> {
        let Some(wanted) = self.next_directory else {
            return Ok(());
        };
        let damaged = OpenError::Directory { page: wanted.page };
        let (none, number) = (VolumeId::new(0), self.directory.len() as u64);
        let body = page_of(&self.chain.superblock, wanted, none, 0, number, result);
        let Some(PageBody::Directory { next, volumes }) = body else {
            return Err(damaged);
        };
        // A page that is on the list already is no next one.
        if !self.space.pages.mark(wanted.page) {
            return Err(damaged);
        }
        self.directory.push(wanted.page);
        self.listed.extend(volumes);
        self.next_directory = next;
        Ok(())
    }

    /// The pages of the volumes.
    pub(super) fn volume_pages(&mut self) -> Result<Vec<(VolumeId, PageRef)>, OpenError> {
        let pages = std::mem::take(&mut self.listed);
        for (volume, page) in &pages {
            if !self.space.pages.mark(page.page) {
                let what = format!("page {} of volume {volume} is in use", page.page);
                return Err(OpenError::Inconsistent { what });
            }
        }
        Ok(pages)
    }

    pub(super) fn take_volume(&mut self, volume: VolumeId, page: PageRef, result: Option<&Buffer>) {
        self.born += 1;
        let body = page_of(&self.chain.superblock, page, volume, 0, 0, result);
        let Some(PageBody::Volume(state)) = body else {
            let mut held = Volume::new(volume, self.born, 1);
            (held.page, held.changed, held.announced) = (Some(page), false, true);
            held.broken = Some(format!("its page {} of the map is damaged", page.page));
            self.volumes.insert(volume, held);
            return;
        };
        let mut held = Volume::restored(volume, self.born, &state, Some(page));
        let fits = held.map.restore_levels(state.levels);
        self.volumes.insert(volume, held);
        if !fits {
            self.break_volume(
                volume,
                "its map has another height than its size asks for".to_owned(),
            );
        } else if let Some(page) = state.root {
            self.want(MapPage {
                volume,
                level: state.levels,
                number: 0,
                page,
            });
        }
    }

    fn want(&mut self, wanted: MapPage) {
        let page = wanted.page.page;
        if self.space.pages.mark(page) {
            self.pages.push_back(wanted);
        } else {
            let why = format!("page {page} of the map has two uses, or is none");
            self.break_volume(wanted.volume, why);
        }
    }

    /// The next pages of maps.
    pub(super) fn map_pages(&mut self) -> Vec<(u64, usize)> {
        let number = self.pages.len().min(AT_ONCE);
        self.pages_asked = self.pages.drain(..number).collect();
        let layout = self.layout();
        self.pages_asked
            .iter()
            .map(|asked| (layout.page_at(asked.page.page), 1))
            .collect()
    }

    pub(super) fn take_map_pages(&mut self, results: &[Option<Buffer>]) {
        for (asked, result) in std::mem::take(&mut self.pages_asked)
            .into_iter()
            .zip(results)
        {
            let MapPage {
                volume,
                level,
                number,
                page,
            } = asked;
            let body = page_of(
                &self.chain.superblock,
                page,
                volume,
                level,
                number,
                result.as_ref(),
            );
            let held = self.volumes.get_mut(&volume).expect("asked for a volume");
            match body {
                Some(PageBody::Node(children)) if level > 0 => {
                    held.map.restore_node(level, number, page);
                    let first = number * children.len() as u64;
                    for (number, page) in (first..).zip(children) {
                        if let Some(page) = page {
                            let level = level - 1;
                            self.want(MapPage {
                                volume,
                                level,
                                number,
                                page,
                            });
                        }
                    }
                }
                Some(PageBody::Leaf(leaf)) if level == 0 => {
                    let sound = self.take_leaf(volume, number, &leaf);
                    let held = self.volumes.get_mut(&volume).expect("asked for a volume");
                    held.map.restore_leaf(number, leaf, page);
                    if let Err(why) = sound {
                        self.break_volume(volume, why);
                    }
                }
                _ => self.break_volume(volume, format!("page {} of its map is damaged", page.page)),
            }
        }
    }

    fn take_leaf(&mut self, volume: VolumeId, number: u64, leaf: &Leaf) -> Result<(), String> {
        let digest = self.digests.entry(volume).or_default();
        let first = number * leaf.extents.len() as u64;
        for (number, extent) in (first..).zip(&leaf.extents) {
            let Some(at) = extent.at else { continue };
            if !self.space.extents.mark(at) {
                return Err(format!("extent {at} has two uses, or is none"));
            }
            let lbas = number * u64::from(EXTENT_BLOCKS)..;
            for (block, (lba, crc)) in lbas.zip(extent.crcs).enumerate() {
                if extent.valid & 1 << block != 0 {
                    digest.add(lba, crc);
                }
            }
        }
        Ok(())
    }

    /// I6: what was read is what the digest was of.
    pub(super) fn check_maps(&mut self) {
        let differs = |(id, held): (&VolumeId, &Volume)| {
            let read = self.digests.get(id).copied().unwrap_or_default();
            (held.broken.is_none() && held.digest != read).then_some(*id)
        };
        let wrong: Vec<VolumeId> = self.volumes.iter().filter_map(differs).collect();
        for volume in wrong {
            self.break_volume(volume, "its map is not what its digest says".to_owned());
        }
    }
}
