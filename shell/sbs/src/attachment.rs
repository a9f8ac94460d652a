//! A volume that is attached here: a session with its replicas, and the sockets that it is served at.

use crate::control::bind;
use crate::device::{Lost, Session, VolumeDevice, room};
use crate::identity;
use crate::look::{AttachmentLook, AttachmentState};
use crate::owner::{Ended, Event, Owner};
use blocks::BLOCK_BYTES;
use model::VolumeId;
use nbd::Listed;
use nbd_io::{Exports, Listener, Opened, Peer, ServeError, Settings, serve};
use replication::{Answered, Failure, Op, SessionId};
use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use storage_plan::Attached;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::sleep;
use tracing::{info, warn};

/// Between attempts to attach, and to have a socket.
const RETRY: Duration = Duration::from_millis(500);
/// How long requests that are under way may take when a volume is detached: then they are cut off.
const DRAIN: Duration = Duration::from_secs(3);

/// An attachment, as long as it is to be.
pub(crate) struct Attachment {
    /// As it is to be.
    pub(crate) attached: Attached,
    wanted: watch::Sender<Attached>,
    shared: Arc<Shared>,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

struct Shared {
    volume: VolumeId,
    /// As it was when it began; sizes and hosts may be others since.
    attached: Attached,
    wanted: watch::Receiver<Attached>,
    /// The size that is served; 0 until it is known.
    bytes: Arc<AtomicU64>,
    socket: PathBuf,
    owner: Owner,
    state: Mutex<AttachmentState>,
}

impl Attachment {
    /// Begins; clients may come as soon as [`Self::look`] says that it is attached. Sockets are made in `dir`.
    pub(crate) fn start(volume: VolumeId, attached: Attached, dir: &Path, owner: Owner) -> Self {
        let (wanted, wants) = watch::channel(attached.clone());
        let shared = Arc::new(Shared {
            volume,
            attached: attached.clone(),
            wanted: wants,
            bytes: Arc::default(),
            socket: dir.join(format!("{volume}.sock")),
            owner,
            state: Mutex::new(AttachmentState::Attaching { trouble: None }),
        });
        let (stop, stopped) = watch::channel(false);
        let task = tokio::spawn(Arc::clone(&shared).run(stopped));
        Self {
            attached,
            wanted,
            shared,
            stop,
            task,
        }
    }

    /// Has another size, or other hosts are asked, from now on; clients stay.
    pub(crate) fn adjust(&mut self, attached: Attached) {
        self.attached = attached.clone();
        self.wanted.send_replace(attached);
    }

    /// Ends, within some seconds.
    pub(crate) async fn end(self) {
        self.stop.send_replace(true);
        if let Err(error) = self.task.await {
            warn!(volume = %self.shared.volume, %error, "An attachment broke down");
        }
        if let Err(error) = fs::remove_file(&self.shared.socket)
            && error.kind() != io::ErrorKind::NotFound
        {
            warn!(path = %self.shared.socket.display(), %error, "A socket stays");
        }
    }

    pub(crate) fn look(&self) -> AttachmentLook {
        let Attached {
            name, attachment, ..
        } = &self.attached;
        AttachmentLook {
            name: name.to_string(),
            attachment: *attachment,
            bytes: self.shared.bytes.load(Ordering::Relaxed),
            state: self.shared.state(),
            socket: self.shared.socket.clone(),
            tcp: tcp_address(&self.attached).map(|address| address.to_string()),
        }
    }
}

fn tcp_address(attached: &Attached) -> Option<SocketAddr> {
    let port = attached.attachment.tcp_port?;
    Some((Ipv4Addr::LOCALHOST, port).into())
}

impl Shared {
    fn state(&self) -> AttachmentState {
        let held = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        held.clone()
    }

    fn set(&self, state: AttachmentState) {
        let mut held = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        *held = state;
    }

    async fn run(self: Arc<Self>, mut stopped: watch::Receiver<bool>) {
        let (session, sessions) = watch::channel(Session::Coming);
        let (lost, mut losses) = mpsc::unbounded_channel();
        let device = VolumeDevice {
            bytes: Arc::clone(&self.bytes),
            read_only: self.attached.attachment.read_only,
            owner: self.owner.clone(),
            session: sessions.clone(),
            lost,
            room: room(),
        };
        let serving = Arc::clone(&self).serve_all(device, sessions, stopped.clone());
        let serving = self.owner.spawn(serving);
        tokio::select! {
            // It ends only with the process.
            kept = self.keep_attached(&session, &mut losses) => drop(kept),
            // Who could say otherwise has ended.
            stop = stopped.wait_for(|stop| *stop) => drop(stop),
        }
        if let Err(error) = serving.await {
            warn!(volume = %self.volume, %error, "Serving broke down");
        }
        if let Session::Here(session) = *session.borrow() {
            // When the owner has ended there are no sessions.
            drop(self.owner.tell(Event::Close { session }));
        }
    }

    /// Has a session whenever it can, until the volume is attached elsewhere.
    async fn keep_attached(
        &self,
        session: &watch::Sender<Session>,
        losses: &mut mpsc::UnboundedReceiver<Lost>,
    ) -> Result<(), Ended> {
        let mut wanted = self.wanted.clone();
        let mut fences = true;
        loop {
            let now = wanted.borrow_and_update().clone();
            let mut id = SessionId(rand::random());
            let begun = match fences {
                true => self.attach(id, &now).await?,
                false => self.open(id, &now).map(Ok)?,
            };
            if begun.is_ok() && self.attached.attachment.read_only && fences {
                // Whoever wrote before is fenced off. Others read, too: none of them fences another.
                fences = false;
                self.owner.tell(Event::Close { session: id })?;
                id = SessionId(rand::random());
                self.open(id, &now)?;
            }
            let begun = match begun {
                Ok(()) => self.grow(id, &now).await?,
                Err(failure) => Err(failure),
            };
            match begun {
                Ok(()) => {}
                Err(Failure::Fenced) => return self.fenced(session, id).await,
                Err(failure) => {
                    self.owner.tell(Event::Close { session: id })?;
                    self.trouble(failure.to_string());
                    sleep(RETRY).await;
                    continue;
                }
            }
            info!(volume = %self.volume, name = %self.attached.name, "A volume is attached");
            self.set(AttachmentState::Attached);
            session.send_replace(Session::Here(id));
            let lost = self.keep_session(id, &mut wanted, now, losses).await?;
            if lost.fenced {
                return self.fenced(session, id).await;
            }
            session.send_replace(Session::Coming);
            self.owner.tell(Event::Close { session: id })?;
            self.trouble(Failure::GaveUp.to_string());
        }
    }

    /// Until it is lost. Meanwhile the volume may grow, and its replicas may go elsewhere.
    async fn keep_session(
        &self,
        id: SessionId,
        wanted: &mut watch::Receiver<Attached>,
        mut now: Attached,
        losses: &mut mpsc::UnboundedReceiver<Lost>,
    ) -> Result<Lost, Ended> {
        loop {
            let small = self.bytes.load(Ordering::Relaxed) < now.size.bytes();
            tokio::select! {
                lost = losses.recv() => match lost {
                    Some(lost) if lost.session == id => return Ok(lost),
                    Some(_) => continue,
                    None => return Err(Ended),
                },
                Ok(()) = wanted.changed() => {
                    let next = wanted.borrow_and_update().clone();
                    if next.hosts != now.hosts {
                        let hosts = hosts(&next);
                        self.owner.tell(Event::Move { session: id, hosts })?;
                    }
                    now = next;
                }
                () = sleep(RETRY), if small => {}
            }
            let bytes = now.size.bytes();
            if self.bytes.load(Ordering::Relaxed) < bytes {
                match self.grow(id, &now).await? {
                    Ok(()) => info!(volume = %self.volume, bytes, "A volume has grown"),
                    Err(failure) => {
                        warn!(volume = %self.volume, %failure, "A volume does not grow")
                    }
                }
            }
        }
    }

    /// It is somebody else's now; this ends when it is told to.
    async fn fenced(&self, session: &watch::Sender<Session>, id: SessionId) -> Result<(), Ended> {
        warn!(volume = %self.volume, "A volume was attached elsewhere");
        self.set(AttachmentState::Fenced);
        session.send_replace(Session::Fenced);
        self.owner.tell(Event::Close { session: id })?;
        std::future::pending().await
    }

    fn open(&self, session: SessionId, attached: &Attached) -> Result<(), Ended> {
        self.owner.tell(Event::Open {
            session,
            volume: identity::volume(self.volume),
            hosts: hosts(attached),
        })
    }

    /// Has the volume as large as it is to be, if it is not yet, and serves that.
    async fn grow(
        &self,
        session: SessionId,
        attached: &Attached,
    ) -> Result<Result<(), Failure>, Ended> {
        let bytes = attached.size.bytes();
        let blocks = bytes / BLOCK_BYTES as u64;
        let grown = self.owner.ask(session, Op::Grow { blocks }).await;
        let grown = grown.ok_or(Ended)?.map(drop);
        if grown.is_ok() {
            self.bytes.store(bytes, Ordering::Relaxed);
        }
        Ok(grown)
    }

    async fn attach(
        &self,
        session: SessionId,
        attached: &Attached,
    ) -> Result<Result<(), Failure>, Ended> {
        self.open(session, attached)?;
        let claim = self.attached.attachment.number;
        let op = Op::Attach { claim };
        // Also who only reads fences off whoever wrote before.
        let outcome = self.owner.ask(session, op).await.ok_or(Ended)?;
        Ok(match outcome {
            Ok(Answered::Attached { .. }) => Ok(()),
            Ok(Answered::Done | Answered::Data(_) | Answered::Allocation(_)) => {
                let why = "the leader answered something else".to_owned();
                Err(Failure::Invalid { why })
            }
            Err(failure) => Err(failure),
        })
    }

    fn trouble(&self, trouble: String) {
        let state = AttachmentState::Attaching {
            trouble: Some(trouble.clone()),
        };
        if self.state() != state {
            warn!(volume = %self.volume, trouble, "A volume is not attached");
        }
        self.set(state);
    }

    /// Serves from the first time on that it is attached.
    async fn serve_all(
        self: Arc<Self>,
        device: VolumeDevice,
        mut sessions: watch::Receiver<Session>,
        mut stopped: watch::Receiver<bool>,
    ) {
        tokio::select! {
            there = sessions.wait_for(|session| *session != Session::Coming) => {
                if there.is_err() {
                    return;
                }
            }
            // Who could say otherwise has ended.
            _stop = stopped.wait_for(|stop| *stop) => return,
        }
        let exports = Arc::new(OneExport {
            name: self.attached.name.to_string(),
            device: Arc::new(device),
        });
        let unix = self.serve(
            &exports,
            || bind(&self.socket).map(Listener::Unix),
            stopped.clone(),
        );
        let tcp = async {
            if let Some(address) = tcp_address(&self.attached) {
                self.serve(&exports, || listen_tcp(address), stopped.clone())
                    .await;
            }
        };
        tokio::join!(unix, tcp);
    }

    async fn serve(
        &self,
        exports: &Arc<OneExport>,
        listen: impl Fn() -> io::Result<Listener>,
        mut stopped: watch::Receiver<bool>,
    ) {
        while !*stopped.borrow() {
            let served = match listen() {
                Ok(listener) => {
                    let mut stopped = stopped.clone();
                    let stop = async move { drop(stopped.wait_for(|stop| *stop).await) };
                    let settings = Settings {
                        drain: DRAIN,
                        ..Settings::default()
                    };
                    serve(listener, Arc::clone(exports), None, settings, stop).await
                }
                Err(error) => Err(ServeError::Address(error)),
            };
            if let Err(error) = served {
                warn!(volume = %self.volume, error = chain(&error), "A volume is not served");
                tokio::select! {
                    () = sleep(RETRY) => {}
                    // Who could say otherwise has ended.
                    _stop = stopped.wait_for(|stop| *stop) => return,
                }
            }
        }
    }
}

/// Who is asked for a volume's blocks.
fn hosts(attached: &Attached) -> Vec<replication::HostId> {
    let hosts = attached.hosts.iter().map(|host| identity::host(*host));
    hosts.collect()
}

fn listen_tcp(address: SocketAddr) -> io::Result<Listener> {
    let listener = std::net::TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    Ok(Listener::Tcp(TcpListener::from_std(listener)?))
}

/// An error with its causes.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

/// A volume is all that is served at its sockets; an empty name is the default's.
struct OneExport {
    name: String,
    device: Arc<VolumeDevice>,
}

impl Exports for OneExport {
    type Device = VolumeDevice;

    async fn open(&self, name: &str, _peer: &Peer) -> Option<Opened<VolumeDevice>> {
        (name.is_empty() || name == self.name).then(|| Opened {
            name: self.name.clone(),
            description: String::new(),
            device: Arc::clone(&self.device),
        })
    }

    async fn list(&self, _peer: &Peer) -> Vec<Listed> {
        vec![Listed {
            name: self.name.clone(),
            description: String::new(),
        }]
    }
}
