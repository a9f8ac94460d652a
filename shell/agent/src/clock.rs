//! How far this host's clock is from the management server's. Forwarding and BGP do not go by the wall
//! clock; certificates, tokens and what people read do.

use std::time::{Duration, Instant, SystemTime};

/// From here on it is told: certificates are good from five minutes before they were made, and nobody
/// compares logs by parts of a second.
const FAR: Duration = Duration::from_secs(5);

/// What the server's clock said, and what ours did since.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Clock {
    /// Both of our clocks at one moment, and how far ahead the wall clock was then.
    heard: Option<(Instant, SystemTime, i64)>,
}

impl Clock {
    /// The server's clock says this now.
    pub(crate) fn hear(&mut self, now: Instant, wall: SystemTime, server_unix_ms: u64) {
        let server = SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(server_unix_ms));
        self.heard = server.map(|server| (now, wall, millis_ahead(wall, server)));
    }

    /// How far our wall clock is ahead of the server's, in milliseconds, to the second. A step of ours
    /// since the server was heard counts, one of the server's does not.
    pub(crate) fn ahead(&self, now: Instant, wall: SystemTime) -> Option<i64> {
        let (then, wall_then, ahead) = self.heard?;
        let expected = wall_then.checked_add(now.saturating_duration_since(then))?;
        let ahead = ahead.saturating_add(millis_ahead(wall, expected));
        Some(ahead.saturating_add(ahead.signum() * 500) / 1000 * 1000)
    }
}

/// What a clock that is so far ahead of the server's is called, and what to do about it; none if it is
/// not worth telling.
pub fn far_clock(ahead_ms: i64) -> Option<(String, &'static str)> {
    let far = Duration::from_millis(ahead_ms.unsigned_abs());
    let side = match ahead_ms > 0 {
        true => "ahead of",
        false => "behind",
    };
    (far >= FAR).then(|| {
        let what = format!(
            "this host's clock is {} s {side} the management server's: certificates and tokens go by it, \
             forwarding does not",
            far.as_secs()
        );
        (what, "set it, and keep it by NTP: timedatectl set-ntp true")
    })
}

fn millis_ahead(of: SystemTime, than: SystemTime) -> i64 {
    let millis = |duration: Duration| i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
    match of.duration_since(than) {
        Ok(ahead) => millis(ahead),
        Err(behind) => -millis(behind.duration()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_told_from_time_that_passes() {
        let (start, wall) = (
            Instant::now(),
            SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000),
        );
        let later = |s| start + Duration::from_secs(s);
        let mut clock = Clock::default();
        assert_eq!(clock.ahead(start, wall), None);
        clock.hear(start, wall, 1_000_000_000 - 300);
        assert_eq!(clock.ahead(start, wall), Some(0));
        let stepped = wall + Duration::from_secs(60 + 3600);
        assert_eq!(clock.ahead(later(60), stepped), Some(3_600_000));
        let back = wall - Duration::from_secs(86_400);
        assert_eq!(clock.ahead(later(60), back), Some(-86_460_000));
        assert!(far_clock(-86_460_000).unwrap().0.contains("86460 s behind"));
        assert_eq!(far_clock(4_000), None);
        // Whatever a server says.
        for server in [0, 1, u64::MAX] {
            clock.hear(start, wall, server);
            clock.ahead(later(1), back).map(far_clock);
        }
    }
}
