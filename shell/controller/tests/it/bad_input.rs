//! What nobody should send.

use crate::cluster::{Cluster, Place, account, get, nic, refused, subnet, vpc};
use api::tonic::Code;
use api::{tls, v1};
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

pub(crate) async fn bad_fields_are_named(place: Place) {
    let cluster = Cluster::start(place).await;
    cluster.join("c1", 11).await;
    cluster.furnish().await;
    let mut admin = cluster.admin.clone();
    let invalid = Code::InvalidArgument;
    for (cidr, text) in [
        ("10.4.1.7/16", "did you mean 10.4.0.0/16"),
        ("10.4.0.0/33", "cidrs[0]"),
        ("", "cidrs[0]"),
        ("224.0.0.0/8", "multicast"),
        ("127.0.0.0/8", "loopback"),
        ("10.0.0.0/31", "10.0.0.0/31"),
    ] {
        refused(admin.create_vpc(vpc("bad", cidr)).await, invalid, text);
    }
    for (name, text) in [
        ("", "name: "),
        ("Blue", "name: "),
        (&"x".repeat(64), "name: "),
        (&"x".repeat(300), "limit is 255"),
    ] {
        refused(
            admin.create_vpc(vpc(name, "10.4.0.0/16")).await,
            invalid,
            text,
        );
    }
    let base = || subnet("blue", "db", "10.4.16.0/24");
    type Spoil = fn(v1::CreateSubnetRequest) -> v1::CreateSubnetRequest;
    let bad_subnets: [(Spoil, &str); 7] = [
        (|s| v1::CreateSubnetRequest { vlan: 4095, ..s }, "vlan"),
        (
            |s| v1::CreateSubnetRequest {
                vlan: 65_536 + 7,
                ..s
            },
            "vlan",
        ),
        (|s| v1::CreateSubnetRequest { vni: 1 << 24, ..s }, "vni"),
        (|s| v1::CreateSubnetRequest { mtu: 1451, ..s }, "1450"),
        (|s| v1::CreateSubnetRequest { mtu: 70_000, ..s }, "mtu"),
        (
            |s| v1::CreateSubnetRequest {
                cidrs: vec!["10.4.0.0/24".into()],
                ..s
            },
            "overlaps",
        ),
        (
            |s| v1::CreateSubnetRequest {
                cidrs: vec!["10.9.0.0/24".into()],
                ..s
            },
            "not inside",
        ),
    ];
    for (spoil, text) in bad_subnets {
        refused(admin.create_subnet(spoil(base())).await, invalid, text);
    }
    cluster.nic("a1", "c1").await;
    let first = cluster.get_nic("a1").await;
    let base = || nic("blue/web", "a2", "c1");
    let with = |mac: &str, address: &str| v1::CreateNicRequest {
        mac: mac.to_owned(),
        addresses: [address]
            .iter()
            .filter(|a| !a.is_empty())
            .map(|a| (*a).to_owned())
            .collect(),
        ..base()
    };
    for (request, code, text) in [
        (with("01:00:5e:00:00:01", ""), invalid, "group address"),
        (with("nonsense", ""), invalid, "mac"),
        (with(&first.mac, ""), Code::AlreadyExists, "a1"),
        (with("", &first.addresses[0]), Code::AlreadyExists, "a1"),
        (with("", "10.4.0.1"), invalid, "gateway"),
        (with("", "10.9.0.1"), invalid, "not inside"),
        (
            v1::CreateNicRequest {
                host: None,
                ..base()
            },
            invalid,
            "host: it is missing",
        ),
        (
            v1::CreateNicRequest {
                attachment: None,
                ..base()
            },
            invalid,
            "attachment: it is missing",
        ),
        (
            nic("blue/web", "a2", "nobody"),
            Code::NotFound,
            "there is no host nobody",
        ),
        (nic("blue/nowhere", "a2", "c1"), Code::NotFound, "nowhere"),
    ] {
        refused(admin.create_nic(request).await, code, text);
    }
    use v1::attachment::{Existing, Kind};
    let long = v1::CreateNicRequest {
        attachment: Some(v1::Attachment {
            kind: Some(Kind::Existing(Existing {
                ifname: "0123456789abcdef".to_owned(),
            })),
        }),
        ..base()
    };
    refused(
        admin.create_nic(long).await,
        invalid,
        "attachment.existing.ifname",
    );
    let nothing = v1::GetRequest { object: None };
    refused(
        admin.get_vpc(nothing).await,
        invalid,
        "object: it is missing",
    );
}

pub(crate) async fn large_messages_are_refused(place: Place) {
    let cluster = Cluster::start(place).await;
    let mut admin = cluster.admin.clone();
    let huge = admin.create_account(account(&"x".repeat(5 << 20))).await;
    refused(huge, Code::OutOfRange, "");
    let agent = cluster.join("c1", 11).await;
    let mut stream = agent.connect().await;
    let report = v1::HostReport {
        agent_version: "x".repeat(5 << 20),
        ..Default::default()
    };
    stream.reports.send(report).await.unwrap();
    loop {
        match stream.updates.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the stream ended as if all were well"),
            Err(status) => {
                assert_eq!(status.code(), Code::OutOfRange, "{status}");
                break;
            }
        }
    }
    admin.get_account(get("default")).await.unwrap();
}

pub(crate) async fn garbage_harms_nobody(place: Place) {
    let cluster = Cluster::start(place).await;
    let address = cluster.server.address();
    let connector = TlsConnector::from(Arc::new(cluster.credential().tls().unwrap()));

    // Where a handshake belongs.
    let mut tcp = TcpStream::connect(address).await.unwrap();
    tcp.write_all(&[0xff; 600]).await.unwrap();
    let mut rest = Vec::new();
    // Reset or closed: both will do.
    drop(tcp.read_to_end(&mut rest).await);

    // Where HTTP/2 belongs.
    let tcp = TcpStream::connect(address).await.unwrap();
    let mut stream = connector.connect(tls::server_name(), tcp).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    drop(stream.read_to_end(&mut rest).await);
    let tcp = TcpStream::connect(address).await.unwrap();
    let mut stream = connector.connect(tls::server_name(), tcp).await.unwrap();
    stream
        .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        .await
        .unwrap();
    stream.write_all(&[0xa5; 20_000]).await.unwrap();
    drop(stream.read_to_end(&mut rest).await);

    // Where a message belongs: the same bytes to every method, which are none of its messages.
    let channel = api::connect(&cluster.credential()).await.unwrap();
    for method in [
        "Management/CreateVpc",
        "Management/ListNics",
        "Management/Watch",
        "Enrollment/Join",
        "HostSync/RenewCertificate",
    ] {
        let status = raw_call(channel.clone(), method, &[0xff; 300])
            .await
            .unwrap_err();
        assert!(
            matches!(status.code(), Code::Internal | Code::InvalidArgument),
            "{method}: {status}"
        );
    }
    let unknown = raw_call(channel.clone(), "Management/NoSuchThing", &[]).await;
    assert_eq!(unknown.unwrap_err().code(), Code::Unimplemented);
    cluster
        .admin
        .clone()
        .get_account(get("default"))
        .await
        .unwrap();
}

async fn raw_call(
    channel: api::tonic::transport::Channel,
    method: &str,
    bytes: &'static [u8],
) -> Result<(), api::tonic::Status> {
    let mut client = api::tonic::client::Grpc::new(channel);
    client.ready().await.unwrap();
    let path = format!("/vpc.v1.{method}").parse().unwrap();
    client
        .unary(api::tonic::Request::new(bytes), path, Raw)
        .await
        .map(|_| ())
}

/// Bytes as they are.
struct Raw;

impl api::tonic::codec::Codec for Raw {
    type Encode = &'static [u8];
    type Decode = ();
    type Encoder = Raw;
    type Decoder = Raw;
    fn encoder(&mut self) -> Raw {
        Raw
    }
    fn decoder(&mut self) -> Raw {
        Raw
    }
}

impl api::tonic::codec::Encoder for Raw {
    type Item = &'static [u8];
    type Error = api::tonic::Status;
    fn encode(
        &mut self,
        item: &'static [u8],
        to: &mut api::tonic::codec::EncodeBuf<'_>,
    ) -> Result<(), api::tonic::Status> {
        bytes::BufMut::put_slice(to, item);
        Ok(())
    }
}

impl api::tonic::codec::Decoder for Raw {
    type Item = ();
    type Error = api::tonic::Status;
    fn decode(
        &mut self,
        from: &mut api::tonic::codec::DecodeBuf<'_>,
    ) -> Result<Option<()>, api::tonic::Status> {
        let left = bytes::Buf::remaining(from);
        bytes::Buf::advance(from, left);
        Ok(Some(()))
    }
}
