//! Many NICs on one host: made, listed, restarted over, deleted, with nothing left.
