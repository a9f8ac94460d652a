//! How many MACs of other hosts an instance takes in.

/// A bound on the remote MACs of each instance. Those that have a row keep it; what comes beyond
/// the bound waits, in order of tag and MAC, until there is room. Sessions stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MacLimit {
    /// The most rows.
    pub max: u32,
    /// The share of `max` from which on it is told.
    pub warn_percent: u8,
}

/// How full an instance is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum MacLevel {
    /// Not worth a word.
    #[default]
    Below,
    /// Past [`MacLimit::warn_percent`].
    Near,
    /// MACs wait for room.
    Over,
}

impl MacLimit {
    /// A bound that is told of from four fifths on.
    pub const fn new(max: u32) -> Self {
        Self {
            max,
            warn_percent: 80,
        }
    }

    /// How full it is with so many rows and so many waiting. To be below again takes a tenth
    /// less than to be near, so that one MAC that comes and goes is not told of each time.
    pub(crate) fn level(&self, before: MacLevel, rows: usize, waiting: usize) -> MacLevel {
        let near = u64::from(self.max) * u64::from(self.warn_percent);
        let rows = rows as u64 * 100;
        if waiting > 0 {
            MacLevel::Over
        } else if rows >= near || (before > MacLevel::Below && rows * 10 >= near * 9) {
            MacLevel::Near
        } else {
            MacLevel::Below
        }
    }

    /// Whether one more row fits.
    pub(crate) fn has_room(limit: Option<Self>, rows: usize) -> bool {
        limit.is_none_or(|limit| rows < limit.max as usize)
    }
}
