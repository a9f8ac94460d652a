//! Blocks in memory: aligned for direct IO, shared instead of copied.

use crate::BLOCK_BYTES;
use std::fmt;
use std::sync::{Arc, LazyLock};

/// One block, where direct IO wants it.
#[derive(Clone, PartialEq, Eq)]
#[repr(C, align(4096))]
pub struct Page(pub [u8; BLOCK_BYTES]);

impl Page {
    /// All zeroes.
    pub const ZERO: Self = Self([0; BLOCK_BYTES]);
}

impl fmt::Debug for Page {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Page({:02x?}..)", &self.0[..8])
    }
}

/// Blocks of zeroes that are shared: a chunk.
pub(crate) const SHARED_ZEROES: usize = crate::CHUNK_BLOCKS as usize;

/// Some blocks one after another. A clone or a part of it shares them: what comes from the network goes
/// to the log, to peers and to readers without a copy.
#[derive(Clone)]
pub struct Buffer {
    pages: Arc<Vec<Page>>,
    from: usize,
    blocks: usize,
}

impl Buffer {
    /// So many blocks of zeroes.
    pub fn zeroed(blocks: usize) -> Self {
        Self::from_pages(vec![Page::ZERO; blocks])
    }

    /// So many blocks of zeroes, at most [`SHARED_ZEROES`], which all that are made so share: nothing is written.
    pub(crate) fn shared_zeroes(blocks: usize) -> Self {
        static ZEROES: LazyLock<Buffer> = LazyLock::new(|| Buffer::zeroed(SHARED_ZEROES));
        ZEROES.part(0, blocks)
    }

    /// These pages.
    pub fn from_pages(pages: Vec<Page>) -> Self {
        let blocks = pages.len();
        Self {
            pages: Arc::new(pages),
            from: 0,
            blocks,
        }
    }

    /// A copy of these bytes, filled up with zeroes to whole blocks.
    pub fn copied(bytes: &[u8]) -> Self {
        let mut pages = vec![Page::ZERO; bytes.len().div_ceil(BLOCK_BYTES)];
        for (page, chunk) in pages.iter_mut().zip(bytes.chunks(BLOCK_BYTES)) {
            page.0[..chunk.len()].copy_from_slice(chunk);
        }
        Self::from_pages(pages)
    }

    /// How many blocks.
    pub const fn blocks(&self) -> usize {
        self.blocks
    }

    /// The blocks.
    pub fn pages(&self) -> &[Page] {
        &self.pages[self.from..self.from + self.blocks]
    }

    /// The blocks, to be filled; nothing if they are shared.
    pub fn pages_mut(&mut self) -> Option<&mut [Page]> {
        let range = self.from..self.from + self.blocks;
        Arc::get_mut(&mut self.pages).map(|pages| &mut pages[range])
    }

    /// A part, shared with the whole.
    ///
    /// # Panics
    /// When it is not within the buffer.
    pub fn part(&self, from: usize, blocks: usize) -> Self {
        assert!(
            from + blocks <= self.blocks,
            "blocks {from}+{blocks} of a buffer of {}",
            self.blocks
        );
        Self {
            pages: Arc::clone(&self.pages),
            from: self.from + from,
            blocks,
        }
    }

    /// A copy of the bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.pages().iter().flat_map(|page| page.0).collect()
    }
}

impl PartialEq for Buffer {
    fn eq(&self, other: &Self) -> bool {
        self.pages() == other.pages()
    }
}

impl Eq for Buffer {}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} blocks)", self.blocks)
    }
}
