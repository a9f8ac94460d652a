//! What an agent talks to a datapath with. Blocks.

use crate::capture::{CaptureRequest, Record};
use crate::wire::{Figures, FlowFigures, Hello, Request, Response, SOCKET_NAME, receive, send};
use datapath::{Change, Tables};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::de::DeserializeOwned;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};
use tracing::info;

/// How long a datapath may take to answer, and to be there after it was started.
const ANSWER_WAIT: Duration = Duration::from_secs(20);
const START_WAIT: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_millis(5);
/// What the process writes, in the run directory.
const LOG_NAME: &str = "datapath.log";

/// Why a datapath cannot be talked to.
#[derive(Debug, thiserror::Error)]
pub enum TunnelError {
    /// It does not run.
    #[error("no datapath runs (its socket is {path})")]
    Absent {
        /// Of the socket.
        path: PathBuf,
        /// Why it was not reached.
        #[source]
        source: io::Error,
    },
    /// It was started, and is not there.
    #[error("the datapath was started and does not answer: its log is {log}")]
    NotStarted {
        /// What it wrote.
        log: PathBuf,
    },
    /// It was started, and has ended.
    #[error("the datapath was started and ended at once ({status}): its log is {log}")]
    Ended {
        /// What it wrote.
        log: PathBuf,
        /// How it ended.
        status: ExitStatus,
    },
    /// It could not be started.
    #[error("starting the datapath")]
    Start(#[source] io::Error),
    /// The talk broke off.
    #[error("talking to the datapath")]
    Talk(#[source] io::Error),
    /// It said no.
    #[error("the datapath refuses: {0}")]
    Refused(String),
    /// It said something else.
    #[error("the datapath answered something else than was asked: is it of another version?")]
    Odd,
}

/// A connection to a datapath.
#[derive(Debug)]
pub struct Client {
    run_dir: PathBuf,
    stream: UnixStream,
    hello: Hello,
}

impl Client {
    /// To the one that runs.
    pub fn connect(run_dir: &Path) -> Result<Self, TunnelError> {
        let path = run_dir.join(SOCKET_NAME);
        let stream = UnixStream::connect(&path);
        let stream = stream.map_err(|source| TunnelError::Absent { path, source })?;
        let limit = Some(ANSWER_WAIT);
        stream.set_read_timeout(limit).map_err(TunnelError::Talk)?;
        stream.set_write_timeout(limit).map_err(TunnelError::Talk)?;
        let mut client = Self {
            run_dir: run_dir.to_owned(),
            stream,
            hello: Hello {
                pid: 0,
                program: (0, 0, 0),
            },
        };
        match client.ask(&Request::Hello)? {
            Response::Hello(hello) => client.hello = hello,
            _ => return Err(TunnelError::Odd),
        }
        Ok(client)
    }

    /// Starts a process that takes over from the one that runs, if one does, and waits for it: some tens
    /// of milliseconds where all is well, and ten seconds at most.
    pub fn start(run_dir: &Path) -> Result<Self, TunnelError> {
        let log = run_dir.join(LOG_NAME);
        let mut child = spawn(run_dir, &log).map_err(TunnelError::Start)?;
        let pid = child.id();
        let until = Instant::now() + START_WAIT;
        loop {
            match Self::connect(run_dir) {
                Ok(client) if client.hello.pid == pid => {
                    reap(child).map_err(TunnelError::Start)?;
                    return Ok(client);
                }
                _ => thread::park_timeout(LOOK_AGAIN),
            }
            if let Some(status) = child.try_wait().map_err(TunnelError::Start)? {
                return Err(TunnelError::Ended { log, status });
            }
            if Instant::now() >= until {
                // The next one takes over from it, should it come to itself.
                reap(child).map_err(TunnelError::Start)?;
                return Err(TunnelError::NotStarted { log });
            }
        }
    }

    /// True if it runs the same program as this process: another is of another version.
    pub fn is_own_version(&self) -> bool {
        program().is_ok_and(|own| self.hello.program == own)
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.hello.pid
    }

    /// All that it was told.
    pub fn tables(&mut self) -> Result<Tables, TunnelError> {
        match self.ask(&Request::Dump)? {
            Response::Rows(rows) => Ok(Tables::of(rows)),
            _ => Err(TunnelError::Odd),
        }
    }

    /// Tells it changes; each has its outcome at its place. What worked is in use by all its threads.
    pub fn apply(&mut self, changes: &[Change]) -> Result<Vec<Result<(), String>>, TunnelError> {
        match self.ask(&Request::Apply(changes.to_vec()))? {
            Response::Applied(outcomes) if outcomes.len() == changes.len() => {
                let outcome = |wrong: Option<String>| wrong.map_or(Ok(()), Err);
                Ok(outcomes.into_iter().map(outcome).collect())
            }
            _ => Err(TunnelError::Odd),
        }
    }

    /// What it counted.
    pub fn figures(&mut self) -> Result<Figures, TunnelError> {
        match self.ask(&Request::Figures)? {
            Response::Figures(figures) => Ok(figures),
            _ => Err(TunnelError::Odd),
        }
    }

    /// Which flows pass.
    pub fn flows(&mut self) -> Result<FlowFigures, TunnelError> {
        match self.ask(&Request::Flows)? {
            Response::Flows(flows) => Ok(flows),
            _ => Err(TunnelError::Odd),
        }
    }

    /// Has it show frames, until what is returned is dropped.
    pub fn capture(mut self, request: CaptureRequest) -> Result<Capture, TunnelError> {
        match self.ask(&Request::Capture(request.clone()))? {
            Response::Done => Ok(Capture {
                run_dir: self.run_dir,
                request,
                stream: self.stream,
                has_ended: false,
            }),
            _ => Err(TunnelError::Odd),
        }
    }

    /// Ends it; what it had open is closed.
    pub fn stop(mut self) -> Result<(), TunnelError> {
        self.ask(&Request::Stop).map(drop)
    }

    pub(crate) fn ask(&mut self, request: &Request) -> Result<Response, TunnelError> {
        send(&mut self.stream, request).map_err(TunnelError::Talk)?;
        match self.hear()? {
            Response::Refused(why) => Err(TunnelError::Refused(why)),
            response => Ok(response),
        }
    }

    /// What it says next.
    pub(crate) fn hear<T: DeserializeOwned>(&mut self) -> Result<T, TunnelError> {
        let heard = receive(&mut self.stream).map_err(TunnelError::Talk)?;
        heard.ok_or_else(|| TunnelError::Talk(io::ErrorKind::UnexpectedEof.into()))
    }

    pub(crate) fn stream(&self) -> &UnixStream {
        &self.stream
    }
}

/// Frames as they are seen.
#[derive(Debug)]
pub struct Capture {
    run_dir: PathBuf,
    request: CaptureRequest,
    stream: UnixStream,
    has_ended: bool,
}

impl Capture {
    /// The next; none if there was none for so long, or the datapath has ended.
    pub fn next(&mut self, wait: Duration) -> Result<Option<Record>, TunnelError> {
        let mut first = [PollFd::new(self.stream.as_fd(), PollFlags::POLLIN)];
        let wait = PollTimeout::try_from(wait).unwrap_or(PollTimeout::MAX);
        match poll(&mut first, wait) {
            Ok(0) | Err(Errno::EINTR) => Ok(None),
            Ok(_) => match receive(&mut self.stream) {
                Err(error) if !is_end(&error) => Err(TunnelError::Talk(error)),
                shown => {
                    let record = shown.ok().flatten();
                    self.has_ended = record.is_none();
                    Ok(record)
                }
            },
            Err(error) => Err(TunnelError::Talk(error.into())),
        }
    }

    /// True if nothing comes any more because the datapath has ended, as when another took over.
    pub fn has_ended(&self) -> bool {
        self.has_ended
    }

    /// Goes on with the datapath that runs by now; false if none does yet. What passed in between was not
    /// seen.
    pub fn resume(&mut self) -> Result<bool, TunnelError> {
        let again =
            Client::connect(&self.run_dir).and_then(|client| client.capture(self.request.clone()));
        match again {
            Ok(again) => *self = again,
            Err(TunnelError::Absent { .. } | TunnelError::Talk(_)) => return Ok(false),
            Err(error) => return Err(error),
        }
        Ok(true)
    }
}

/// True if the other side has ended, maybe in the middle of a message.
pub(crate) fn is_end(error: &io::Error) -> bool {
    let of_an_end = [
        io::ErrorKind::UnexpectedEof,
        io::ErrorKind::ConnectionReset,
        io::ErrorKind::BrokenPipe,
    ];
    of_an_end.contains(&error.kind())
}

/// Which file this process runs: another file, or the same written anew, is another version.
pub(crate) fn program() -> io::Result<(u64, u64, i64)> {
    let file = fs::metadata("/proc/self/exe")?;
    Ok((file.dev(), file.ino(), file.mtime()))
}

/// Starts the process, apart from ours: no signal to our group reaches it.
fn spawn(run_dir: &Path, log: &Path) -> io::Result<Child> {
    let output = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(log)?;
    Command::new("/proc/self/exe")
        .args(["datapath", "run", "--run-dir"])
        .arg(run_dir)
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        .process_group(0)
        .spawn()
}

/// Somebody has to be told when it ends, or it stays in the process table.
fn reap(mut child: Child) -> io::Result<()> {
    let wait = move || {
        let (pid, outcome) = (child.id(), child.wait());
        info!(pid, ?outcome, "A datapath ended");
    };
    let spawned = thread::Builder::new().name("datapath".to_owned());
    spawned.spawn(wait).map(drop)
}
