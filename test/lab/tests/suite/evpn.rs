//! Routes and rows: what EVPN learns is in the kernel, and nothing else is.
