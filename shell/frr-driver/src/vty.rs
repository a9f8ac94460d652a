//! A daemon's command line, on its unix socket.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

/// A daemon that answers nothing for this long hangs.
const PATIENCE: Duration = Duration::from_secs(5);
/// What each line of configuration may take more: an instance that changes has its routes told anew.
const LINE: Duration = Duration::from_millis(100);
/// More than a full table's worth of any answer that is asked for here.
const LARGEST_ANSWER_BYTES: usize = 64 << 20;

/// A daemon that could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum VtyError {
    /// The connection failed.
    #[error("asking FRR at {path}: {source}")]
    Io {
        /// The daemon's socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It refused the command.
    #[error("FRR at {path} did not take {command:?} (status {status}): {said}")]
    Refused {
        /// The daemon's socket.
        path: PathBuf,
        /// What it was asked.
        command: String,
        /// Its status.
        status: u8,
        /// What it said.
        said: String,
    },
}

/// Runs one command in a daemon's enable mode; what it printed.
pub(crate) async fn ask(path: &Path, command: &str) -> Result<String, VtyError> {
    let failed = |source| VtyError::Io {
        path: path.to_owned(),
        source,
    };
    let talk = async {
        let mut stream = UnixStream::connect(path).await?;
        exchange(&mut stream, "enable").await?;
        exchange(&mut stream, command).await
    };
    let (said, status) = timeout(PATIENCE, talk)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        .map_err(failed)?;
    match status {
        0 => Ok(said),
        status => Err(VtyError::Refused {
            path: path.to_owned(),
            command: command.to_owned(),
            status,
            said: said.trim().to_owned(),
        }),
    }
}

/// Gives a daemon lines of configuration, one after the other, as in its configuration mode; the lines that
/// it did not take, with what it said. `vtysh -f` would have bgpd begin none of the sessions that are added
/// until a second later, and that second begins anew each time.
pub(crate) async fn configure(path: &Path, text: &str) -> Result<Vec<String>, VtyError> {
    let talk = async {
        let mut stream = UnixStream::connect(path).await?;
        let mut refused = Vec::new();
        let lines = text.lines().map(str::trim);
        let lines = lines.filter(|line| !line.is_empty() && *line != "!");
        for line in ["enable", "configure terminal"].into_iter().chain(lines) {
            let (said, status) = exchange(&mut stream, line).await?;
            if status != 0 {
                refused.push(format!("{line:?}: {} (status {status})", said.trim()));
            }
        }
        Ok(refused)
    };
    let lines = u32::try_from(text.lines().count()).unwrap_or(u32::MAX);
    let patience = PATIENCE + LINE.saturating_mul(lines);
    let talked = timeout(patience, talk).await;
    talked
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        .map_err(|source| VtyError::Io {
            path: path.to_owned(),
            source,
        })
}

/// A command goes out with a NUL behind it; the answer ends with three NULs and a status.
async fn exchange(stream: &mut UnixStream, command: &str) -> io::Result<(String, u8)> {
    stream.write_all(command.as_bytes()).await?;
    stream.write_all(&[0]).await?;
    let mut answer = Vec::new();
    loop {
        if let [.., 0, 0, 0, status] = answer.as_slice() {
            let status = *status;
            answer.truncate(answer.len() - 4);
            return Ok((String::from_utf8_lossy(&answer).into_owned(), status));
        }
        if answer.len() > LARGEST_ANSWER_BYTES {
            return Err(io::Error::other("the answer has no end"));
        }
        if stream.read_buf(&mut answer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// Ends when the daemon does.
pub(crate) async fn ended(path: &Path) {
    let Ok(mut stream) = UnixStream::connect(path).await else {
        return;
    };
    let mut nothing = [0; 64];
    while let Ok(1..) = stream.read(&mut nothing).await {}
}
