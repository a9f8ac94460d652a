//! When a host counts as down.

use model::{HostStatus, Liveness, UnixMillis};

/// A host is down when it did not check in for longer than this. It is to be shown as down within
/// 10 s; the rest is for the one who looks.
pub const DOWN_AFTER_MILLIS: u64 = 8_000;

/// Whether a host is heard of. A check-in later than `now` (the clock was set back) counts as now.
pub fn liveness(status: Option<&HostStatus>, now: UnixMillis) -> Liveness {
    match status {
        None => Liveness::Joining,
        Some(status) if status.last_checkin == UnixMillis(0) => Liveness::Joining,
        Some(status) if now.0.saturating_sub(status.last_checkin.0) > DOWN_AFTER_MILLIS => {
            Liveness::Down
        }
        Some(_) => Liveness::Up,
    }
}

/// When a host that is up will be down if it stays silent; wake then to tell the watchers.
pub fn down_at(status: &HostStatus) -> UnixMillis {
    UnixMillis(status.last_checkin.0.saturating_add(DOWN_AFTER_MILLIS + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_down_after_eight_silent_seconds() {
        let seen = |at| HostStatus {
            last_checkin: UnixMillis(at),
            ..HostStatus::default()
        };
        let check = |status: Option<&HostStatus>, now, expected| {
            assert_eq!(liveness(status, UnixMillis(now)), expected, "at {now}");
        };
        check(None, 5, Liveness::Joining);
        check(Some(&seen(0)), 1_000_000, Liveness::Joining);
        check(Some(&seen(1_000)), 1_000, Liveness::Up);
        check(Some(&seen(1_000)), 9_000, Liveness::Up);
        check(Some(&seen(1_000)), 9_001, Liveness::Down);
        check(Some(&seen(1_000)), 500, Liveness::Up);
        assert_eq!(
            liveness(Some(&seen(1_000)), down_at(&seen(1_000))),
            Liveness::Down
        );
    }
}
