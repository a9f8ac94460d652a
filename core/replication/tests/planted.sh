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

plant() { # name, file, from (perl regex), to
    local name=$1 file=$2 from=$3 to=$4
    [[ -z $only || $only == "$name" ]] || return 0
    rm -rf "$copy/work"
    mkdir -p "$copy/work/core"
    cp -r "$root/core/blocks" "$root/core/replication" "$copy/work/core/"
    sed -e 's/^members = .*/members = ["core\/blocks", "core\/replication"]/' "$root/Cargo.toml" > "$copy/work/Cargo.toml"
    cp "$root/Cargo.lock" "$copy/work/"
    local target=$copy/work/$file
    FROM=$from TO=$to perl -0pi -e 'BEGIN { $f = $ENV{FROM}; $t = $ENV{TO} } s/$f/$t/ or die "the bug does not fit any more\n"' "$target"
    (cd "$copy/work" && CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$root/target} cargo test -q --offline -p replication --test cluster --no-run) > "$copy/build" 2>&1 ||
        { tail -20 "$copy/build"; echo "$name: does not build"; missed=1; return 0; }
    local seed
    for ((seed = 1; seed <= most; seed++)); do
        if ! (cd "$copy/work" && CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$root/target} VPC_REPLICATION_TWICE=0 VPC_REPLICATION_FIRST=$seed VPC_REPLICATION_SEEDS=1 \
            timeout 120 cargo test -q --offline -p replication --test cluster volumes_survive -- --nocapture) > "$copy/run" 2>&1; then
            echo "$name: seen at seed $seed: $(grep -m1 -oE 'not linearizable|not at rest|replicas differ|panicked at [^:]*|little was done' "$copy/run" | tr '\n' ' ')"
            return 0
        fi
    done
    echo "$name: NOT seen in $most seeds"
    missed=1
}

src=core/replication/src
plant acknowledged-before-commit $src/lead.rs \
    '\Qlead.waiting.entry(last + 1).or_default().push(asked);\E' \
    '_ = lead; self.tell(context, asked, Ok(Answered::Done));'
plant entry-acknowledged-before-durable $src/group.rs \
    '\Qif front.submission.is_some() || front.ticket > self.durable {\E' \
    'if front.submission.is_some() {'
plant vote-not-durable $src/group.rs \
    '\Qsubmission: wanted.then_some(Submission { hard, entries }),\E' \
    'submission: wanted.then_some(Submission { hard: hard.filter(|_| !entries.is_empty()), entries }),'
plant no-epoch-check core/blocks/src/volume.rs \
    '\Qlet fenced = writes && epoch < self.epoch;\E' \
    'let fenced = writes && epoch < self.epoch && epoch == u64::MAX;'
plant stale-read-without-lease $src/lead.rs \
    '\Qlet leased = complete && self.holds_lease(context);\E' \
    'let leased = complete;'
plant read-before-own-term $src/lead.rs \
    '\Qlet complete = self.is_complete();\E' \
    'let complete = true;'
plant dedupe-left-out $src/lead.rs \
    '\Qif let Some(index) = taken.or_else(|| self.header_of(stamp)) {\E' \
    'if let Some(index) = taken.filter(|_| false) {'
plant late-copies-are-taken $src/lead.rs \
    '\Qif stamp < lead.floor {\E' \
    'if false {'
plant any-term-will-do $src/lead.rs \
    '\Qlet here = request.term == term;\E' \
    'let here = true;'
plant promise-not-kept $src/liveness.rs \
    '\Qstarted && promised.is_none_or(|link| link.promised_until <= now)\E' \
    '_ = promised; started'
plant promise-forgotten-at-a-start $src/liveness.rs \
    '\Qlet started = self.started + PROMISE_MICROS <= now;\E' \
    'let started = self.started <= now;'
plant lease-while-handing-over $src/lead.rs \
    '\Qlead.no_lease = true;\E' \
    ''
plant commit-not-durable-before-in-place core/blocks/src/batch.rs \
    '\Qhard.commit = hard.commit.min(sealed);\E' \
    'hard.commit = hard.commit.min(sealed).saturating_sub(3);'
plant replaced-entries-take-effect $src/group.rs \
    '\Q.min(taken_in);\E' \
    ';'
exit $missed
