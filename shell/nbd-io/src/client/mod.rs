//! A client: requests at any time, answers in any order.

mod connect;
mod driver;

pub use connect::{ConnectError, Target};

use crate::buffer::{Buffer, Pool};
use crate::device::Zeroes;
use crate::tls::ClientTls;
use bytes::Bytes;
use driver::{Asked, Driver, Reply};
use nbd::wire::StateFlags;
use nbd::{Answer, ClientConfig, Command, Failure, RemoteExport, Unsendable};
use tokio::sync::{mpsc, oneshot};

/// A connection to an export. Clones share it; when the last is dropped the client says goodbye.
#[derive(Debug, Clone)]
pub struct Client {
    export: RemoteExport,
    requests: mpsc::Sender<Asked>,
}

/// A request that was not carried out, as far as is known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// The server says so.
    #[error("the server failed it: {0}")]
    Failed(#[from] Failure),
    /// It was not sent.
    #[error("not sent: {0}")]
    Unsendable(#[from] Unsendable),
    /// The connection was lost before it was answered: it may or may not have been carried out. It can be sent
    /// again elsewhere.
    #[error("the connection was lost before the answer came")]
    Lost,
}

/// Requests that wait to be sent.
const QUEUE: usize = 16;

impl Client {
    /// Connects and shakes hands. TLS is used if there is `tls`, and else not.
    pub async fn connect(
        target: &Target,
        config: ClientConfig,
        tls: Option<ClientTls>,
        pool: Pool,
    ) -> Result<Self, ConnectError> {
        let (machine, stream, export) = connect::connect(target, config, tls).await?;
        let (requests, asked) = mpsc::channel(QUEUE);
        tokio::spawn(Driver::new(machine, stream, asked, pool).run());
        Ok(Self { export, requests })
    }

    /// What the server told of the export.
    pub fn export(&self) -> &RemoteExport {
        &self.export
    }

    /// Reads.
    pub async fn read(&self, offset: u64, len: u32) -> Result<Buffer, RequestError> {
        match self.ask(Command::Read { offset, len }).await? {
            Reply::Read(buffer) => Ok(buffer),
            Reply::Answer(_) => Err(RequestError::Lost),
        }
    }

    /// Writes; with `fua` it is on permanent storage when it is answered.
    pub async fn write(&self, offset: u64, data: Bytes, fua: bool) -> Result<(), RequestError> {
        self.tell(Command::Write { offset, data, fua }).await
    }

    /// All that was answered before goes to permanent storage.
    pub async fn flush(&self) -> Result<(), RequestError> {
        self.tell(Command::Flush).await
    }

    /// Nobody needs that any more.
    pub async fn trim(&self, offset: u64, len: u32, fua: bool) -> Result<(), RequestError> {
        self.tell(Command::Trim { offset, len, fua }).await
    }

    /// It reads as zeroes afterwards.
    pub async fn write_zeroes(
        &self,
        offset: u64,
        len: u32,
        how: Zeroes,
    ) -> Result<(), RequestError> {
        let Zeroes { fua, no_hole, fast } = how;
        let command = Command::WriteZeroes {
            offset,
            len,
            fua,
            no_hole,
            fast,
        };
        self.tell(command).await
    }

    /// It is going to be read.
    pub async fn cache(&self, offset: u64, len: u32) -> Result<(), RequestError> {
        self.tell(Command::Cache { offset, len }).await
    }

    /// What is allocated from there on: lengths in bytes and what is said of each. It may be less than what
    /// was asked for, or more.
    pub async fn status(
        &self,
        offset: u64,
        len: u32,
        one: bool,
    ) -> Result<Vec<(u32, StateFlags)>, RequestError> {
        match self.ask(Command::BlockStatus { offset, len, one }).await? {
            Reply::Answer(Answer::Status(extents)) => Ok(extents),
            Reply::Answer(Answer::Done) | Reply::Read(_) => Err(RequestError::Lost),
        }
    }

    async fn tell(&self, command: Command<Bytes>) -> Result<(), RequestError> {
        self.ask(command).await.map(drop)
    }

    async fn ask(&self, command: Command<Bytes>) -> Result<Reply, RequestError> {
        let (reply, answered) = oneshot::channel();
        let asked = Asked { command, reply };
        let sent = self.requests.send(asked).await;
        sent.map_err(|_| RequestError::Lost)?;
        answered.await.unwrap_or(Err(RequestError::Lost))
    }
}
