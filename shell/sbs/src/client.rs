//! What an agent and operators talk to a storage process with.

use crate::look::Look;
use crate::wire::{Hello, Request, Response, SOCKET_NAME, program, receive, send};
use model::StorageConfig;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::time::timeout;

/// How long a process may take to answer: to detach volumes takes some seconds.
const ANSWER_WAIT: Duration = Duration::from_secs(30);

/// Why a storage process cannot be talked to.
#[derive(Debug, thiserror::Error)]
pub enum SbsError {
    /// It does not run.
    #[error("no storage process runs (its socket is {path})")]
    Absent {
        /// Of the socket.
        path: PathBuf,
        /// Why it was not reached.
        #[source]
        source: io::Error,
    },
    /// The talk broke off.
    #[error("talking to the storage process")]
    Talk(#[source] io::Error),
    /// It does not answer.
    #[error(
        "the storage process does not answer: it may be stuck, its log is storage.log in the run directory"
    )]
    Late,
    /// It said no.
    #[error("the storage process refuses: {0}")]
    Refused(String),
    /// It said something else.
    #[error(
        "the storage process answered something else than was asked: is it of another version?"
    )]
    Odd,
}

/// A connection to a storage process.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    hello: Hello,
}

impl Client {
    /// To the one that runs.
    pub async fn connect(run_dir: &Path) -> Result<Self, SbsError> {
        let path = run_dir.join(SOCKET_NAME);
        let stream = UnixStream::connect(&path).await;
        let stream = stream.map_err(|source| SbsError::Absent { path, source })?;
        let hello = Hello {
            pid: 0,
            program: (0, 0, 0),
        };
        let mut client = Self { stream, hello };
        match client.ask(&Request::Hello).await? {
            Response::Hello(hello) => client.hello = hello,
            _ => return Err(SbsError::Odd),
        }
        Ok(client)
    }

    /// Its process.
    pub const fn pid(&self) -> u32 {
        self.hello.pid
    }

    /// True if it runs the same program as this process: another is of another version.
    pub fn is_own_version(&self) -> bool {
        program().is_ok_and(|own| self.hello.program == own)
    }

    /// Has it have this; returns when it is kept and begun.
    pub async fn want(&mut self, wanted: &StorageConfig) -> Result<(), SbsError> {
        match self.ask(&Request::Want(wanted.clone())).await? {
            Response::Done => Ok(()),
            _ => Err(SbsError::Odd),
        }
    }

    /// How it is.
    pub async fn look(&mut self) -> Result<Look, SbsError> {
        match self.ask(&Request::Look).await? {
            Response::Look(look) => Ok(*look),
            _ => Err(SbsError::Odd),
        }
    }

    /// Ends it: what it serves is served no more until it is started again.
    pub async fn stop(mut self) -> Result<(), SbsError> {
        self.ask(&Request::Stop).await.map(drop)
    }

    async fn ask(&mut self, request: &Request) -> Result<Response, SbsError> {
        let talk = async {
            send(&mut self.stream, request).await?;
            receive(&mut self.stream).await
        };
        let answered = timeout(ANSWER_WAIT, talk).await;
        match answered
            .map_err(|_| SbsError::Late)?
            .map_err(SbsError::Talk)?
        {
            Some(Response::Refused(why)) => Err(SbsError::Refused(why)),
            Some(response) => Ok(response),
            None => Err(SbsError::Talk(io::ErrorKind::UnexpectedEof.into())),
        }
    }
}
