//! How many flows a router may track.

/// Of a router, if the host says nothing else. The kernel takes some 20 MB for as many.
pub const FLOWS_PER_ROUTER: u32 = 65_536;

/// Whether a router takes no new flows: it has as many as it may, or had, and not yet a tenth less.
pub fn is_full(flows: u64, most: u32, was_full: bool) -> bool {
    let most = u64::from(most);
    flows >= most || was_full && flows > most - most / 10
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_router_opens_again_when_a_tenth_is_free() {
        let mut full = false;
        let seen = [10, 99, 100, 120, 91, 90, 95, 100].map(|flows| {
            full = is_full(flows, 100, full);
            full
        });
        assert_eq!(seen, [false, false, true, true, true, false, false, true]);
        assert!(is_full(0, 0, false), "none at all");
    }
}
