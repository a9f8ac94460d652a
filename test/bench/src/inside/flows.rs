//! TCP connections that carry one byte each way, as many a second as there can be.

use crate::wire::Answer;
use nix::sys::socket::{setsockopt, sockopt};
use std::io::{self, Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

/// A connection that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(2);

/// Listens on so many ports; each has a thread that answers one connection after the other.
pub(super) fn echo(first: u16, count: u16) -> Answer {
    for port in first..first + count {
        let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).expect("a free port");
        thread::spawn(move || {
            for connection in listener.incoming() {
                // Whoever hung up already has failed, and counts it.
                drop(connection.and_then(answer_one));
            }
        });
    }
    Answer::Hello
}

fn answer_one(mut connection: TcpStream) -> io::Result<()> {
    let mut byte = [0];
    connection.set_read_timeout(Some(PATIENCE))?;
    connection.read_exact(&mut byte)?;
    connection.write_all(&byte)?;
    // The client ends it, with a reset: neither side keeps it in TIME_WAIT.
    connection.read(&mut byte).map(drop)
}

/// One connection after the other, to each port in turn.
pub(super) fn connect(to: SocketAddr, ports: u16, time: Duration) -> Answer {
    let until = Instant::now() + time;
    let (mut made, mut failed) = (0, 0);
    for port in (0..ports).cycle() {
        if Instant::now() >= until {
            break;
        }
        match ask_one(SocketAddr::new(to.ip(), to.port() + port)) {
            Ok(()) => made += 1,
            Err(_) => failed += 1,
        }
    }
    Answer::Connections { made, failed }
}

fn ask_one(to: SocketAddr) -> io::Result<()> {
    let mut connection = TcpStream::connect_timeout(&to, PATIENCE)?;
    let at_once = nix::libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    setsockopt(&connection, sockopt::Linger, &at_once)?;
    connection.set_read_timeout(Some(PATIENCE))?;
    let mut byte = [b'x'];
    connection.write_all(&byte)?;
    connection.read_exact(&mut byte)
}
