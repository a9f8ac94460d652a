//! Makes what fuzzing begins with: `FUZZ_SEEDS=DIRECTORY seeds -runs=0` fills `DIRECTORY/TARGET/`.
//! Everything is encoded by our own code or by hand as its format has it. It is built as a target
//! because what is built for fuzzing links with the fuzzer or not at all.
#![no_main]

use std::fs;
use std::io;
use std::path::Path;

libfuzzer_sys::fuzz_target!(
    init: {
        let into = std::env::var_os("FUZZ_SEEDS").expect("FUZZ_SEEDS says where to");
        seeds(Path::new(&into)).expect("the seeds are written");
    },
    |_data: &[u8]| {}
);

fn seeds(into: &Path) -> io::Result<()> {
    let own = fuzz::bgp::own_messages();
    let body = |message: &[u8]| message[19..].to_vec();
    for (n, message) in own.iter().enumerate() {
        let kind = message[18];
        put(into, "bgp_stream", n, &[&[0], &message[..]].concat())?;
        let length = (message.len() as u16 - 19).to_be_bytes();
        let framed = [&[0, kind], &length[..], &body(message)].concat();
        put(into, "bgp_messages", n, &framed)?;
        match kind {
            1 => put(into, "bgp_open", n, &body(message))?,
            2 => {
                let attributes = &message[23..];
                for how in [0, 2, 4, 6, 8] {
                    let bytes = [&[how], attributes].concat();
                    put(into, "bgp_update", n * 10 + usize::from(how), &bytes)?;
                }
            }
            _ => {}
        }
    }
    put(
        into,
        "bgp_stream",
        1000,
        &[&[1], &own.concat()[..]].concat(),
    )?;
    for (n, text) in fuzz::formats::NAMES.iter().enumerate() {
        put(into, "names", n, text.as_bytes())?;
    }
    for (n, frame) in fuzz::volumes::frame_samples().iter().enumerate() {
        put(into, "volume_frames", n, frame)?;
    }
    for (n, bytes) in fuzz::asked::dns_samples().iter().enumerate() {
        put(into, "dns", n, bytes)?;
    }
    for (n, request) in fuzz::asked::REQUESTS.iter().enumerate() {
        put(into, "metadata", n, request.as_bytes())?;
    }
    for (n, stored) in fuzz::formats::stored_samples().iter().enumerate() {
        put(into, "stored", n, stored)?;
    }
    for (n, wire) in fuzz::formats::wire_samples().iter().enumerate() {
        put(into, "protobuf", n, wire)?;
    }
    for (n, datagram) in fuzz::kernel::netlink_samples().iter().enumerate() {
        put(into, "netlink", n, datagram)?;
    }
    for (n, payload) in fuzz::kernel::element_samples().iter().enumerate() {
        put(into, "nftables", n, payload)?;
    }
    for (n, (target, bytes)) in fuzz::leases::samples().iter().enumerate() {
        put(into, target, n, bytes)?;
    }
    for (n, (target, bytes)) in fuzz::nbd::samples().iter().enumerate() {
        put(into, target, n, bytes)?;
    }
    for (n, (target, bytes)) in fuzz::dhcp::samples().iter().enumerate() {
        put(into, target, n, bytes)?;
    }
    for (n, (tap, tunnel)) in fuzz::datapath::whole_frames().iter().enumerate() {
        put(into, "datapath_tap", n, tap)?;
        put(into, "datapath_tunnel", n, tunnel)?;
    }
    for (n, frame) in fuzz::datapath::frames().iter().enumerate() {
        put(into, "datapath_neighbour", n, &[&[0], &frame[..]].concat())?;
        for (m, text) in fuzz::datapath::FILTERS.iter().enumerate() {
            let bytes = [&[text.len() as u8], text.as_bytes(), frame].concat();
            put(into, "datapath_filter", n * 10 + m, &bytes)?;
        }
    }
    Ok(())
}

fn put(into: &Path, target: &str, number: usize, bytes: &[u8]) -> io::Result<()> {
    let directory = into.join(target);
    fs::create_dir_all(&directory)?;
    fs::write(directory.join(format!("seed-{number}")), bytes)
}
