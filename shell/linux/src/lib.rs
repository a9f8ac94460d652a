//! The kernel: netlink, namespaces, nftables, TAP. Observes and runs actions; decides nothing.
