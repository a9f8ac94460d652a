//! How fast a checksum is: `cargo run --release -p datapath --example checksum`.
#![expect(
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "it measures, and says what it measured"
)]

use std::hint::black_box;
use std::time::Instant;

fn main() {
    for length in [64, 1448, 9000, 65_000] {
        let bytes = vec![0x5a; length + 2];
        // As payloads are behind an Ethernet header: two bytes off.
        let bytes = &bytes[2..];
        let rounds = 4_000_000_000 / length;
        let start = Instant::now();
        for _ in 0..rounds {
            black_box(datapath::checksum::sum(black_box(bytes)));
        }
        let secs = start.elapsed().as_secs_f64();
        let rate = (rounds * length) as f64 / secs / 1e9;
        println!("{length:>6} bytes: {rate:.1} GB/s");
    }
}
