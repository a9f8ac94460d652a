//! The host agent: one loop over one event enum, driving core/ with shell/linux.
