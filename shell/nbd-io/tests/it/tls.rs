//! TLS, both ways, with GnuTLS on the other side.

use crate::certificates::Authority;
use crate::rig::{MIB, Rig, foreign, pattern, run, settings, try_run};
use bytes::Bytes;
use nbd::ClientConfig;
use nbd_io::{Client, ClientTls, ConnectError, Listener, Pool, ServeError, Target, serve};
use std::fs;
use std::path::Path;
use tokio::net::TcpListener;

fn config() -> ClientConfig {
    ClientConfig {
        export: String::new(),
        tls: false,
        allocation: true,
    }
}

async fn connect(target: Target, tls: Option<ClientTls>) -> Result<Client, ConnectError> {
    Client::connect(&target, config(), tls, Pool::default()).await
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Runtime::new().unwrap().block_on(future)
}

struct Secure {
    authority: Authority,
    rig: Rig,
}

impl Secure {
    fn new() -> Self {
        let authority = Authority::new();
        let rig = Rig::with(4 * MIB, settings(), Some(authority.server_tls()));
        authority.files(&rig.path("good"), &authority.client());
        // Trusts the server, but is of another authority itself.
        let other = Authority::new();
        authority.files(&rig.path("bad"), &other.client());
        Self { authority, rig }
    }

    fn target(&self) -> Target {
        Target::Tcp(self.rig.address.unwrap().to_string())
    }

    fn nbds(&self, dir: &str) -> String {
        let (port, dir) = (self.rig.address.unwrap().port(), self.rig.path(dir));
        format!(
            "nbds://localhost:{port}/disk?tls-certificates={}",
            dir.display()
        )
    }
}

#[test]
fn libnbd_with_a_certificate_is_served() {
    let secure = Secure::new();
    let source = secure.rig.path("source");
    fs::write(&source, pattern(4 * MIB as usize)).unwrap();
    let copy = [
        "--connections=2",
        source.to_str().unwrap(),
        &secure.nbds("good"),
    ];
    run("nbdcopy", &copy);
    assert!(fs::read(secure.rig.file()).unwrap() == pattern(4 * MIB as usize));
    let said = run("nbdinfo", &["--list", &secure.nbds("good")]);
    assert!(said.contains("TLS") && said.contains("locked"), "{said}");
    let seen = secure.rig.seen.lock().unwrap();
    assert!(seen.iter().all(|peer| peer.certificate.is_some()));
}

#[test]
fn who_has_no_certificate_of_the_authority_is_not_served() {
    let secure = Secure::new();
    let port = secure.rig.address.unwrap().port();
    for uri in [
        secure.nbds("bad"),
        format!("nbds://localhost:{port}/disk"),
        format!("nbd://localhost:{port}/disk"),
    ] {
        let refused = try_run("nbdinfo", &[&uri]).unwrap_err();
        assert!(!refused.contains("export-size"), "{refused}");
    }
    assert!(secure.rig.seen.lock().unwrap().is_empty());
    block_on(async {
        let plain = connect(secure.target(), None).await.unwrap_err();
        assert!(plain.to_string().contains("needs TLS"), "{plain}");
        let other = Authority::new();
        let stranger = secure.authority.client_tls(&other.client());
        // With TLS 1.3 a client hears of it with what it reads first.
        let refused = connect(secure.target(), Some(stranger)).await;
        assert!(matches!(refused, Err(ConnectError::Connect { .. })));
    });
}

#[test]
fn qemu_with_a_certificate_is_served() {
    let secure = Secure::new();
    let (port, dir) = (secure.rig.address.unwrap().port(), secure.rig.path("good"));
    let object = format!(
        "tls-creds-x509,id=t,endpoint=client,verify-peer=yes,dir={}",
        dir.display()
    );
    let image = format!("driver=nbd,host=localhost,port={port},export=disk,tls-creds=t");
    let io = [
        "--object",
        &object,
        "--image-opts",
        &image,
        "-c",
        "write -P 9 0 1M",
        "-c",
        "read -P 9 0 1M",
    ];
    let said = run("qemu-io", &io);
    assert!(!said.contains("verification failed"), "{said}");
    assert_eq!(
        fs::read(secure.rig.file()).unwrap()[..MIB as usize],
        vec![9; MIB as usize]
    );
    let info = ["info", "--object", &object, "--image-opts", &image];
    assert!(run("qemu-img", &info).contains("4 MiB"));
}

#[test]
fn our_client_is_known_by_its_certificate() {
    let secure = Secure::new();
    let identity = secure.authority.client();
    block_on(async {
        let tls = secure.authority.client_tls(&identity);
        let client = connect(secure.target(), Some(tls)).await.unwrap();
        let data = Bytes::from(pattern(3 << 20));
        client.write(1, data.clone(), true).await.unwrap();
        assert!(client.read(1, 3 << 20).await.unwrap()[..] == data[..]);
        let reads = (0..200).map(|n| client.read(n * 1000, 999));
        for read in futures::future::join_all(reads).await {
            assert_eq!(read.unwrap().len(), 999);
        }
    });
    let seen = secure.rig.seen.lock().unwrap();
    assert!(
        seen.iter()
            .all(|peer| peer.certificate.as_ref() == Some(identity.certificate()))
    );
}

#[test]
fn a_server_of_another_authority_is_not_believed() {
    let secure = Secure::new();
    let other = Authority::new();
    block_on(async {
        let tls = other.client_tls(&secure.authority.client());
        let refused = connect(secure.target(), Some(tls)).await;
        assert!(matches!(refused, Err(ConnectError::Connect { .. })));
    });
}

/// nbdkit and qemu-nbd with certificates, and our client.
#[test]
fn foreign_servers_with_tls_are_used() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let identity = authority.client();
    authority.files(dir.path(), &identity);
    let file = dir.path().join("file");
    fs::write(&file, vec![0; 4 << 20]).unwrap();
    let certificates = format!("--tls-certificates={}", dir.path().display());
    let creds = format!(
        "tls-creds-x509,id=t,endpoint=server,verify-peer=yes,dir={}",
        dir.path().display()
    );
    let used = |name: &str, args: &[&str], socket: &Path| {
        let _server = foreign(name, args, socket);
        block_on(async {
            let target = || Target::Unix(socket.to_owned());
            let tls = authority.client_tls(&identity);
            let client = connect(target(), Some(tls)).await.unwrap();
            client
                .write(4096, Bytes::from(pattern(100_000)), true)
                .await
                .unwrap();
            assert!(client.read(4096, 100_000).await.unwrap()[..] == pattern(100_000));
            let plain = connect(target(), None).await.unwrap_err();
            assert!(plain.to_string().contains("needs TLS"), "{name}: {plain}");
        });
    };
    let socket = dir.path().join("nbdkit");
    let place = socket.to_str().unwrap();
    let kit = [
        "-f",
        "-U",
        place,
        "--tls=require",
        &certificates,
        "--tls-verify-peer",
        "memory",
        "4M",
    ];
    used("nbdkit", &kit, &socket);
    let socket = dir.path().join("qemu");
    let place = socket.to_str().unwrap();
    let path = file.to_str().unwrap();
    let qemu = [
        "-f",
        "raw",
        "-t",
        "-e",
        "4",
        "--object",
        &creds,
        "--tls-creds",
        "t",
        "-k",
        place,
        path,
    ];
    used("qemu-nbd", &qemu, &socket);
    let socket = dir.path().join("plain");
    let place = socket.to_str().unwrap();
    let _server = foreign("nbdkit", &["-f", "-U", place, "memory", "4M"], &socket);
    block_on(async {
        let tls = authority.client_tls(&identity);
        let none = connect(Target::Unix(socket), Some(tls)).await.unwrap_err();
        assert!(none.to_string().contains("does not start TLS"), "{none}");
    });
}

/// What a machine in between says before TLS is not taken for the client's.
#[test]
fn bytes_behind_starttls_are_not_taken_in_the_clear() {
    let authority = Authority::new();
    let rig = Rig::with(MIB, settings(), Some(authority.server_tls()));
    let mut stream = std::net::TcpStream::connect(rig.address.unwrap()).unwrap();
    let options = [
        nbd::wire::OptionRequest::StartTls,
        nbd::wire::OptionRequest::List,
    ];
    let mut bytes = vec![0, 0, 0, 3];
    bytes.extend(options.iter().flat_map(|option| option.encode()));
    std::io::Write::write_all(&mut stream, &bytes).unwrap();
    let mut said = Vec::new();
    // The end may come as a reset, as what was sent was not all read.
    drop(std::io::Read::read_to_end(&mut stream, &mut said));
    let clear = String::from_utf8_lossy(&said);
    assert!(!clear.contains("disk"), "{clear}");
}

#[test]
fn beyond_this_machine_nothing_is_served_without_tls() {
    for address in ["0.0.0.0:0", "[::]:0"] {
        let refused = block_on(async {
            let listener = Listener::Tcp(TcpListener::bind(address).await.unwrap());
            let exports = std::sync::Arc::new(Nothing);
            serve(listener, exports, None, settings(), std::future::pending()).await
        });
        assert!(matches!(refused, Err(ServeError::Unprotected { .. })));
    }
}

struct Nothing;

impl nbd_io::Exports for Nothing {
    type Device = crate::gate::Gate;

    async fn open(
        &self,
        _name: &str,
        _peer: &nbd_io::Peer,
    ) -> Option<nbd_io::Opened<Self::Device>> {
        None
    }

    async fn list(&self, _peer: &nbd_io::Peer) -> Vec<nbd::Listed> {
        Vec::new()
    }
}
