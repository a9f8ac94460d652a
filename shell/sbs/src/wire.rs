//! What an agent, or an operator, and a storage process say to each other, over a socket that only root reaches: each
//! message is `| length 4, little-endian | JSON |`.

use crate::look::Look;
use model::StorageConfig;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::io;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// The socket's name in the run directory.
pub const SOCKET_NAME: &str = "storage.sock";
/// What a host with ten thousand volumes says is smaller.
const MOST_BYTES: usize = 64 << 20;

/// What is asked.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Request {
    /// Who are you?
    Hello,
    /// Have this from now on.
    Want(StorageConfig),
    /// How are you?
    Look,
    /// End.
    Stop,
}

/// What is answered.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Response {
    Hello(Hello),
    Look(Box<Look>),
    Done,
    Refused(String),
}

/// Who answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Hello {
    /// Of the process.
    pub(crate) pid: u32,
    /// Which file it was started from: device, inode and time of change. Another is another version.
    pub(crate) program: (u64, u64, i64),
}

/// Which file this process runs.
pub(crate) fn program() -> io::Result<(u64, u64, i64)> {
    use std::os::unix::fs::MetadataExt;
    let file = std::fs::metadata("/proc/self/exe")?;
    Ok((file.dev(), file.ino(), file.mtime()))
}

pub(crate) async fn send<T: Serialize>(
    stream: &mut (impl AsyncWrite + Unpin),
    message: &T,
) -> io::Result<()> {
    let body = serde_json::to_vec(message)?;
    let length = u32::try_from(body.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut bytes = length.to_le_bytes().to_vec();
    bytes.extend(body);
    stream.write_all(&bytes).await
}

/// None where the other side has ended.
pub(crate) async fn receive<T: DeserializeOwned>(
    stream: &mut (impl AsyncRead + Unpin),
) -> io::Result<Option<T>> {
    let mut length = [0; 4];
    match stream.read_exact(&mut length).await {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        other => drop(other?),
    }
    let length = u32::from_le_bytes(length) as usize;
    if length > MOST_BYTES {
        let text = format!("a message of {length} bytes is none of ours");
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    Ok(Some(serde_json::from_slice(&body)?))
}
