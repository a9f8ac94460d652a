//! Runs the pure EVPN speaker over TCP: sockets, MD5, GTSM, timers.
