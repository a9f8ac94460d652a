//! Intent and commands on it, allocation, and intent + inventory -> HostConfig per host. Pure.
