//! A server of ours in this process, and programs that are run against it.

use crate::file_device::FileDevice;
use crate::gate::{Control, Gate};
use nbd::{BlockSizes, Listed};
use nbd_io::{Exports, Listener, Opened, Peer, Pool, ServerTls, Settings, serve};
use std::fs::File;
use std::io::Read;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tempfile::TempDir;
use tokio::net::{TcpListener, UnixListener};
use tokio::runtime::Runtime;
use tokio::sync::oneshot;

pub(crate) const LIMIT: Duration = Duration::from_secs(60);
pub(crate) const MIB: u64 = 1 << 20;

/// Three exports of one file: `disk`, which is the default, `locked`, which is read-only, and `blocks`, of blocks
/// of 4 KiB.
pub(crate) struct Rig {
    pub(crate) dir: TempDir,
    pub(crate) socket: PathBuf,
    pub(crate) address: Option<SocketAddr>,
    pub(crate) control: Control,
    /// Certificates of whoever asked for an export.
    pub(crate) seen: Arc<Mutex<Vec<Peer>>>,
    stop: Option<oneshot::Sender<()>>,
    served: Option<tokio::task::JoinHandle<()>>,
    runtime: Option<Runtime>,
}

struct Three {
    file: PathBuf,
    control: Control,
    pool: Pool,
    seen: Arc<Mutex<Vec<Peer>>>,
}

impl Exports for Three {
    type Device = Gate;

    async fn open(&self, name: &str, peer: &Peer) -> Option<Opened<Gate>> {
        self.seen.lock().unwrap().push(peer.clone());
        let file = FileDevice::open(&self.file, self.pool.clone()).unwrap();
        let (name, file) = match name {
            "" | "disk" => ("disk", file),
            "locked" => ("locked", file.read_only()),
            "blocks" => {
                let sizes = BlockSizes::new(4096, 4096, nbd::PAYLOAD_MAX).unwrap();
                ("blocks", file.with_block_sizes(sizes))
            }
            _ => return None,
        };
        Some(Opened {
            name: name.to_owned(),
            description: format!("{name} for tests"),
            device: Arc::new(Gate {
                control: self.control.clone(),
                file,
            }),
        })
    }

    async fn list(&self, _peer: &Peer) -> Vec<Listed> {
        let listed = |name: &str| Listed {
            name: name.to_owned(),
            description: format!("{name} for tests"),
        };
        ["disk", "locked", "blocks"].map(listed).into()
    }
}

pub(crate) fn settings() -> Settings {
    Settings {
        drain: LIMIT,
        ..Settings::default()
    }
}

impl Rig {
    /// On a Unix socket, with a file of so many bytes.
    pub(crate) fn new(size: u64) -> Self {
        Self::with(size, settings(), None)
    }

    /// The same on TCP as well, if there is TLS.
    pub(crate) fn with(size: u64, settings: Settings, tls: Option<ServerTls>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        File::create(&file).unwrap().set_len(size).unwrap();
        let socket = dir.path().join("socket");
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let control = Control::new();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let exports = Arc::new(Three {
            file,
            control: control.clone(),
            pool: settings.pool.clone(),
            seen: Arc::clone(&seen),
        });
        let (stop, stopped) = oneshot::channel();
        let guard = runtime.enter();
        let (listener, address) = match tls {
            None => (Listener::Unix(UnixListener::bind(&socket).unwrap()), None),
            Some(_) => {
                let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
                let address = listener.local_addr().unwrap();
                (Listener::Tcp(listener), Some(address))
            }
        };
        let served = runtime.spawn(async move {
            let stop = async move { drop(stopped.await) };
            serve(listener, exports, tls, settings, stop).await.unwrap();
        });
        drop(guard);
        Self {
            dir,
            socket,
            address,
            control,
            seen,
            stop: Some(stop),
            served: Some(served),
            runtime: Some(runtime),
        }
    }

    pub(crate) fn file(&self) -> PathBuf {
        self.dir.path().join("file")
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn uri(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.socket.display())
    }

    /// Begins to stop.
    pub(crate) fn stop(&mut self) {
        drop(self.stop.take());
    }

    /// Waits until it has stopped.
    pub(crate) fn stopped(&mut self) {
        self.stop();
        let served = self.served.take().unwrap();
        let runtime = self.runtime.as_ref().unwrap();
        let done = runtime.block_on(async { tokio::time::timeout(LIMIT, served).await });
        done.expect("it stops in time").expect("it stops well");
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(LIMIT);
        }
    }
}

/// A program's output, if it ends well in time.
pub(crate) fn run(program: &str, args: &[&str]) -> String {
    match try_run(program, args) {
        Ok(said) => said,
        Err(said) => panic!("{program} {args:?}:\n{said}"),
    }
}

/// The same; all that it said if it ends badly.
pub(crate) fn try_run(program: &str, args: &[&str]) -> Result<String, String> {
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{program} cannot be run ({error}): scripts/setup.sh"));
    let read = |stream: Option<Box<dyn Read + Send>>| {
        std::thread::spawn(move || {
            let mut text = String::new();
            drop(stream.unwrap().read_to_string(&mut text));
            text
        })
    };
    let said = read(child.stdout.take().map(|out| Box::new(out) as _));
    let complained = read(child.stderr.take().map(|out| Box::new(out) as _));
    let child = Running(child);
    let status = child.ends();
    let (said, complained) = (said.join().unwrap(), complained.join().unwrap());
    match status.success() {
        true => Ok(said),
        false => Err(format!("{said}{complained}{status}")),
    }
}

/// A process of this test's, killed if the test ends before it.
pub(crate) struct Running(pub(crate) Child);

impl Running {
    fn ends(mut self) -> std::process::ExitStatus {
        testkit::eventually("a program ends", LIMIT, || {
            self.0
                .try_wait()
                .unwrap()
                .ok_or_else(|| "it runs".to_owned())
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Ok(None) = self.0.try_wait() {
            drop(self.0.kill());
            drop(self.0.wait());
        }
    }
}

/// A foreign server, once it can be connected to.
pub(crate) fn foreign(program: &str, args: &[&str], socket: &Path) -> Running {
    let mut child = Running(
        Command::new(program)
            .args(args)
            .stdin(Stdio::null())
            // It complains of whoever only looks whether it is there.
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("{program} cannot be run ({error}): scripts/setup.sh")),
    );
    testkit::eventually("a foreign server listens", LIMIT, || {
        if let Some(status) = child.0.try_wait().unwrap() {
            panic!("{program} {args:?} ended: {status}");
        }
        let connected = std::os::unix::net::UnixStream::connect(socket);
        connected.map(drop).map_err(|error| error.to_string())
    });
    child
}

/// Bytes that are the same whenever they are asked for; each block of 4 KiB differs.
pub(crate) fn pattern(len: usize) -> Vec<u8> {
    (0..len)
        .map(|at| (at / 4096 * 31 + at % 253) as u8 | 1)
        .collect()
}
