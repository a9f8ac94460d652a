//! Peers that are none, or say what cannot be.

use crate::rig::{CLUSTER, DEADLINE, MIB, Rig, contents, credential};
use api::Credential;
use api::pki::Authority;
use model::{HostId, STORAGE_PORT};
use replication::wire::{HELLO_BYTES, Hello};
use sha2::{Digest, Sha256};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

fn id(host: HostId) -> replication::HostId {
    replication::HostId(u128::from(host.bits()))
}

fn cluster(name: &str) -> u128 {
    let hash: [u8; 32] = Sha256::digest(name.as_bytes()).into();
    u128::from_be_bytes(hash[..16].try_into().unwrap())
}

/// Calls a host with somebody's certificate.
async fn call(rig: &Rig, file: &Path, host: usize) -> Result<TlsStream<TcpStream>, String> {
    let mut config = Credential::load(file)
        .unwrap()
        .peer_tls(rig.hosts[host].id)
        .unwrap();
    config.alpn_protocols = vec![b"vpc-sbs/1".to_vec()];
    let address = SocketAddr::new(rig.hosts[host].address, STORAGE_PORT);
    let stream = TcpStream::connect(address)
        .await
        .map_err(|e| e.to_string())?;
    let connector = TlsConnector::from(Arc::new(config));
    connector
        .connect(api::tls::server_name(), stream)
        .await
        .map_err(|e| e.to_string())
}

/// Everything that the other side says until it ends.
async fn rest(stream: &mut TlsStream<TcpStream>) -> Vec<u8> {
    let mut said = Vec::new();
    let read = timeout(DEADLINE, stream.read_to_end(&mut said)).await;
    // A connection that is reset has ended too.
    drop(read.expect("it ends"));
    said
}

fn served(rig: &Rig) {
    let client = rig.client(&rig.wait_attached(0, 0));
    rig.runtime
        .block_on(client.write(0, contents(5), false))
        .unwrap();
}

fn ready() -> Rig {
    let mut rig = Rig::new(2);
    rig.create("data", 8 * MIB, &[0, 1]);
    rig.attach(0, 0, 1);
    rig
}

#[test]
fn who_has_no_certificate_of_a_host_of_the_cluster_is_not_heard() {
    let rig = ready();
    let stranger = rig.path().join("stranger.toml");
    credential(
        &Authority::create(CLUSTER).unwrap(),
        HostId::from_random(5),
        &stranger,
    );
    rig.runtime.block_on(async {
        // Of another authority with the same name: neither believes the other.
        assert!(call(&rig, &stranger, 0).await.is_err());
        // Plain text, and nothing at all.
        let address = SocketAddr::new(rig.hosts[0].address, STORAGE_PORT);
        let mut plain = TcpStream::connect(address).await.unwrap();
        plain.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        let mut answer = Vec::new();
        drop(
            timeout(DEADLINE, plain.read_to_end(&mut answer))
                .await
                .expect("it ends"),
        );
    });
    // An administrator of this cluster.
    let admin = rig.path().join("admin.toml");
    let (issued, key) = rig.authority.issue_admin("root", DEADLINE).unwrap();
    let credential = Credential::new(
        vec!["127.0.0.1:1".to_owned()],
        rig.authority.certificate_pem().to_owned(),
        api::chain_pem(&issued.chain),
        key,
    );
    credential.save(&admin).unwrap();
    rig.runtime.block_on(async {
        if let Ok(mut stream) = call(&rig, &admin, 0).await {
            assert!(rest(&mut stream).await.is_empty());
        }
    });
    // It may be written a moment after the connection ended.
    testkit::eventually("it is told of", DEADLINE, || {
        let log = rig.log(0);
        let told = log.contains("of no host of this cluster");
        told.then_some(()).ok_or(log)
    });
    served(&rig);
}

#[test]
fn hellos_that_do_not_agree_and_frames_that_are_none_end_the_connection() {
    let rig = ready();
    let file = rig.hosts[1].dir.join("host.toml");
    let (from, to) = (id(rig.hosts[1].id), id(rig.hosts[0].id));
    let good = Hello::ours(cluster(CLUSTER), from, to);
    let mut damaged = good.encode();
    damaged[20] ^= 1;
    let bad = [
        Hello { cluster: 7, ..good }.encode(),
        Hello {
            from: replication::HostId(9),
            ..good
        }
        .encode(),
        Hello {
            to: replication::HostId(9),
            ..good
        }
        .encode(),
        Hello {
            versions: (7, 9),
            ..good
        }
        .encode(),
        Hello {
            needed: 1 << 40,
            ..good
        }
        .encode(),
        damaged,
    ];
    rig.runtime.block_on(async {
        for hello in &bad {
            let mut stream = call(&rig, &file, 0).await.unwrap();
            stream.write_all(hello).await.unwrap();
            // Its own hello comes all the same, so that both can tell.
            assert_eq!(rest(&mut stream).await.len(), HELLO_BYTES);
        }
        for frame in [vec![0; 32], vec![0xff; 4096], b"vpRF".repeat(64)] {
            let mut stream = call(&rig, &file, 0).await.unwrap();
            stream.write_all(&good.encode()).await.unwrap();
            stream.write_all(&frame).await.unwrap();
            assert_eq!(rest(&mut stream).await.len(), HELLO_BYTES);
        }
    });
    for why in [
        "the peer is of cluster",
        "and not",
        "the peer reads versions 7 to 9",
        "lack features",
        "hello of a frame does not match its checksum",
        "no frame begins here",
    ] {
        assert!(rig.log(0).contains(why), "{why}: {}", rig.log(0));
    }
    served(&rig);
}

#[test]
fn what_goes_between_hosts_cannot_be_read_on_the_way() {
    let rig = ready();
    let file = rig.hosts[1].dir.join("host.toml");
    rig.runtime.block_on(async {
        let stream = call(&rig, &file, 0).await.unwrap();
        let (_, tls) = stream.get_ref();
        assert_eq!(
            tls.protocol_version(),
            Some(rustls::ProtocolVersion::TLSv1_3)
        );
        assert_eq!(tls.alpn_protocol(), Some(&b"vpc-sbs/1"[..]));
    });
    served(&rig);
}
