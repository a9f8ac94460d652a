#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::dhcp::dhcp_v4(data));
