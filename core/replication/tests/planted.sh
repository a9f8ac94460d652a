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
# Not where others build: what has a bug is never taken for what has none.
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$root/target/planted}
signs='not linearizable|not at rest|replicas differ|is twice in the log|damaged everywhere|cannot be replaced|of no change, or of another|was done, and|are not answered|there is no room|little was done|called .Option::unwrap|a crash leaves is opened|what cannot be'

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
    'lead.waiting.entry(index).or_default().push(asked);' \
    '_ = lead; self.tell(context, asked, Ok(Answered::Done));'
plant entry-acknowledged-before-durable $src/group/persist.rs \
    'if front.submission.is_some() || front.ticket > self.durable {' \
    'if front.submission.is_some() {'
plant vote-not-durable $src/group/persist.rs \
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
plant replaced-entries-take-effect $src/group/effect.rs \
    '.min(taken_in);' \
    ';'
plant learner-votes-at-once $src/steps.rs \
    'level && lead.is_some_and(|lead| lead.compared.same.contains_key(&replica))' \
    '_ = (level, lead); true'
plant log-goes-on-before-all-chunks-came $src/catchup.rs \
    'let all = it.next.is_none() && it.wanted.is_empty() && it.held.is_empty();' \
    'let all = it.next.is_none();'
plant chunks-of-an-older-base $src/catchup.rs \
    'let since = it.since;' \
    'let since = it.since + 5;'
plant base-of-the-last-page $src/catchup.rs \
    'it.base.get_or_insert(base);' \
    'it.base = Some(Base { index: base.index + 1, ..base });'
plant damaged-entry-is-acknowledged $src/doubt.rs \
    'last: last.min(first - 1),' \
    'last: last.max(first - 1),'
plant who-cannot-vouch-leads $src/elect.rs \
    '&& !self.doubt.is_there()' \
    ''
plant ticket-lost-when-the-log-goes-on $src/host.rs \
    'kept.durable(ticket);' \
    '_ = kept;'
plant removed-is-not-told $src/host/hear.rs \
    'if !other_host {' \
    'if false && !other_host {'
plant two-changes-at-once $src/steps.rs \
    'if self.is_configuring() || !self.is_complete() {' \
    'if !self.is_complete() {'
plant an-old-change-is-taken $src/members.rs \
    'if change <= self.change {' \
    'if false {'
plant entries-are-given-up-at-once $src/doubt.rs \
    'let all = self.voters_in_log().into_iter().all(answered);' \
    'let all = { _ = answered; true };'
plant no-room-is-said-too-early $src/lead.rs \
    'let failure = |refused| match self.is_complete() {' \
    'let failure = |refused| match true {'
plant grow-on-the-leader-only core/blocks/src/volume.rs \
    'let grows = self.grows.iter().map(|(_, blocks)| *blocks);' \
    'let grows = self.grows.iter().map(|(_, blocks)| *blocks).take(0);'
exit $missed
