//! Clients that are slow, silent, greedy or gone, and a server that stops.

use crate::raw::{Raw, Reply};
use crate::rig::{LIMIT, MIB, Rig, pattern, settings};
use nbd::wire::{Chunk, OptionReply, OptionRequest, RefusedOption, command};
use nbd::{Errno, Limits};
use nbd_io::Settings;
use std::fs;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};
use testkit::eventually;

const R: u16 = command::READ;
const W: u16 = command::WRITE;

#[test]
fn a_client_that_chooses_nothing_is_let_go() {
    let handshake = Duration::from_millis(100);
    let rig = Rig::with(
        MIB,
        Settings {
            handshake,
            ..settings()
        },
        None,
    );
    let mut silent = Raw::connect(&rig.socket);
    let mut half = Raw::connect(&rig.socket);
    half.flags();
    half.send(b"IHAVE");
    let mut chosen = Raw::serving(&rig.socket, "disk", true);
    let start = Instant::now();
    assert_eq!(silent.rest().unwrap(), b"");
    assert_eq!(half.rest().unwrap(), b"");
    assert!(start.elapsed() < LIMIT / 2);
    // Who has chosen may be silent for as long as it likes.
    chosen.request(R, 0, 1, (0, 1));
    assert!(matches!(chosen.reply(1), Reply::Data { cookie: 1, .. }));
}

#[test]
fn a_client_that_reads_no_answers_holds_no_more_than_its_share() {
    let limits = Limits {
        bytes: 4 * MIB,
        ..Limits::default()
    };
    let rig = Rig::with(
        64 * MIB,
        Settings {
            limits,
            ..settings()
        },
        None,
    );
    fs::write(rig.file(), pattern(64 * MIB as usize)).unwrap();
    let mut greedy = Raw::serving(&rig.socket, "disk", false);
    for n in 0..60 {
        greedy.request(R, 0, n, (n * MIB, MIB as u32));
    }
    // Another is served meanwhile, and afterwards still only as many are begun as there is room for: four, and
    // one for what the socket took.
    let mut other = Raw::serving(&rig.socket, "disk", false);
    let (before, _) = rig.control.counts();
    for n in 0..100 {
        other.request(R, 0, n, (0, 512));
        assert!(matches!(other.reply(512), Reply::Data { .. }));
    }
    let (begun, _) = rig.control.counts();
    assert!(begun - 100 <= 5, "{begun} are begun, {before} were");
    let expected = pattern(64 * MIB as usize);
    let mut seen = [false; 60];
    for _ in 0..60 {
        let Reply::Data { cookie, data, .. } = greedy.reply(MIB as usize) else {
            panic!("a read failed");
        };
        assert!(data == expected[(cookie * MIB) as usize..][..MIB as usize]);
        assert!(!std::mem::replace(&mut seen[cookie as usize], true));
    }
}

#[test]
fn more_clients_than_allowed_are_turned_away_until_one_goes() {
    let rig = Rig::with(
        MIB,
        Settings {
            connections: 2,
            ..settings()
        },
        None,
    );
    let first = Raw::serving(&rig.socket, "disk", true);
    let mut half = Raw::serving(&rig.socket, "disk", true);
    let greeted = || {
        let mut raw = Raw(UnixStream::connect(&rig.socket).unwrap());
        raw.0.set_read_timeout(Some(LIMIT)).unwrap();
        let mut first = [0; 1];
        std::io::Read::read(&mut raw.0, &mut first).unwrap_or(0) == 1
    };
    assert!(!greeted());
    // One goes in the middle of a write.
    half.request(W, 0, 1, (0, 4096));
    half.send(&[7; 100]);
    drop(half);
    eventually("there is room again", LIMIT, || match greeted() {
        true => Ok(()),
        false => Err("turned away".to_owned()),
    });
    drop(first);
    assert_eq!(fs::read(rig.file()).unwrap()[0], 0);
}

#[test]
fn what_a_client_began_that_goes_away_is_finished() {
    let rig = Rig::new(MIB);
    rig.control.hold(0);
    let mut raw = Raw::serving(&rig.socket, "disk", true);
    raw.request(W, 0, 1, (0, 4096));
    raw.send(&[7; 4096]);
    eventually("the write is begun", LIMIT, || match rig.control.counts() {
        (1, 0) => Ok(()),
        counts => Err(format!("{counts:?}")),
    });
    drop(raw);
    rig.control.release(0);
    eventually("the write is done", LIMIT, || match rig.control.counts() {
        (1, 1) => Ok(()),
        counts => Err(format!("{counts:?}")),
    });
    assert_eq!(fs::read(rig.file()).unwrap()[..4096], [7; 4096]);
}

#[test]
fn goodbye_comes_after_what_is_in_flight() {
    let rig = Rig::new(MIB);
    let mut raw = Raw::serving(&rig.socket, "disk", false);
    for n in 0..50 {
        raw.request(W, 0, n, (n * 4096, 4096));
        raw.send(&[n as u8 + 1; 4096]);
    }
    raw.request(command::DISC, 0, 0, (0, 0));
    assert_eq!(raw.rest().unwrap().len(), 50 * 16);
    assert_eq!(fs::read(rig.file()).unwrap()[49 * 4096], 50);
}

#[test]
fn a_stop_finishes_what_was_begun_and_begins_nothing() {
    let mut rig = Rig::new(MIB);
    rig.control.hold(0);
    let mut undecided = Raw::connect(&rig.socket);
    undecided.flags();
    let mut raw = Raw::serving(&rig.socket, "disk", true);
    raw.request(W, 0, 1, (0, 4096));
    raw.send(&[7; 4096]);
    eventually("the write is begun", LIMIT, || match rig.control.counts() {
        (1, 0) => Ok(()),
        counts => Err(format!("{counts:?}")),
    });
    rig.stop();
    // From some request on it is said that the server stops.
    let mut cookie = 100;
    loop {
        raw.request(R, 0, cookie, (4096, 4096));
        match raw.reply(0) {
            Reply::Chunk {
                chunk: Chunk::Error(error),
                ..
            } => {
                assert_eq!(error.error, Errno::Shutdown.code());
                break;
            }
            reply => assert!(matches!(reply, Reply::Data { .. }), "{reply:?}"),
        }
        cookie += 1;
    }
    let said = undecided.option(&OptionRequest::List);
    let shutdown = |reply: &OptionReply| {
        matches!(
            reply,
            OptionReply::Refused {
                refusal: RefusedOption::Shutdown,
                ..
            }
        )
    };
    assert!(said.iter().all(shutdown), "{said:?}");
    assert!(UnixStream::connect(&rig.socket).is_err());
    rig.control.release(0);
    assert_eq!(
        raw.reply(0),
        Reply::Simple {
            error: 0,
            cookie: 1
        }
    );
    assert_eq!(raw.rest().unwrap(), b"");
    drop(undecided);
    rig.stopped();
    assert_eq!(fs::read(rig.file()).unwrap()[..4096], [7; 4096]);
}

#[test]
fn a_stop_does_not_wait_for_ever() {
    let drain = Duration::from_millis(100);
    let mut rig = Rig::with(
        MIB,
        Settings {
            drain,
            ..settings()
        },
        None,
    );
    rig.control.hold(0);
    let mut raw = Raw::serving(&rig.socket, "disk", true);
    raw.request(R, 0, 1, (0, 4096));
    rig.stopped();
    assert_eq!(raw.rest().unwrap(), b"");
}

#[test]
fn what_is_written_over_one_connection_is_read_over_another() {
    let rig = Rig::new(MIB);
    let mut clients: Vec<_> = (0..4)
        .map(|_| Raw::serving(&rig.socket, "disk", false))
        .collect();
    for round in 0..20_u8 {
        let writer = usize::from(round) % 4;
        clients[writer].request(W, 0, 1, (0, 512));
        clients[writer].send(&[round; 512]);
        assert_eq!(
            clients[writer].reply(0),
            Reply::Simple {
                error: 0,
                cookie: 1
            }
        );
        for client in &mut clients {
            client.request(R, 0, 2, (0, 512));
            let Reply::Data { data, .. } = client.reply(512) else {
                panic!("a read failed");
            };
            assert_eq!(data, [round; 512]);
        }
    }
}

#[test]
fn floods_end_with_the_connection_and_nothing_else() {
    let rig = Rig::new(MIB);
    let mut good = Raw::serving(&rig.socket, "disk", true);
    let mut options = Raw::connect(&rig.socket);
    options.flags();
    for _ in 0..Limits::default().options {
        assert_eq!(options.raw_option(99, b"").len(), 1);
    }
    options.send(&nbd::wire::OPTION_MAGIC.to_be_bytes());
    options.send(&[0, 0, 0, 99, 0, 0, 0, 0]);
    assert_eq!(options.rest().unwrap(), b"");
    let mut large = Raw::serving(&rig.socket, "disk", true);
    large.request(W, 0, 1, (0, u32::MAX));
    assert!(!large.rest().unwrap().is_empty());
    let mut nonsense = Raw::serving(&rig.socket, "disk", true);
    nonsense.send(&[0x55; 28]);
    assert_eq!(nonsense.rest().unwrap(), b"");
    // A refused write's data is passed over.
    good.request(W, 0, 1, (MIB, 3 * MIB as u32));
    good.send(&vec![7; 3 * MIB as usize]);
    assert!(matches!(
        good.reply(0),
        Reply::Chunk {
            cookie: 1,
            chunk: Chunk::Error(_),
            ..
        }
    ));
    good.request(R, 0, 2, (0, 1));
    assert!(matches!(good.reply(1), Reply::Data { cookie: 2, .. }));
}

#[test]
fn an_answer_of_many_pieces_comes_whole_to_a_client_that_is_slow() {
    let rig = Rig::with(8 * MIB, settings(), None);
    let file = fs::File::options().write(true).open(rig.file()).unwrap();
    // Every other block is a hole, so that each is a chunk of its own.
    for block in (0..1024).step_by(2) {
        file.write_all_at(&[7; 4096], block * 4096).unwrap();
    }
    let mut slow = Raw::serving(&rig.socket, "disk", true);
    slow.request(R, 0, 1, (0, 4 * MIB as u32));
    eventually("the device has answered", LIMIT, || {
        match rig.control.counts() {
            (_, 1) => Ok(()),
            counts => Err(format!("{counts:?}")),
        }
    });
    let (mut data, mut holes) = (0, 0);
    loop {
        let done = match slow.reply(0) {
            Reply::Data {
                data: bytes, done, ..
            } => {
                data += bytes.len();
                done
            }
            Reply::Chunk {
                chunk: Chunk::Hole { len, .. },
                done,
                ..
            } => {
                holes += len as usize;
                done
            }
            other => panic!("{other:?}"),
        };
        if done {
            break;
        }
    }
    assert_eq!((data, holes), (2 * MIB as usize, 2 * MIB as usize));
}
