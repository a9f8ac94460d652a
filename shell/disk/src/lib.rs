//! IO of the block store.
