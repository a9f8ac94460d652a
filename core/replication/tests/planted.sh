#!/usr/bin/env bash
# Puts bugs into a copy of the crate, one after another, and counts the seeds until the simulation sees each.
# `planted.sh [MOST_SEEDS [NAME]]`. Needs a workspace that builds; leaves it as it is.
set -euo pipefail
root=$(cd "$(dirname "$0")/../../.." && pwd)
most=${1:-40}
only=${2:-}
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
missed=0
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$root/target}
signs='not linearizable|not at rest|replicas differ|cannot be replaced|little was done|called .Option::unwrap|damages nothing'

plant() { # name, and for each place: file, from, to
    local name=$1
    shift
    [[ -z $only || $only == "$name" ]] || return 0
    rm -rf "$copy/tree"
    mkdir -p "$copy/tree/core"
    cp -r "$root/core/blocks" "$root/core/replication" "$copy/tree/core/"
    sed -e 's/^members = .*/members = ["core\/blocks", "core\/replication"]/' "$root/Cargo.toml" > "$copy/tree/Cargo.toml"
    cp "$root/Cargo.lock" "$copy/tree/"
    while (($#)); do
        FROM=$2 TO=$3 perl -0pi -e 'BEGIN { $f = quotemeta $ENV{FROM}; $t = $ENV{TO} } s/$f/$t/ or die "the bug does not fit any more\n"' \
            "$copy/tree/$1" || { echo "$name: does not fit"; missed=1; return 0; }
        shift 3
    done
    (cd "$copy/tree" && cargo test -q --release --offline -p replication --test cluster --no-run) > "$copy/build" 2>&1 ||
        { tail -20 "$copy/build"; echo "$name: does not build"; missed=1; return 0; }
    if ! (cd "$copy/tree" && VPC_REPLICATION_TWICE=0 VPC_REPLICATION_FIRST=1 VPC_REPLICATION_SEEDS=$most \
        timeout 300 cargo test -q --release --offline -p replication --test cluster volumes_survive -- --nocapture) > "$copy/run" 2>&1; then
        echo "$name: seen at $(grep -oE '^seed [0-9]+' "$copy/run" | tail -1): $(grep -m1 -oE "$signs" "$copy/run" || grep -m1 panicked "$copy/run")"
        return 0
    fi
    echo "$name: NOT seen in $most seeds"
    missed=1
}

src=core/replication/src
plant acknowledged-before-commit $src/lead.rs \
    'lead.waiting.entry(last + 1).or_default().push(asked);' \
    '_ = lead; self.tell(context, asked, Ok(Answered::Done));'
plant entry-acknowledged-before-durable $src/group.rs \
    'if front.submission.is_some() || front.ticket > self.durable {' \
    'if front.submission.is_some() {'
plant vote-not-durable $src/group.rs \
    'submission: wanted.then_some(Submission { hard, entries }),' \
    'submission: wanted.then_some(Submission { hard: hard.filter(|_| !entries.is_empty()), entries }),'
plant no-epoch-check core/blocks/src/volume.rs \
    'let fenced = writes && epoch < self.epoch;' \
    'let fenced = writes && epoch < self.epoch && epoch == u64::MAX;' \
    $src/lead.rs 'if epoch < self.epoch {' 'if false {'
plant stale-read-without-lease $src/lead.rs \
    'let leased = complete && self.holds_lease(context);' \
    'let leased = complete;'
plant read-before-own-term $src/lead.rs \
    'let complete = self.is_complete();' \
    'let complete = true;'
plant dedupe-left-out $src/lead.rs \
    'if let Some(index) = taken.or_else(|| self.header_of(stamp)) {' \
    'if let Some(index) = taken.filter(|_| false) {'
plant late-copies-are-taken $src/lead.rs \
    'if stamp < lead.floor {' \
    'if false {'
plant any-term-will-do $src/lead.rs \
    'let here = request.term == term;' \
    'let here = true;'
plant promise-not-kept $src/liveness.rs \
    'started && promised.is_none_or(|link| link.promised_until <= now)' \
    '_ = promised; started'
plant promise-forgotten-at-a-start $src/liveness.rs \
    'let started = self.started + PROMISE_MICROS <= now;' \
    'let started = self.started <= now;'
plant lease-while-handing-over $src/lead.rs \
    'lead.no_lease = true;' \
    ''
plant commit-not-durable-before-in-place core/blocks/src/batch.rs \
    'hard.commit = hard.commit.min(sealed);' \
    'hard.commit = hard.commit.min(sealed).saturating_sub(3);'
plant replaced-entries-take-effect $src/group.rs \
    '.min(taken_in);' \
    ';'
exit $missed
