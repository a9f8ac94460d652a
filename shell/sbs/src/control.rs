//! Answers who asks at the process's own socket.

use crate::owner::Ended;
use crate::steward::Ask;
use crate::wire::{Hello, Request, Response, program, receive, send};
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tokio::time::sleep;
use tracing::{debug, info, warn};

const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Listens, under the name of one that may be left over, in one step; for root alone.
pub(crate) fn bind(path: &Path) -> io::Result<UnixListener> {
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

/// Answers until it is dropped. `stop` is told when somebody wants the process to end.
pub(crate) async fn answer(
    listener: UnixListener,
    steward: mpsc::Sender<Ask>,
    stop: mpsc::Sender<()>,
) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let (steward, stop) = (steward.clone(), stop.clone());
                tokio::spawn(async move {
                    if let Err(error) = serve(stream, &steward, &stop).await {
                        debug!(%error, "Who asked is gone");
                    }
                });
            }
            Err(error) => {
                warn!(%error, "Somebody who asks is not heard");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn serve(
    mut stream: UnixStream,
    steward: &mpsc::Sender<Ask>,
    stop: &mpsc::Sender<()>,
) -> io::Result<()> {
    if stream.peer_cred()?.uid() != 0 {
        return Ok(());
    }
    while let Some(request) = receive::<Request>(&mut stream).await? {
        let response = match request {
            Request::Hello => Response::Hello(Hello {
                pid: std::process::id(),
                program: program()?,
            }),
            Request::Want(wanted) => {
                let asked = ask(steward, |done| Ask::Want(wanted, done)).await;
                match asked {
                    Some(Ok(())) => Response::Done,
                    Some(Err(why)) => Response::Refused(why),
                    None => Response::Refused(Ended.to_string()),
                }
            }
            Request::Look => match ask(steward, Ask::Look).await {
                Some(Ok(look)) => Response::Look(Box::new(look)),
                Some(Err(Ended)) | None => Response::Refused(Ended.to_string()),
            },
            Request::Stop => {
                info!("Told to end");
                // It is ending already if nobody hears that.
                let _ending = stop.send(()).await;
                Response::Done
            }
        };
        send(&mut stream, &response).await?;
    }
    Ok(())
}

async fn ask<T>(
    steward: &mpsc::Sender<Ask>,
    question: impl FnOnce(oneshot::Sender<T>) -> Ask,
) -> Option<T> {
    let (answer, answered) = oneshot::channel();
    steward.send(question(answer)).await.ok()?;
    answered.await.ok()
}
