# Bugs for `scripts/planted.sh blocks`: each with the test that is to see it, then file, what stands there, what is put there.
src=core/blocks/src
random=whatever_happens
chunks=who_lacks
plant in-place-under-a-reader $random $src/checkpoint.rs \
    'if oldest_read.is_some_and(|read| read <= checkpoint.first_read) {' 'if false {'
# Freed while a checkpoint is under way, pages may be used again after it: what freed them is durable before the next
# one's pages are written.
plant pages-used-again-at-once a_page_that_a_superblock $src/space.rs \
    'self.pages_freed.push(page);' 'self.pages.release(page);'
plant extents-of-the-last-checkpoint-used-again $random $src/space.rs \
    'let freed = std::mem::take(&mut self.freed_before_checkpoint);' \
    'let mut freed = std::mem::take(&mut self.freed_before_checkpoint); freed.append(&mut self.freed);'
plant commit-beyond-the-log $random $src/batch.rs \
    'hard.commit = hard.commit.min(sealed);' ''
plant no-sync-when-opened $random $src/recover/mod.rs \
    'let sync = matches!(stage, Stage::Sync { .. });' 'let sync = false; let stage = if let Stage::Sync { replay } = stage { let store = replay.into_store(&mut self.recovered); self.finished = Some(Ok(Box::new(store))); Stage::Over } else { stage };'
plant batch-not-synced $random $src/batch.rs \
    'let batch = self.batch.take().expect("it was there");' 'let batch = self.batch.take().expect("it was there");' \
    $src/batch.rs 'self.issue(Purpose::BatchSync, Io::Sync);' 'self.issue(Purpose::BatchSync, Io::Read { at: 0, blocks: 1 });'
plant superblock-before-data $random $src/checkpoint.rs \
    $'self.issue(Purpose::Checkpoint, Io::Sync);\n            }\n            Stage::DataSync' \
    $'if data { self.write_superblocks(); } else { self.issue(Purpose::Checkpoint, Io::Sync); }\n            }\n            Stage::DataSync'
plant superblocks-not-synced $random $src/checkpoint.rs \
    'let data = checkpoint.stage == Stage::Data;' 'let data = checkpoint.stage == Stage::Data; if !data { return self.end_checkpoint(); }'
plant extents-used-again-under-a-reader $random $src/checkpoint.rs \
    'let oldest = self.oldest_read().unwrap_or(u64::MAX);' 'let oldest = u64::MAX;'
plant no-checkpoint-when-the-log-is-full $random $src/recover/finish.rs \
    '&& !store.ring.fits(0, store.reserve())' '&& false'
plant checkpoint-without-a-batch-as-of-its-tail $random $src/checkpoint.rs \
    'as_of: self.ring.last.seq,' 'as_of: tail.seq,'
plant checkpoint-of-nothing-waits a_checkpoint_that_changes_nothing $src/checkpoint.rs \
    'if checkpoint.under_way == 0 {' 'if false {'
plant in-place-under-a-slow-reader a_reader_that_takes_long $src/checkpoint.rs \
    'if oldest_read.is_some_and(|read| read <= checkpoint.first_read) {' 'if false {'
plant torn-payload-is-taken $random $src/recover/payloads.rs \
    'let lost: Vec<u32> = bad_blocks(volume, *lba, crcs, &read).collect();' 'let lost: Vec<u32> = Vec::new(); _ = &lba;'
plant torn-extents-are-taken $random $src/recover/payloads.rs \
    'lost.extend(bad.map(|offset| first + offset));' 'lost.extend(bad.map(|offset| first + offset).take(0));'
plant torn-batch-is-dropped a_disk_that_fails $src/recover/chain.rs \
    'let (mut header, mut link) = (last, link_of(last, hash));' 'let (mut header, mut link) = (last, link_of(last, hash)); if let Some(before) = find(last.previous).filter(|_| last.seq > tail.seq) { header = before; link = last.previous; }'
plant lost-entry-is-committed $random $src/recover/finish.rs \
    '&& first <= held.hard.commit' '&& first == 0'
plant commit-from-nowhere $random $src/recover/finish.rs \
    'let commit = held.hard.commit;' 'let more = held.log.get(held.hard.commit + 1).is_some_and(|next| !next.is_lost()); let commit = held.hard.commit + u64::from(more);'
plant lowered-commit-comes-back $random $src/recover/replay.rs \
    'held.hard = *hard;' 'held.hard = crate::format::record::HardState { commit: hard.commit.max(held.hard.commit), ..*hard };'
plant carried-copy-stays-damaged $random $src/recover/payloads.rs \
    'self.mends.extend(read.clone().map(|data| (newest, data)));' ''
plant older-copy-is-forgotten $random $src/recover/replay.rs \
    'self.payloads.another((entry.volume, index, entry.term), at);' '_ = at;'
plant promised-each-time a_disk_is_full $src/ahead.rs \
    'need.extents += u32::from(before == 0);' 'need.extents += 1 + 0 * before as u32;'
plant promised-to-nobody a_disk_is_full $src/ahead.rs \
    'need.extents += u32::from(before == 0);' 'need.extents += u32::from(before == 0 && number % 8 != 0);'
plant promised-by-a-fenced-one a_disk_is_full $src/ahead.rs \
    'let fenced = epoch < self.epoch || ground.fences(epoch);' 'let fenced = epoch < self.epoch && ground.fences(epoch);'
plant zeroes-empty-nothing a_disk_is_full $src/ahead.rs \
    'expected.valid &= !within(blocks, *number);' '_ = within(blocks, *number);'
plant promise-is-kept-after-a-cut a_disk_is_full $src/volume.rs \
    'self.ahead = self.ahead_at(last);' '_ = self.ahead_at(last);'
plant failed-sync-is-tried-again a_disk_that_fails $src/store.rs \
    '(_, Done::Failed(why)) => self.die(purpose, &why),' '(Purpose::BatchSync, Done::Failed(_)) => _ = self.issue(Purpose::BatchSync, Io::Sync), (_, Done::Failed(why)) => self.die(purpose, &why),'
plant failed-write-is-none a_disk_that_fails $src/store.rs \
    '(_, Done::Failed(why)) => self.die(purpose, &why),' '(Purpose::Batch, Done::Failed(_)) => self.batch_done(purpose), (_, Done::Failed(why)) => self.die(purpose, &why),'
plant what-is-read-is-believed a_disk_that_fails $src/read.rs \
    'if block_crc(volume, lba, page) != *crc {' 'if block_crc(volume, lba, page) != *crc && false {'
plant older-entry-over-a-newer-chunk $chunks $src/fold.rs \
    'self.map.newest() >= index && self.map.changed(lba / u64::from(CHUNK_BLOCKS)) >= index' 'false && lba < index'
plant zero-over-a-newer-chunk $chunks $src/map.rs \
    'mask == 0 || newer[chunk as usize]' 'mask == 0 || newer[chunk as usize] && false'
plant log-goes-on-before-a-checkpoint $chunks $src/chunk.rs \
    'if held.checkpointed < folded {' 'if false {'
plant chunk-read-from-where-it-is-not-yet $chunks $src/fold.rs \
    'self.unwritten.extend(blocks);' 'drop(blocks);'
plant torn-chunk-is-taken $chunks $src/recover/chain.rs \
    'whole &= data.is_some_and(|data| run.iter().zip(data.pages()).all(right));' '_ = data.is_some_and(|data| run.iter().zip(data.pages()).all(right)); whole &= true;'
plant torn-chunk-comes-back $chunks $src/batch.rs \
    'self.not_taken.clear();' 'gathered.records.retain(|record| !matches!(record, Record::NotTaken(_))); self.not_taken.clear();'
plant base-before-its-chunks $chunks $src/chunk.rs \
    'if !held.chunks.is_empty() {' 'if held.chunks.len() > usize::MAX / 2 {'
plant base-without-its-epoch $chunks $src/volume.rs \
    'self.epoch = base.epoch;' ''
plant chunk-with-another-change $chunks $src/map.rs \
    'leaf.changed[chunk] = leaf.changed[chunk].max(index);' 'leaf.changed[chunk] = index.saturating_sub(1);'
