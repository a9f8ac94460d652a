//! Entries that are committed take effect, and who waits for them is told.

use super::Group;
use crate::log::Header;
use crate::outbox::Context;
use blocks::Body;
use std::sync::Arc;

impl Group {
    /// Lets committed entries take effect, and answers for them.
    pub(super) fn take_effect(&mut self, context: &mut Context<'_>) {
        let log = &self.node.raft.raft_log;
        // What the store has in the place of entries that just came is of a leader that lost.
        let taken_in = log.unstable.offset - 1;
        let commit = log.committed.min(self.submitted.0).min(taken_in);
        let refused = self
            .unpersisted
            .iter()
            .filter_map(|it| it.submission.as_ref());
        let first = refused
            .filter_map(|it| it.entries.first())
            .map(|entry| entry.index)
            .min();
        let commit = first.map_or(commit, |first| commit.min(first - 1));
        let damaged = self.doubt.first();
        let commit = damaged.map_or(commit, |first| commit.min(first.index - 1));
        let commit = commit.min(self.node.store().last());
        if self.is_rebasing() {
            return;
        }
        // What is compared is compared there, and not beyond.
        let stop = self.comparing.as_ref().map_or(commit, |it| it.index);
        if self.applied < stop && stop < commit {
            self.take_effect_until(context, stop);
        }
        self.perhaps_compare(context);
        self.take_effect_until(context, commit);
        self.perhaps_compare(context);
    }

    fn take_effect_until(&mut self, context: &mut Context<'_>, commit: u64) {
        if commit <= self.applied || self.failed.is_some() {
            return;
        }
        match context.store.committed(self.volume, commit) {
            Ok(fenced) => self.fenced.extend(fenced),
            Err(error) => return self.failed = Some(error.to_string()),
        }
        let mut attached = None;
        for index in self.applied + 1..=commit {
            self.applied = index;
            if let Some(Body::Config(bytes)) = self.bodies.get(&index).map(|entry| &entry.body) {
                let bytes = Arc::clone(bytes);
                self.reconfigure(context, index, &bytes);
            }
            if let Some(Header {
                attaches: true,
                stamp: Some(stamp),
                ..
            }) = self.header(index).copied()
            {
                self.epoch = self.epoch.max(stamp.epoch());
                attached = Some(index);
            }
            let waiting = self
                .lead
                .as_mut()
                .and_then(|lead| lead.waiting.remove(&index));
            for asked in waiting.into_iter().flatten() {
                let result = self.outcome(index);
                self.tell(context, asked, result);
                if attached == Some(index) {
                    self.hand_over(context, asked.host);
                }
            }
        }
        if let Some(lead) = &mut self.lead {
            let under_way = &mut lead.under_way;
            under_way.committed(commit, context.now, &mut self.commits);
        }
        self.forget_bodies();
    }

    /// Bodies that took effect are wanted only by followers that are about to get them.
    fn forget_bodies(&mut self) {
        let slowest = match &self.lead {
            None => u64::MAX,
            Some(_) => self
                .node
                .raft
                .prs()
                .iter()
                .map(|(_, it)| it.matched)
                .min()
                .unwrap_or(0),
        };
        let keep = slowest
            .min(self.applied)
            .max(self.applied.saturating_sub(64))
            + 1;
        self.bodies = self.bodies.split_off(&keep);
    }
}
