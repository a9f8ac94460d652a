//! Tests of reading and writing UPDATEs.
