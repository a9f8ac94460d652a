//! Bytes from strangers, full disks, damaged files: a clear error, and nothing is lost.
