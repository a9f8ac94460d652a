//! The endpoint, asked by plain TCP clients: well, badly, and by many at once.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use evpn::{Config, PeerConfig, Policy, Role, Timing};
use metrics::{Page, Source, of_speaker, serve};
use model::Asn;
use speaker::{Peer, SpeakerConfig, SpeakerHandle};
use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use testkit::eventually;
use tokio::runtime::Runtime;

const LIMIT: Duration = Duration::from_secs(30);
const GOOD: &[u8] = b"GET /metrics HTTP/1.1\r\nHost: test\r\n\r\n";

/// An address of this process alone, so that several can run this at a time.
fn own(last: u8) -> IpAddr {
    let [_, _, high, low] = std::process::id().to_be_bytes();
    Ipv4Addr::new(127, 64 | (last & 0x3f), high, low).into()
}

/// Counts how many pages were made.
struct Counting(Arc<AtomicU64>);

impl Source for Counting {
    async fn page(&self) -> Page {
        let count = self.0.fetch_add(1, Ordering::Relaxed);
        let mut page = Page::default();
        page.counter("pages", "Pages.", [(vec![], count)]);
        page
    }
}

fn endpoint(last: u8) -> (Runtime, SocketAddr, Arc<AtomicU64>) {
    let runtime = Runtime::new().unwrap();
    let address = SocketAddr::new(own(last), 9476);
    let pages = Arc::new(AtomicU64::new(0));
    runtime.spawn(serve(address, Counting(Arc::clone(&pages))));
    eventually("the endpoint", LIMIT, || ask(address, GOOD));
    (runtime, address, pages)
}

fn connect(address: SocketAddr) -> Result<TcpStream, String> {
    let stream = TcpStream::connect(address).map_err(|error| error.to_string())?;
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream.set_write_timeout(Some(LIMIT)).unwrap();
    Ok(stream)
}

/// All that is answered until the other end closes.
fn ask(address: SocketAddr, request: &[u8]) -> Result<String, String> {
    let mut stream = connect(address)?;
    // What is refused half-way through is no failure of this.
    stream.write_all(request).ok();
    Ok(read(&mut stream))
}

fn read(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    if let Err(error) = stream.read_to_end(&mut answer) {
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
    }
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn questions_have_their_answers() {
    let (_runtime, address, _) = endpoint(1);
    let answer = ask(address, GOOD).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    let kind = "content-type: application/openmetrics-text; version=1.0.0; charset=utf-8";
    assert!(head.contains(kind), "{head}");
    let text = "# HELP pages Pages.\n# TYPE pages counter\npages_total 0\n# EOF\n";
    assert_eq!(body, text);

    let first_line = |request: &str| {
        let request = format!("{request} HTTP/1.1\r\nHost: test\r\n\r\n");
        let answer = ask(address, request.as_bytes()).unwrap();
        answer.lines().next().unwrap_or_default().to_owned()
    };
    assert_eq!(first_line("GET /"), "HTTP/1.1 404 Not Found");
    assert_eq!(
        first_line("POST /metrics"),
        "HTTP/1.1 405 Method Not Allowed"
    );
    assert_eq!(first_line("GET /metrics?name=x"), "HTTP/1.1 200 OK");
    let head = ask(address, b"HEAD /metrics HTTP/1.1\r\nHost: test\r\n\r\n").unwrap();
    assert!(head.ends_with("\r\n\r\n"), "{head}");
}

#[test]
fn nonsense_is_refused_and_forgotten() {
    let (_runtime, address, _) = endpoint(2);
    let long_line = [b"GET /".as_slice(), &[b'a'; 1 << 20]].concat();
    let headers: String = (0..10_000).map(|n| format!("h{n}: x\r\n")).collect();
    let many_headers = format!("GET /metrics HTTP/1.1\r\n{headers}\r\n");
    let body = format!("POST /metrics HTTP/1.1\r\nContent-Length: 999999999\r\n\r\n{headers}");
    let noise: Vec<u8> = (0..65_536_u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    for garbage in [
        b"\0\0\0\0\r\n\r\n".as_slice(),
        b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\nzz\r\n",
        &long_line,
        many_headers.as_bytes(),
        body.as_bytes(),
        &noise,
    ] {
        let answer = ask(address, garbage).unwrap();
        let line = answer.lines().next().unwrap_or_default();
        let start = String::from_utf8_lossy(&garbage[..garbage.len().min(40)]).into_owned();
        let page =
            line.contains(" 200 ") && !start.starts_with("GET /metrics HTTP/1.1\r\nTransfer");
        assert!(!page, "{start:?}: {line}");
        let answer = ask(address, GOOD).unwrap();
        assert!(answer.ends_with("# EOF\n"), "after {start:?}: {answer}");
    }
}

#[test]
fn who_holds_connections_keeps_nobody_out() {
    let (_runtime, address, _) = endpoint(3);
    let mut idle: Vec<TcpStream> = (0..300).map(|_| connect(address).unwrap()).collect();
    for half in &mut idle {
        // The older ones are closed by now.
        half.write_all(b"GET /metrics HTTP/1.1\r\nHost: ").ok();
    }
    let asked = Instant::now();
    let answer = ask(address, GOOD).unwrap();
    assert!(answer.ends_with("# EOF\n"), "{answer}");
    assert!(
        asked.elapsed() < Duration::from_secs(3),
        "{:?}",
        asked.elapsed()
    );
    // All of them are let go, though not one ever says more; the last when their time is over.
    for stream in &mut idle {
        assert!(!read(stream).contains(" 200 "));
    }
}

#[test]
fn asking_often_makes_no_more_pages() {
    let (_runtime, address, pages) = endpoint(4);
    let start = Instant::now();
    for _ in 0..200 {
        assert!(ask(address, GOOD).unwrap().ends_with("# EOF\n"));
    }
    let seconds = start.elapsed().as_secs();
    let made = pages.load(Ordering::Relaxed);
    assert!(made <= seconds + 2, "{made} pages in {seconds} s");
}

#[test]
fn a_port_that_is_taken_is_had_when_it_is_free() {
    let address = SocketAddr::new(own(5), 9476);
    let holder = std::net::TcpListener::bind(address).unwrap();
    let runtime = Runtime::new().unwrap();
    runtime.spawn(serve(address, Counting(Arc::default())));
    let refused = std::net::TcpListener::bind(address).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::AddrInUse);
    drop(holder);
    eventually("the endpoint", LIMIT, || ask(address, GOOD));
}

/// Tells of a speaker.
struct Speaking(SpeakerHandle);

impl Source for Speaking {
    async fn page(&self) -> Page {
        let mut page = Page::default();
        page.build_info("server", "0.0.0");
        of_speaker(&mut page, &self.0).await;
        page
    }
}

fn config(address: IpAddr, role: Role, listen: bool) -> SpeakerConfig {
    let IpAddr::V4(router_id) = address else {
        unreachable!("addresses of this test are IPv4")
    };
    let bgp = Config {
        router_id,
        asn: Asn::new(65_000).unwrap(),
        role,
        cluster_id: None,
        forwarding_preserved: false,
        timing: Timing::default(),
        policy: Policy::default(),
        seed: 1,
    };
    SpeakerConfig {
        bgp,
        local_address: Some(address),
        listen: listen
            .then_some(SocketAddr::new(address, 0))
            .into_iter()
            .collect(),
    }
}

#[test]
fn a_session_is_seen_to_come_and_go() {
    let runtime = Runtime::new().unwrap();
    let (reflector, client) = (own(6), own(7));
    let address = SocketAddr::new(reflector, 9475);
    let (handle, other) = runtime.block_on(async {
        let handle = SpeakerHandle::start(config(reflector, Role::Reflector, true))
            .await
            .unwrap();
        let peers = BTreeMap::from([(client, Peer::new(PeerConfig::CLIENT))]);
        handle.set_peers(peers).await.unwrap();
        let other = SpeakerHandle::start(config(client, Role::Vtep, false))
            .await
            .unwrap();
        let mut peer = Peer::new(PeerConfig::REFLECTOR);
        peer.port = handle.listening()[0].port();
        other
            .set_peers(BTreeMap::from([(reflector, peer)]))
            .await
            .unwrap();
        (handle, other)
    });
    runtime.spawn(serve(address, Speaking(handle.clone())));
    let page_with = |lines: &[String]| {
        eventually("the page", LIMIT, || {
            let page = ask(address, GOOD)?;
            let held = |line: &String| page.lines().any(|held| held == line);
            if lines.iter().all(held) {
                Ok(page)
            } else {
                Err(page)
            }
        })
    };
    let line = |name: &str, labels: &str, value: u64| {
        format!("{name}{{peer=\"{client}\"{labels}}} {value}")
    };
    page_with(&[
        line("vpc_bgp_peer_up", "", 1),
        line("vpc_bgp_peer_state", ",state=\"established\"", 1),
        line("vpc_bgp_peer_state", ",state=\"idle\"", 0),
        line("vpc_bgp_peer_routes", ",kind=\"all\"", 0),
        line("vpc_bgp_sessions_total", "", 1),
        line(
            "vpc_bgp_messages_total",
            ",direction=\"in\",type=\"open\"",
            1,
        ),
        line(
            "vpc_bgp_messages_total",
            ",direction=\"out\",type=\"open\"",
            1,
        ),
        line("vpc_bgp_treated_as_withdraw_total", "", 0),
        "vpc_build_info{component=\"server\",version=\"0.0.0\"} 1".to_owned(),
        "vpc_evpn_routes{type=\"2\"} 0".to_owned(),
        "vpc_evpn_alerts{kind=\"duplicate-vtep\"} 0".to_owned(),
    ]);
    runtime
        .block_on(other.stop(evpn::StopKind::Withdraw))
        .unwrap();
    page_with(&[
        line("vpc_bgp_peer_up", "", 0),
        line("vpc_bgp_peer_state", ",state=\"established\"", 0),
        line(
            "vpc_bgp_messages_total",
            ",direction=\"in\",type=\"notification\"",
            1,
        ),
    ]);
    runtime
        .block_on(handle.stop(evpn::StopKind::Restart))
        .unwrap();
    let gone = eventually("a page without the speaker", LIMIT, || {
        let page = ask(address, GOOD)?;
        if page.contains("vpc_bgp") {
            Err(page)
        } else {
            Ok(page)
        }
    });
    assert!(gone.contains("vpc_build_info"), "{gone}");
}
