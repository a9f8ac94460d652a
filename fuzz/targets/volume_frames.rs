#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::volumes::volume_frames(data));
