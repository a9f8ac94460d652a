//! The process: takes over, listens, answers.

use crate::capture::{CaptureRequest, WAITING_MAX};
use crate::client::{Client, TunnelError, is_end, program};
use crate::control::{Account, Control};
use crate::wire::{Hello, Request, Response, SOCKET_NAME, receive, send};
use crate::worker::Manner;
use linux::{receive_fds, send_fds};
use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{MsgFlags, getsockopt, recv, sockopt};
use std::fs::{self, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};
use tracing::{info, warn};

/// Workers where nobody said how many: one for each processor, but no more than share the work well.
const WORKERS_MAX: usize = 8;

/// How long another that takes over from the same one is waited for, and how often that is looked into.
const TURN_WAIT: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// How soon it is noticed that who looks at a capture has gone.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// How a datapath is run.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where its socket is: `/run/vpc`.
    pub run_dir: PathBuf,
    /// Threads, each with a queue of each TAP; none: one for each processor, eight at most. One that
    /// takes over has as many as the one before.
    pub workers: Option<usize>,
    /// How long a worker that had something to do looks for more before it sleeps. Costs a processor
    /// each while there is traffic, and saves the time of waking.
    pub busy_poll: Duration,
    /// How many flows each worker counts at a time ([`datapath::FLOWS_DEFAULT`]); none at 0.
    pub flows: usize,
}

/// Runs a datapath until it is told to end or another takes over.
pub fn run(options: &Options) -> Result<(), TunnelError> {
    raise_limits();
    let manner = Manner {
        busy_poll: options.busy_poll,
        seed: rand::random(),
        flows: options.flows,
    };
    let (mut control, before) = match take_turn(&options.run_dir, manner) {
        Ok(Some((control, before))) => (control, Some(before)),
        Ok(None) => (begin(options, manner)?, None),
        // Both would have all that is open, and the agent would know one of them.
        Err(error @ TunnelError::Refused(_)) => return Err(error),
        Err(error) => {
            warn!(%error, "Nothing was taken over; the agent will say all anew");
            (begin(options, manner)?, None)
        }
    };
    let path = options.run_dir.join(SOCKET_NAME);
    let listener = listen(&path).map_err(TunnelError::Start)?;
    // Only now: what workers were told they have.
    control.settle().map_err(TunnelError::Refused)?;
    if let Some(before) = before {
        let told = end_it(before).unwrap_or_else(|error| {
            info!(%error, "The datapath before this one has ended; what is counted begins anew");
            None
        });
        control.go_on(told);
    }
    let pid = std::process::id();
    info!(pid, path = %path.display(), "Datapath runs");
    let control = Arc::new(Mutex::new(control));
    for stream in listener.incoming() {
        let stream = stream.map_err(TunnelError::Talk)?;
        let control = Arc::clone(&control);
        let path = path.clone();
        let spawned = thread::Builder::new()
            .name("client".to_owned())
            .spawn(move || serve(stream, &control, &path));
        if let Err(error) = spawned {
            warn!(%error, "A client is turned away");
        }
    }
    Ok(())
}

fn begin(options: &Options, manner: Manner) -> Result<Control, TunnelError> {
    let processors = thread::available_parallelism().map_or(1, usize::from);
    let workers = options.workers.unwrap_or(processors.min(WORKERS_MAX));
    Control::start(workers.max(1), manner).map_err(TunnelError::Start)
}

/// [`take_over`], after others that are at it already.
fn take_turn(run_dir: &Path, manner: Manner) -> Result<Option<(Control, Client)>, TunnelError> {
    let until = Instant::now() + TURN_WAIT;
    loop {
        match take_over(run_dir, manner) {
            // It ended while it was asked, because the other was ready: that one is next.
            Err(TunnelError::Talk(error)) if is_end(&error) && Instant::now() < until => {}
            Err(TunnelError::Refused(_)) if Instant::now() < until => {}
            done => return done,
        }
        thread::park_timeout(LOOK_AGAIN);
    }
}

/// From the one that runs, if one does; both read and send until it is told that all is in use.
fn take_over(run_dir: &Path, manner: Manner) -> Result<Option<(Control, Client)>, TunnelError> {
    let mut before = match Client::connect(run_dir) {
        Ok(before) => before,
        Err(TunnelError::Absent { .. }) => return Ok(None),
        Err(error) => return Err(error),
    };
    let Response::Handed(handed) = before.ask(&Request::TakeOver)? else {
        return Err(TunnelError::Odd);
    };
    let sockets = handed.local.map_or(0, |_| handed.sockets);
    let count = handed.workers * (handed.taps.len() + sockets);
    let fds = receive_fds(before.stream(), count).map_err(TunnelError::Talk)?;
    info!(
        pid = before.pid(),
        rows = handed.rows.len(),
        fds = count,
        "Taking over"
    );
    let control = Control::take_over(manner, handed, fds).map_err(TunnelError::Start)?;
    Ok(Some((control, before)))
}

/// Ends the one before, and hears what it counted; one of a version before this does not say.
fn end_it(mut before: Client) -> Result<Option<Account>, TunnelError> {
    // It stops counting before it answers.
    let Response::Counted(tally) = before.ask(&Request::TakenOver)? else {
        return Ok(None);
    };
    let noted = tally.overflowed.iter().map(|_| before.hear());
    let noted = noted.collect::<Result<_, _>>()?;
    Ok(Some(Account { tally, noted }))
}

/// Listens under the name of the one before, in one step.
fn listen(path: &Path) -> io::Result<UnixListener> {
    let fresh = path.with_extension(format!("{}", std::process::id()));
    if let Err(error) = fs::remove_file(&fresh)
        && error.kind() != io::ErrorKind::NotFound
    {
        return Err(error);
    }
    let listener = UnixListener::bind(&fresh)?;
    fs::set_permissions(&fresh, Permissions::from_mode(0o600))?;
    fs::rename(&fresh, path)?;
    Ok(listener)
}

fn serve(mut stream: UnixStream, control: &Mutex<Control>, path: &Path) {
    let root = getsockopt(&stream, sockopt::PeerCredentials).is_ok_and(|peer| peer.uid() == 0);
    if !root {
        return;
    }
    let mut handed = false;
    loop {
        let request = match receive::<Request>(&mut stream) {
            Ok(Some(Request::Capture(request))) => {
                if let Err(error) = show(&mut stream, control, &request) {
                    info!(%error, "A capture ended");
                }
                break;
            }
            Ok(Some(request)) => request,
            Ok(None) => break,
            Err(error) => {
                warn!(%error, "A client said something that cannot be read");
                break;
            }
        };
        let outcome = answer(&mut stream, control, request, &mut handed, path);
        if let Err(error) = outcome {
            warn!(%error, "A client was not answered");
            break;
        }
    }
    if handed {
        info!("Whoever was taking over has gone: going on");
        lock(control).keep();
    }
}

/// Sends what workers see, until the other side has gone.
fn show(
    stream: &mut UnixStream,
    control: &Mutex<Control>,
    request: &CaptureRequest,
) -> io::Result<()> {
    let (to, records) = sync_channel(WAITING_MAX);
    let number = match lock(control).watch(request, to) {
        Ok(number) => number,
        Err(why) => return send(stream, &Response::Refused(why)),
    };
    let mut shown = send(stream, &Response::Done);
    while shown.is_ok() && !is_closed(stream) {
        match records.recv_timeout(LOOK_EVERY) {
            Ok(record) => shown = send(stream, &record),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    lock(control).unwatch(number);
    shown
}

/// True if the other side has closed; it says nothing otherwise.
fn is_closed(stream: &UnixStream) -> bool {
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
    !matches!(
        recv(stream.as_raw_fd(), &mut [0], flags),
        Err(Errno::EAGAIN)
    )
}

fn answer(
    stream: &mut UnixStream,
    control: &Mutex<Control>,
    request: Request,
    handed: &mut bool,
    path: &Path,
) -> io::Result<()> {
    let mut control = lock(control);
    let response = match request {
        Request::Hello => Response::Hello(Hello {
            pid: std::process::id(),
            program: program()?,
        }),
        Request::Dump => Response::Rows(control.dump()),
        Request::Apply(changes) => match control.apply(changes) {
            Ok(outcomes) => Response::Applied(outcomes),
            Err(why) => Response::Refused(why),
        },
        Request::Figures => match control.figures() {
            Ok(figures) => Response::Figures(figures),
            Err(why) => Response::Refused(why),
        },
        Request::Flows => match control.flows() {
            Ok(flows) => Response::Flows(flows),
            Err(why) => Response::Refused(why),
        },
        Request::TakeOver if control.is_handed() => {
            Response::Refused("another process is taking over".to_owned())
        }
        Request::TakeOver => {
            *handed = true;
            let (parts, fds) = control.hand();
            send(stream, &Response::Handed(parts))?;
            return send_fds(stream, &fds);
        }
        Request::Capture(_) => unreachable!("it is not answered here"),
        Request::TakenOver => {
            info!("Another took over; ending");
            let Account { tally, noted } = control.stop();
            let told = send(stream, &Response::Counted(tally));
            end(told.and_then(|()| noted.iter().try_for_each(|noted| send(stream, noted))));
        }
        Request::Stop => {
            info!("Told to end");
            if let Err(error) = fs::remove_file(path) {
                warn!(%error, "The socket stays");
            }
            // What is under way is sent first.
            control.stop();
            end(send(stream, &Response::Done));
        }
    };
    send(stream, &response)
}

/// Ends the process, of which somebody was told.
fn end(told: io::Result<()>) -> ! {
    if let Err(error) = told {
        info!(%error, "Nobody waits for the end");
    }
    std::process::exit(0);
}

fn lock(control: &Mutex<Control>) -> std::sync::MutexGuard<'_, Control> {
    // One that panicked left tables that the agent will compare and mend.
    control.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A TAP has a queue, and thus a descriptor, for each worker: thousands are fine.
fn raise_limits() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, most)| setrlimit(Resource::RLIMIT_NOFILE, most, most));
    if let Err(error) = raised {
        warn!(%error, "No more descriptors than usual");
    }
}
