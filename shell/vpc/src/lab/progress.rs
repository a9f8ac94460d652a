//! What is being done, while it is being done: a spinner on a terminal, plain lines elsewhere.

use crate::output::remark;
use indicatif::{ProgressBar, ProgressStyle};
use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

/// One piece of work after another.
pub(crate) struct Progress {
    bar: Option<ProgressBar>,
    current: Option<(String, Instant)>,
}

impl Progress {
    /// On standard error.
    pub(crate) fn new() -> Self {
        let bar = io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner();
            bar.enable_steady_tick(Duration::from_millis(100));
            if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} ({elapsed})") {
                bar.set_style(style);
            }
            bar
        });
        Self { bar, current: None }
    }

    /// The one before is done, this one begins.
    pub(crate) fn step(&mut self, what: &str) {
        self.finish_current();
        if let Some(bar) = &self.bar {
            bar.reset_elapsed();
            bar.set_message(what.to_owned());
        }
        self.current = Some((what.to_owned(), Instant::now()));
    }

    /// More about the current one; only where it can be shown in place.
    pub(crate) fn detail(&self, detail: &str) {
        if let (Some(bar), Some((what, _))) = (&self.bar, &self.current) {
            bar.set_message(format!("{what}: {detail}"));
        }
    }

    /// All is done.
    pub(crate) fn done(mut self) {
        self.finish_current();
    }

    fn finish_current(&mut self) {
        let Some((what, since)) = self.current.take() else {
            return;
        };
        let line = format!("  {what} ({:.1} s)", since.elapsed().as_secs_f32());
        match &self.bar {
            Some(bar) => bar.suspend(|| remark(&line)),
            None => remark(&line),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
