//! What runs beside a test ends with it.

use std::sync::atomic::{AtomicBool, Ordering};

/// Sets a flag when it goes, so also when the test panics: who looks at the flag ends, and a scope that waits
/// for that thread with it.
#[derive(Debug)]
pub struct Stops<'a>(pub &'a AtomicBool);

impl Drop for Stops<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
