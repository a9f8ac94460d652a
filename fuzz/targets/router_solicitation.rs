#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::dhcp::router_solicitation(data));
