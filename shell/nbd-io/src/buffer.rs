//! Buffers that a disk can be read into and written from directly.

use bytes::Bytes;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};

/// Where a buffer begins is a multiple of this: what direct IO needs of memory.
pub const ALIGNMENT: usize = 4096;
/// Sizes that are kept: powers of two from the smallest to the largest payload.
const CLASSES: usize = 14;
/// Bytes of unused buffers that are kept.
const KEPT_BYTES_MAX: usize = 64 << 20;

/// An aligned buffer. When it is dropped its memory goes back to its pool.
pub struct Buffer {
    /// Longer than `len`, so that an aligned piece of that length is within it.
    storage: Vec<u8>,
    start: usize,
    len: usize,
    pool: Pool,
}

/// Memory of buffers that were dropped. Clones share it.
#[derive(Clone, Default)]
pub struct Pool(Arc<Mutex<Kept>>);

#[derive(Default)]
struct Kept {
    classes: [Vec<Vec<u8>>; CLASSES],
    bytes: usize,
}

impl Pool {
    /// A buffer. What is in it is left over from before: it is to be filled.
    pub fn take(&self, len: usize) -> Buffer {
        let kept = class(len).and_then(|class| self.kept(|kept| kept.take(class)));
        let storage = kept.unwrap_or_else(|| vec![0; size(len) + ALIGNMENT]);
        let start = storage.as_ptr().align_offset(ALIGNMENT);
        assert!(start + len <= storage.len(), "a buffer is as long as asked");
        Buffer {
            storage,
            start,
            len,
            pool: self.clone(),
        }
    }

    fn kept<T>(&self, with: impl FnOnce(&mut Kept) -> T) -> T {
        // Nothing in there can be half done.
        with(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Kept {
    fn take(&mut self, class: usize) -> Option<Vec<u8>> {
        let storage = self.classes[class].pop()?;
        self.bytes -= storage.len();
        Some(storage)
    }

    fn give(&mut self, class: usize, storage: Vec<u8>) {
        if self.bytes + storage.len() <= KEPT_BYTES_MAX {
            self.bytes += storage.len();
            self.classes[class].push(storage);
        }
    }
}

fn size(len: usize) -> usize {
    len.max(ALIGNMENT).next_power_of_two()
}

/// Of which sort of kept buffers it is; none if it is too large to be kept.
fn class(len: usize) -> Option<usize> {
    let class = (size(len) / ALIGNMENT).trailing_zeros() as usize;
    (class < CLASSES).then_some(class)
}

impl Buffer {
    /// To be shared; the memory goes back when the last holder is gone.
    pub fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(class) = class(self.len) {
            let storage = std::mem::take(&mut self.storage);
            self.pool.kept(|kept| kept.give(class, storage));
        }
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.storage[self.start..self.start + self.len]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.storage[self.start..self.start + self.len]
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} bytes)", self.len)
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pool({} bytes)", self.kept(|kept| kept.bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_and_as_long_as_asked() {
        let pool = Pool::default();
        for len in [
            0,
            1,
            511,
            4096,
            4097,
            1 << 20,
            32 << 20,
            (32 << 20) + 1,
            100 << 20,
        ] {
            let mut buffer = pool.take(len);
            assert_eq!(buffer.len(), len);
            assert_eq!(buffer.as_ptr().align_offset(ALIGNMENT), 0);
            buffer.fill(7);
        }
    }

    #[test]
    fn memory_is_used_again_up_to_a_limit() {
        let pool = Pool::default();
        let first = pool.take(5000);
        let at = first.as_ptr();
        drop(first.freeze());
        assert_eq!(pool.take(8192).as_ptr(), at);
        let many: Vec<_> = (0..100).map(|_| pool.take(1 << 20)).collect();
        drop(many);
        let kept = pool.kept(|kept| kept.bytes);
        assert!(
            kept > KEPT_BYTES_MAX / 2 && kept <= KEPT_BYTES_MAX,
            "{kept}"
        );
    }
}
