//! libnbd's tools, and its library through `nbdsh`.

use crate::rig::{MIB, Rig, pattern, run};
use nbd::wire::CommandFlags;
use serde_json::Value;
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};

fn json(args: &[&str]) -> Value {
    serde_json::from_str(&run("nbdinfo", args)).unwrap()
}

#[test]
fn nbdinfo_lists_what_there_is() {
    let rig = Rig::new(MIB);
    let listed = json(&["--list", "--json", &rig.uri("")]);
    let exports: Vec<_> = listed["exports"].as_array().unwrap().iter().collect();
    let names: Vec<_> = exports
        .iter()
        .map(|export| &export["export-name"])
        .collect();
    assert_eq!(names, ["disk", "locked", "blocks"]);
    assert_eq!(exports[0]["description"], "disk for tests");
    assert_eq!(listed["protocol"], "newstyle-fixed");
    assert_eq!(listed["structured"], true);
}

#[test]
fn nbdinfo_tells_of_an_export_what_it_is() {
    let rig = Rig::new(MIB);
    let of = |export: &str| {
        let said = json(&["--json", &rig.uri(export)]);
        said["exports"][0].clone()
    };
    let disk = of("disk");
    for (key, expected) in [
        ("export-size", Value::from(MIB)),
        ("is_rotational", false.into()),
        ("is_read_only", false.into()),
        ("can_cache", true.into()),
        ("can_df", true.into()),
        ("can_fast_zero", true.into()),
        ("can_flush", true.into()),
        ("can_fua", true.into()),
        ("can_multi_conn", true.into()),
        ("can_trim", true.into()),
        ("can_zero", true.into()),
        ("block_size_minimum", 1.into()),
        ("block_size_preferred", 4096.into()),
        ("block_size_maximum", (32 * MIB).into()),
        ("contexts", serde_json::json!(["base:allocation"])),
    ] {
        assert_eq!(disk[key], expected, "{key} of {disk:#}");
    }
    assert_eq!(of("locked")["is_read_only"], true);
    assert_eq!(of("locked")["can_trim"], false);
    assert_eq!(of("blocks")["block_size_minimum"], 4096);
}

#[test]
fn nbdinfo_maps_what_is_allocated() {
    let rig = Rig::new(8 * MIB);
    let file = fs::File::options().write(true).open(rig.file()).unwrap();
    file.write_all_at(&pattern(65536), MIB).unwrap();
    file.write_all_at(&pattern(4096), 7 * MIB).unwrap();
    let mapped = json(&["--map", "--json", &rig.uri("")]);
    let extents: Vec<_> = mapped.as_array().unwrap().iter().map(extent).collect();
    let expected = [
        (0, MIB, 3),
        (MIB, 65536, 0),
        (MIB + 65536, 6 * MIB - 65536, 3),
        (7 * MIB, 4096, 0),
        (7 * MIB + 4096, MIB - 4096, 3),
    ];
    assert_eq!(extents, expected);
}

fn extent(extent: &Value) -> (u64, u64, u64) {
    let number = |key: &str| extent[key].as_u64().unwrap();
    (number("offset"), number("length"), number("type"))
}

#[test]
fn nbdcopy_copies_there_and_back_over_many_connections() {
    let rig = Rig::new(64 * MIB);
    let (from, to) = (rig.path("from"), rig.path("to"));
    let source = fs::File::create(&from).unwrap();
    source.set_len(64 * MIB).unwrap();
    for at in [0, 3 * MIB + 512, 17 * MIB, 63 * MIB] {
        source.write_all_at(&pattern(700_001), at).unwrap();
    }
    let copy = |from: &str, to: &str| {
        let many = ["--connections=4", "--requests=32", "--threads=2", "--flush"];
        run("nbdcopy", &[&many[..], &[from, to]].concat());
    };
    copy(from.to_str().unwrap(), &rig.uri("disk"));
    copy(&rig.uri("disk"), to.to_str().unwrap());
    let expected = fs::read(&from).unwrap();
    assert!(fs::read(rig.file()).unwrap() == expected);
    assert!(fs::read(&to).unwrap() == expected);
    for copy in [rig.file(), to] {
        let allocated = fs::metadata(&copy).unwrap().blocks() * 512;
        assert!(
            allocated < 5 * MIB,
            "{} has {allocated} bytes",
            copy.display()
        );
    }
    // To and from itself, which reads and writes at once.
    run("nbdcopy", &[&rig.uri("disk"), &rig.uri("disk")]);
    assert!(fs::read(rig.file()).unwrap() == expected);
}

/// Runs Python with `h` connected to the export; `expect(errno, call)` is at its disposal.
fn nbdsh(rig: &Rig, export: &str, script: &str) -> String {
    let uri = rig.uri(export);
    let prelude = "import errno\n\
        def expect(wanted, call):\n\
        \x20   try:\n\
        \x20       call()\n\
        \x20       got = 'fine'\n\
        \x20   except nbd.Error as ex:\n\
        \x20       got = errno.errorcode.get(ex.errnum, ex.errnum)\n\
        \x20   assert got == wanted, (got, wanted)\n\
        h.set_strict_mode(0)\n\
        h.set_export_name(EXPORT)\n\
        h.add_meta_context('base:allocation')\n\
        h.connect_unix(SOCKET)\n";
    let place = format!(
        "SOCKET = {:?}\nEXPORT = {export:?}\n",
        rig.socket.display().to_string()
    );
    assert!(uri.contains(export));
    python(&[&place, prelude, script].concat())
}

/// What `nbdsh` does, with the Python that Debian's library is for.
fn python(script: &str) -> String {
    run("/usr/bin/python3", &["-m", "nbd", "-c", script])
}

/// Every command with every flag that there may ever be, as libnbd sends them.
#[test]
fn nbdsh_each_command_with_each_flag() {
    let rig = Rig::new(MIB);
    let commands = [
        ("pread", "lambda: h.pread(512, 0, f)", CommandFlags::DF),
        (
            "pwrite",
            "lambda: h.pwrite(b'x' * 512, 0, f)",
            CommandFlags::NONE,
        ),
        ("flush", "lambda: h.flush(f)", CommandFlags::NONE),
        ("trim", "lambda: h.trim(512, 0, f)", CommandFlags::NONE),
        ("cache", "lambda: h.cache(512, 0, f)", CommandFlags::NONE),
        (
            "zero",
            "lambda: h.zero(512, 0, f)",
            CommandFlags::NO_HOLE | CommandFlags::FAST_ZERO,
        ),
        (
            "block_status",
            "lambda: h.block_status(512, 0, lambda *a: 0, f)",
            CommandFlags::REQ_ONE,
        ),
    ];
    let mut script = String::new();
    for (name, call, allowed) in commands {
        for bit in 0..16 {
            let flag = CommandFlags(1 << bit);
            let fine = (allowed | CommandFlags::FUA).contains(flag);
            let wanted = if fine { "fine" } else { "EINVAL" };
            script += &format!("f = {}\nexpect('{wanted}', {call}) # {name}\n", flag.0);
        }
    }
    script += "print(h.pread(3, 0))";
    assert_eq!(
        nbdsh(&rig, "disk", &script),
        "bytearray(b'\\x00\\x00\\x00')\n"
    );
}

#[test]
fn nbdsh_places_that_there_are_not() {
    let rig = Rig::new(MIB);
    let end = "end = h.get_size()\n";
    let disk = "expect('EINVAL', lambda: h.pread(1, end))\n\
        expect('EINVAL', lambda: h.pread(512, end - 511))\n\
        expect('fine', lambda: h.pread(512, end - 512))\n\
        expect('fine', lambda: h.pread(1, 1))\n\
        expect('ENOSPC', lambda: h.pwrite(b'x' * 2, end - 1))\n\
        expect('ENOSPC', lambda: h.pwrite(b'x', 2**63))\n\
        expect('fine', lambda: h.pwrite(b'x', end - 1))\n\
        expect('ENOSPC', lambda: h.zero(2, end - 1))\n\
        expect('ENOSPC', lambda: h.zero(2**32 - 1, 0))\n\
        expect('EINVAL', lambda: h.trim(2, end - 1))\n\
        expect('EINVAL', lambda: h.cache(2, end - 1))\n\
        expect('EINVAL', lambda: h.block_status(2, end - 1, lambda *a: 0))\n\
        expect('EINVAL', lambda: h.block_status(0, 0, lambda *a: 0))\n\
        for call in [h.trim, h.zero, h.cache]: expect('fine', lambda: call(0, 0))\n\
        expect('fine', lambda: h.pread(0, 0))\n\
        expect('fine', lambda: h.pwrite(b'', 0))\n\
        print(h.pread(1, end - 1))";
    assert_eq!(
        nbdsh(&rig, "disk", &[end, disk].concat()),
        "bytearray(b'x')\n"
    );
    let blocks = "for call in [h.trim, h.zero, h.cache]:\n\
        \x20   expect('EINVAL', lambda: call(512, 0))\n\
        \x20   expect('EINVAL', lambda: call(4096, 512))\n\
        \x20   expect('fine', lambda: call(4096, 4096))\n\
        expect('EINVAL', lambda: h.pread(4096, 1))\n\
        expect('EINVAL', lambda: h.pwrite(b'x' * 4095, 0))\n\
        expect('fine', lambda: h.pwrite(b'x' * 4096, 0))\n";
    nbdsh(&rig, "blocks", blocks);
    let locked = "expect('EPERM', lambda: h.pwrite(b'x', 0))\n\
        expect('EPERM', lambda: h.trim(512, 0))\n\
        expect('EPERM', lambda: h.zero(512, 0))\n\
        expect('fine', lambda: h.flush())\n\
        expect('fine', lambda: h.pread(512, 0))\n";
    nbdsh(&rig, "locked", locked);
}

#[test]
fn nbdsh_structured_reads_and_block_status() {
    let rig = Rig::new(MIB);
    let file = fs::File::options().write(true).open(rig.file()).unwrap();
    file.write_all_at(&pattern(131_072), 65536).unwrap();
    let script = "chunks = []\n\
        def chunk(data, offset, status, error):\n\
        \x20   chunks.append((offset, len(data), status))\n\
        h.pread_structured(262144, 0, chunk)\n\
        print(chunks)\n\
        chunks = []\n\
        h.pread_structured(262144, 0, chunk, nbd.CMD_FLAG_DF)\n\
        print(chunks)\n\
        entries = []\n\
        def status(context, offset, e, err):\n\
        \x20   entries.append((context, offset, e))\n\
        h.block_status(262144, 0, status)\n\
        h.block_status(262144, 65536, status, nbd.CMD_FLAG_REQ_ONE)\n\
        h.block_status(1000, 65536, status, nbd.CMD_FLAG_REQ_ONE)\n\
        print(entries)";
    let expected = "[(0, 65536, 2), (65536, 131072, 1), (196608, 65536, 2)]\n\
        [(0, 262144, 1)]\n\
        [('base:allocation', 0, [65536, 3, 131072, 0, 65536, 3]), \
        ('base:allocation', 65536, [131072, 0]), ('base:allocation', 65536, [1000, 0])]\n";
    assert_eq!(nbdsh(&rig, "disk", script), expected);
}

#[test]
fn nbdsh_answers_come_in_any_order() {
    let rig = Rig::new(MIB);
    rig.control.hold(4096);
    // The first waits at its gate; the others, and a flush, are answered before it.
    let script = "slow = h.aio_pread(nbd.Buffer(512), 4096)\n\
        others = [h.aio_pread(nbd.Buffer(512), n * 8192) for n in range(20)] + [h.aio_flush()]\n\
        while others:\n\
        \x20   others = [c for c in others if not h.aio_command_completed(c)]\n\
        \x20   if others: h.poll(-1)\n\
        print(h.aio_command_completed(slow), h.aio_in_flight())";
    assert_eq!(nbdsh(&rig, "disk", script), "False 1\n");
    rig.control.release(4096);
}

#[test]
fn nbdsh_without_structured_replies() {
    let rig = Rig::new(MIB);
    let file = fs::File::options().write(true).open(rig.file()).unwrap();
    file.write_all_at(b"hello", 4096).unwrap();
    let script = format!(
        "h.set_request_structured_replies(False)\n\
        h.set_strict_mode(0)\n\
        h.connect_unix({:?})\n\
        print(h.get_structured_replies_negotiated(), h.pread(5, 4096), h.can_df())\n\
        try:\n\
        \x20   h.pread(2, h.get_size() - 1)\n\
        except nbd.Error as ex: print(ex.errnum)",
        rig.socket.display().to_string()
    );
    assert_eq!(python(&script), "False bytearray(b'hello') False\n22\n");
}
