#!/usr/bin/env bash
# Puts bugs into a copy of the crate, one after another, and counts the seeds until the simulation sees each.
# `planted.sh [MOST_SEEDS [NAME]]`. Needs a workspace that builds; leaves it as it is.
set -euo pipefail
root=$(cd "$(dirname "$0")/../../.." && pwd)
most=${1:-400}
only=${2:-}
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
missed=0
# Not where others build: what has a bug is never taken for what has none.
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$root/target/planted}

plant() { # name, test, and for each place: file, from, to
    local name=$1 test=$2
    shift 2
    [[ -z $only || $only == "$name" ]] || return 0
    rm -rf "$copy/tree"
    mkdir -p "$copy/tree/core"
    cp -r "$root/core/blocks" "$copy/tree/core/"
    sed -e 's/^members = .*/members = ["core\/blocks"]/' "$root/Cargo.toml" > "$copy/tree/Cargo.toml"
    cp "$root/Cargo.lock" "$root/rust-toolchain.toml" "$copy/tree/"
    while (($#)); do
        FROM=$2 TO=$3 perl -0pi -e 'BEGIN { $f = quotemeta $ENV{FROM}; $t = $ENV{TO} } s/$f/$t/ or die "the bug does not fit any more\n"' \
            "$copy/tree/core/blocks/src/$1" || { echo "$name: does not fit"; missed=1; return 0; }
        shift 3
    done
    (cd "$copy/tree" && cargo test -q --release --offline -p blocks --test store --no-run) > "$copy/build" 2>&1 ||
        { tail -20 "$copy/build"; echo "$name: does not build"; missed=1; return 0; }
    local ended=0
    (cd "$copy/tree" && BLOCKS_SEEDS=$most timeout 600 \
        cargo test -q --release --offline -p blocks --test store "$test" -- --nocapture) > "$copy/run" 2>&1 || ended=$?
    if ((ended == 124)); then
        echo "$name: NOT seen in 600 s, by seed $(grep -oE '^BLOCKS_SEED=[0-9]+' "$copy/run" | tail -1 | cut -d= -f2) of $test"
        missed=1
        return 0
    elif ((ended != 0)); then
        local seed
        seed=$(grep -oE '^BLOCKS_SEED=[0-9]+' "$copy/run" | tail -1 | cut -d= -f2) || seed=
        echo "$name: seen at ${seed:+seed $seed of }$test: $(grep -m1 -A1 panicked "$copy/run" | tail -1 | cut -c1-90)"
        return 0
    fi
    echo "$name: NOT seen in $most seeds"
    missed=1
}

random=whatever_happens
chunks=who_lacks
plant in-place-under-a-reader $random checkpoint.rs \
    'if oldest_read.is_some_and(|read| read <= checkpoint.first_read) {' 'if false {'
# Freed while a checkpoint is under way, pages may be used again after it: what freed them is durable before the next
# one's pages are written.
plant pages-used-again-at-once a_page_that_a_superblock space.rs \
    'self.pages_freed.push(page);' 'self.pages.release(page);'
plant extents-of-the-last-checkpoint-used-again $random space.rs \
    'let freed = std::mem::take(&mut self.freed_before_checkpoint);' \
    'let mut freed = std::mem::take(&mut self.freed_before_checkpoint); freed.append(&mut self.freed);'
plant commit-beyond-the-log $random batch.rs \
    'hard.commit = hard.commit.min(sealed);' ''
plant no-sync-when-opened $random recover/mod.rs \
    'let sync = matches!(stage, Stage::Sync { .. });' 'let sync = false; let stage = if let Stage::Sync { replay } = stage { let store = replay.into_store(&mut self.recovered); self.finished = Some(Ok(Box::new(store))); Stage::Over } else { stage };'
plant batch-not-synced $random batch.rs \
    'let batch = self.batch.take().expect("it was there");' 'let batch = self.batch.take().expect("it was there");' \
    batch.rs 'self.issue(Purpose::BatchSync, Io::Sync);' 'self.issue(Purpose::BatchSync, Io::Read { at: 0, blocks: 1 });'
plant superblock-before-data $random checkpoint.rs \
    $'self.issue(Purpose::Checkpoint, Io::Sync);\n            }\n            Stage::DataSync' \
    $'if data { self.write_superblocks(); } else { self.issue(Purpose::Checkpoint, Io::Sync); }\n            }\n            Stage::DataSync'
plant superblocks-not-synced $random checkpoint.rs \
    'let data = checkpoint.stage == Stage::Data;' 'let data = checkpoint.stage == Stage::Data; if !data { return self.end_checkpoint(); }'
plant extents-used-again-under-a-reader $random checkpoint.rs \
    'let oldest = self.oldest_read().unwrap_or(u64::MAX);' 'let oldest = u64::MAX;'
plant no-checkpoint-when-the-log-is-full $random recover/finish.rs \
    '&& !store.ring.fits(0, store.reserve())' '&& false'
plant checkpoint-without-a-batch-as-of-its-tail $random checkpoint.rs \
    'as_of: self.ring.last.seq,' 'as_of: tail.seq,'
plant checkpoint-of-nothing-waits a_checkpoint_that_changes_nothing checkpoint.rs \
    'if checkpoint.under_way == 0 {' 'if false {'
plant in-place-under-a-slow-reader a_reader_that_takes_long checkpoint.rs \
    'if oldest_read.is_some_and(|read| read <= checkpoint.first_read) {' 'if false {'
plant torn-payload-is-taken $random recover/payloads.rs \
    'let lost: Vec<u32> = bad_blocks(volume, *lba, crcs, &read).collect();' 'let lost: Vec<u32> = Vec::new(); _ = &lba;'
plant torn-extents-are-taken $random recover/payloads.rs \
    'lost.extend(bad.map(|offset| first + offset));' 'lost.extend(bad.map(|offset| first + offset).take(0));'
plant torn-batch-is-dropped a_disk_that_fails recover/chain.rs \
    'let (mut header, mut link) = (last, link_of(last, hash));' 'let (mut header, mut link) = (last, link_of(last, hash)); if let Some(before) = find(last.previous).filter(|_| last.seq > tail.seq) { header = before; link = last.previous; }'
plant lost-entry-is-committed $random recover/finish.rs \
    '&& first <= held.hard.commit' '&& first == 0'
plant commit-from-nowhere $random recover/finish.rs \
    'let commit = held.hard.commit;' 'let more = held.log.get(held.hard.commit + 1).is_some_and(|next| !next.is_lost()); let commit = held.hard.commit + u64::from(more);'
plant lowered-commit-comes-back $random recover/replay.rs \
    'held.hard = *hard;' 'held.hard = crate::format::record::HardState { commit: hard.commit.max(held.hard.commit), ..*hard };'
plant carried-copy-stays-damaged $random recover/payloads.rs \
    'self.mends.extend(read.clone().map(|data| (newest, data)));' ''
plant older-copy-is-forgotten $random recover/replay.rs \
    'self.payloads.another((entry.volume, index, entry.term), at);' '_ = at;'
plant promised-each-time a_disk_is_full ahead.rs \
    'need.extents += u32::from(before == 0);' 'need.extents += 1 + 0 * before as u32;'
plant promised-to-nobody a_disk_is_full ahead.rs \
    'need.extents += u32::from(before == 0);' 'need.extents += u32::from(before == 0 && number % 8 != 0);'
plant promised-by-a-fenced-one a_disk_is_full ahead.rs \
    'let fenced = epoch < self.epoch || ground.fences(epoch);' 'let fenced = epoch < self.epoch && ground.fences(epoch);'
plant zeroes-empty-nothing a_disk_is_full ahead.rs \
    'expected.valid &= !within(blocks, *number);' '_ = within(blocks, *number);'
plant promise-is-kept-after-a-cut a_disk_is_full volume.rs \
    'self.ahead = self.ahead_at(last);' '_ = self.ahead_at(last);'
plant failed-sync-is-tried-again a_disk_that_fails store.rs \
    '(_, Done::Failed(why)) => self.die(purpose, &why),' '(Purpose::BatchSync, Done::Failed(_)) => _ = self.issue(Purpose::BatchSync, Io::Sync), (_, Done::Failed(why)) => self.die(purpose, &why),'
plant failed-write-is-none a_disk_that_fails store.rs \
    '(_, Done::Failed(why)) => self.die(purpose, &why),' '(Purpose::Batch, Done::Failed(_)) => self.batch_done(purpose), (_, Done::Failed(why)) => self.die(purpose, &why),'
plant what-is-read-is-believed a_disk_that_fails read.rs \
    'if block_crc(volume, lba, page) != *crc {' 'if block_crc(volume, lba, page) != *crc && false {'
plant older-entry-over-a-newer-chunk $chunks fold.rs \
    'self.map.newest() >= index && self.map.changed(lba / u64::from(CHUNK_BLOCKS)) >= index' 'false && lba < index'
plant zero-over-a-newer-chunk $chunks map.rs \
    'mask == 0 || newer[chunk as usize]' 'mask == 0 || newer[chunk as usize] && false'
plant log-goes-on-before-a-checkpoint $chunks chunk.rs \
    'if held.checkpointed < folded {' 'if false {'
plant chunk-read-from-where-it-is-not-yet $chunks fold.rs \
    'self.unwritten.extend(blocks);' 'drop(blocks);'
plant torn-chunk-is-taken $chunks recover/chain.rs \
    'whole &= data.is_some_and(|data| run.iter().zip(data.pages()).all(right));' '_ = data.is_some_and(|data| run.iter().zip(data.pages()).all(right)); whole &= true;'
plant torn-chunk-comes-back $chunks batch.rs \
    'self.not_taken.clear();' 'gathered.records.retain(|record| !matches!(record, Record::NotTaken(_))); self.not_taken.clear();'
plant base-before-its-chunks $chunks chunk.rs \
    'if !held.chunks.is_empty() {' 'if held.chunks.len() > usize::MAX / 2 {'
plant base-without-its-epoch $chunks volume.rs \
    'self.epoch = base.epoch;' ''
plant chunk-with-another-change $chunks map.rs \
    'leaf.changed[chunk] = leaf.changed[chunk].max(index);' 'leaf.changed[chunk] = index.saturating_sub(1);'
exit $missed
