# Bugs for `scripts/planted.sh replication`: each with the test that is to see it, then file, what stands there, what is put there.
random=volumes_survive
src=core/replication/src
plant acknowledged-before-commit $random $src/lead.rs \
    'lead.waiting.entry(index).or_default().push(asked);' \
    '_ = lead; self.tell(context, asked, Ok(Answered::Done));'
plant entry-acknowledged-before-durable $random $src/group/persist.rs \
    'if front.submission.is_some() || front.ticket > self.durable {' \
    'if front.submission.is_some() {'
plant vote-not-durable $random $src/group/persist.rs \
    'submission: wanted.then_some(Submission { hard, entries }),' \
    'submission: wanted.then_some(Submission { hard: hard.filter(|_| !entries.is_empty()), entries }),'
plant no-epoch-check $random core/blocks/src/fold.rs \
    'let fenced = writes && epoch < self.epoch;' \
    'let fenced = writes && epoch < self.epoch && epoch == u64::MAX;' \
    $src/lead.rs 'if epoch < self.epoch {' 'if false {'
plant stale-read-without-lease $random $src/lead.rs \
    'let leased = complete && self.holds_lease(context);' \
    'let leased = complete;'
plant read-before-own-term $random $src/lead.rs \
    'let complete = self.is_complete();' \
    'let complete = true;'
plant dedupe-left-out $random $src/lead.rs \
    'if let Some(index) = taken.or_else(|| self.header_of(stamp)) {' \
    'if let Some(index) = taken.filter(|_| false) {'
plant late-copies-are-taken $random $src/lead.rs \
    'if stamp < lead.floor {' \
    'if false {'
plant any-term-will-do $random $src/lead.rs \
    'let here = request.term == term;' \
    'let here = true;'
plant promise-not-kept $random $src/liveness.rs \
    'started && promised.is_none_or(|link| link.promised_until <= now)' \
    '_ = promised; started'
plant promise-forgotten-at-a-start $random $src/liveness.rs \
    'let started = self.started + PROMISE_MICROS <= now;' \
    'let started = self.started <= now;'
plant lease-while-handing-over $random $src/lead.rs \
    'lead.no_lease = true;' \
    ''
plant commit-not-durable-before-in-place $random core/blocks/src/batch.rs \
    'hard.commit = hard.commit.min(sealed);' \
    'hard.commit = hard.commit.min(sealed).saturating_sub(3);'
plant replaced-entries-take-effect $random $src/group/effect.rs \
    '.min(taken_in);' \
    ';'
plant learner-votes-at-once $random $src/steps.rs \
    'level && lead.is_some_and(|lead| lead.compared.same.contains_key(&replica))' \
    '_ = (level, lead); true'
plant log-goes-on-before-all-chunks-came $random $src/catchup.rs \
    'let all = it.next.is_none() && it.wanted.is_empty() && it.held.is_empty();' \
    'let all = it.next.is_none();'
plant chunks-of-an-older-base $random $src/catchup.rs \
    'let since = it.since;' \
    'let since = it.since + 5;'
plant base-of-the-last-page $random $src/catchup.rs \
    'it.base.get_or_insert(base);' \
    'it.base = Some(Base { index: base.index + 1, ..base });'
plant damaged-entry-is-acknowledged $random $src/doubt.rs \
    'last: last.min(first - 1),' \
    'last: last.max(first - 1),'
plant who-cannot-vouch-leads $random $src/elect.rs \
    '&& !self.doubt.is_there()' \
    ''
plant ticket-lost-when-the-log-goes-on $random $src/host.rs \
    'kept.durable(ticket);' \
    '_ = kept;'
plant removed-is-not-told $random $src/host/hear.rs \
    'if !other_host {' \
    'if false && !other_host {'
plant two-changes-at-once $random $src/steps.rs \
    'if self.is_configuring() || !self.is_complete() {' \
    'if !self.is_complete() {'
plant an-old-change-is-taken $random $src/members.rs \
    'if change <= self.change {' \
    'if false {'
plant entries-are-given-up-at-once $random $src/doubt.rs \
    'let all = self.voters_in_log().into_iter().all(answered);' \
    'let all = { _ = answered; true };'
plant no-room-is-said-too-early $random $src/lead.rs \
    'let failure = |refused| match self.is_complete() {' \
    'let failure = |refused| match true {'
plant grow-counts-once-it-is-in-effect $random core/blocks/src/volume.rs \
    'let grows = self.grows.iter().filter(|(index, _)| *index <= last);' \
    'let grows = self.grows.iter().filter(|(index, _)| *index < last.min(0));'
plant who-goes-is-gone-at-once whose_space_is_given_back $src/members.rs \
    'let seats = self.seats.iter().map(|seat| Seat {' \
    'let seats = self.seats.iter().filter(|seat| seat.votes).map(|seat| Seat {'
plant dismissed-are-not-told who_misses_its_removal $src/host/dismissed.rs \
    'if it.at > now || !links.is_up(host) {' \
    'if it.at > now || links.is_up(host) {'
plant second-copy-undoes-what-follows a_second_copy_of_a_write $src/lead.rs \
    $'lead.taken.insert(stamp, index);\n            }\n            return' \
    $'_ = lead;\n            }\n            return'
plant lease-goes-on-after-a-gap a_leader_that_others_replaced $src/liveness.rs \
    'link.leased_until > now && confirmed >= link.leased_since' \
    '_ = confirmed; link.leased_until > now'
plant later-members-are-not-heard who_was_away_hears $src/group.rs \
    'self.members.seat(replica).or_else(later)' \
    '_ = later; self.members.seat(replica)'
plant log-stays-in-its-own-way $random $src/catchup.rs \
    'let all = it.next.is_none() && it.wanted.is_empty() && it.held.is_empty();' \
    'let all = it.next.is_none() && it.wanted.is_empty() && it.held.is_empty() && !self.is_refused();'
plant one-before-counts who_comes_back $src/group/hear.rs \
    'came.is_none_or(|came| heard.is_some_and(|heard| heard > *came))' \
    '_ = heard; came.is_none_or(|_| true)'
