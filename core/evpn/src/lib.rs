//! BGP-4 with EVPN: sessions, RIB, reflection, MAC-VRFs. No sockets, clock, RNG or tasks.
