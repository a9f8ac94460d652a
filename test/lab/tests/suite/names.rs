//! Names and metadata at routers: asked by `dig`, `curl` and cloud-init inside of workloads.

use lab::Lab;

/// Two VPCs with the same addresses, each with a router.
fn lab() -> Lab {
    let lab = Lab::up_with(&["--hosts", "m1,c1,r1"]);
    for vpc in ["blue", "red"] {
        lab.admin(&format!(
            "create {vpc} --cidr 10.4.0.0/16 --cidr fd00:4::/48"
        ));
        for (subnet, net) in [("web", 1), ("db", 2)] {
            lab.admin(&format!(
                "subnet create {vpc}/{subnet} --cidr 10.4.{net}.0/24 --cidr fd00:4:0:{net}::/64"
            ));
        }
        lab.admin(&format!(
            "router create {vpc}/gw --subnet web --subnet db --wait"
        ));
    }
    nic(&lab, "blue/web/a1", 1, 11);
    nic(&lab, "blue/web/a2", 1, 12);
    nic(&lab, "blue/db/d1", 2, 11);
    nic(&lab, "red/web/a1", 1, 11);
    nic(&lab, "red/web/a9", 1, 12);
    lab
}

fn place(path: &str) -> String {
    format!("c1/{}", path.replace('/', "-"))
}

fn nic(lab: &Lab, path: &str, net: u8, number: u8) {
    nic_with(lab, path, net, number, "");
}

fn nic_with(lab: &Lab, path: &str, net: u8, number: u8, options: &str) {
    let netns = path.replace('/', "-");
    lab.admin(&format!(
        "nic create {path} --host c1 --attach netns:{netns} --ip 10.4.{net}.{number} \
         --ip fd00:4:0:{net}::{number} --wait {options}"
    ));
    lab.sh(
        &place(path),
        &format!(
            "ip route replace default via 10.4.{net}.1 && ip route replace default via fd00:4:0:{net}::1"
        ),
    );
}

/// What `dig` prints of an answer, once there is one.
fn dig(lab: &Lab, from: &str, question: &str) -> String {
    lab.eventually(&format!("{from}: dig {question}"), || {
        let line = format!("dig +tries=1 +time=5 +noall +comments +answer +authority {question}");
        let output = lab.try_sh(&place(from), &line);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        match output.status.success() && text.contains("status:") {
            true => Ok(text),
            false => Err(text),
        }
    })
}

fn short(lab: &Lab, from: &str, question: &str) -> Vec<String> {
    let text = dig(lab, from, question);
    assert!(text.contains("status: NOERROR"), "{question}: {text}");
    let records = text.lines().filter(|line| !line.starts_with(';'));
    let data = records.filter_map(|line| Some(line.split_whitespace().last()?.to_owned()));
    data.collect()
}

#[test]
fn routers_answer_for_the_names_of_their_vpc_alone() {
    let lab = lab();
    let at = "@10.4.1.1";
    for (how, server) in [
        ("", at),
        ("+tcp", at),
        ("+noedns", at),
        ("+bufsize=512", at),
        ("", "@fd00:4:0:1::1"),
        ("+tcp", "@fd00:4:0:1::1"),
    ] {
        let ask = |name: &str| short(&lab, "blue/web/a1", &format!("{server} {how} {name}"));
        assert_eq!(
            ask("a2.web.blue.internal A"),
            ["10.4.1.12"],
            "{how} {server}"
        );
        assert_eq!(ask("A2.WEB.blue.internal AAAA"), ["fd00:4:0:1::12"]);
        assert_eq!(ask("d1.db.blue.internal"), ["10.4.2.11"]);
        assert_eq!(ask("-x 10.4.2.11"), ["d1.db.blue.internal."]);
        assert_eq!(ask("-x fd00:4:0:1::12"), ["a2.web.blue.internal."]);
    }
    let denied = dig(&lab, "blue/web/a1", &format!("{at} a1.web.red.internal"));
    assert!(denied.contains("status: NXDOMAIN"), "{denied}");
    assert!(denied.contains("SOA"), "{denied}");
    let edns = dig(&lab, "blue/web/a1", &format!("{at} a2.web.blue.internal"));
    assert!(edns.contains("EDNS: version: 0"), "{edns}");
    assert!(edns.contains(" aa "), "{edns}");
    // The same address is somebody else in the other VPC.
    let other = |question: &str| short(&lab, "red/web/a1", &format!("{at} {question}"));
    assert_eq!(other("-x 10.4.1.12"), ["a9.web.red.internal."]);
    assert_eq!(other("a9.web.red.internal"), ["10.4.1.12"]);
    let denied = dig(&lab, "red/web/a1", &format!("{at} a2.web.blue.internal"));
    assert!(denied.contains("status: NXDOMAIN"), "{denied}");
    // A new NIC is known soon, one that went no more.
    nic(&lab, "blue/web/new", 1, 13);
    lab.eventually("the new name is known", || {
        let text = dig(&lab, "blue/web/a1", &format!("{at} new.web.blue.internal"));
        text.contains("10.4.1.13").then_some(()).ok_or(text)
    });
    lab.admin("nic delete blue/web/new --wait");
    lab.eventually("the old name is gone", || {
        let text = dig(&lab, "blue/web/a1", &format!("{at} new.web.blue.internal"));
        text.contains("NXDOMAIN").then_some(()).ok_or(text)
    });
    // Each leg answers its own subnet only, and nothing else is open.
    let closed = "dig +tries=1 +time=1 @10.4.2.1 a2.web.blue.internal";
    assert!(!lab.try_sh(&place("blue/web/a1"), closed).status.success());
    let closed = "timeout 1 bash -c '</dev/tcp/10.4.1.1/80'";
    assert!(!lab.try_sh(&place("blue/web/a1"), closed).status.success());
    // The server is not needed, and neither is the agent's memory.
    lab.kill("m1", "server");
    lab.kill("r1", "agent");
    lab.start("r1", "agent");
    assert_eq!(
        short(&lab, "blue/web/a1", &format!("{at} a2.web.blue.internal")),
        ["10.4.1.12"]
    );
}

/// Answers everything with one address and one text; `big.test` with more than a datagram holds.
const RESOLVER: &str = r#"
import socket, struct, threading, sys
def reply(q, tcp):
    end = 12
    while q[end]: end += q[end] + 1
    question = q[12:end + 5]
    kind = struct.unpack('>H', q[end + 1:end + 3])[0]
    big = q[13:16].lower() == b'big'
    if big and not tcp:
        return q[:2] + b'\x83\x80' + struct.pack('>4H', 1, 0, 0, 0) + question
    count = 200 if big else 1
    answer = b'\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x3c\x00\x04\xcb\x00\x71\x07'
    return q[:2] + b'\x81\x80' + struct.pack('>4H', 1, count, 0, 0) + question + answer * count
def udp():
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind((sys.argv[1], 5353))
    while True:
        q, who = s.recvfrom(4096)
        if b'lost' in q: continue
        wrong = bytearray(reply(q, False)); wrong[0] ^= 255
        s.sendto(bytes(wrong), who)
        s.sendto(reply(q, False), who)
def tcp():
    s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind((sys.argv[1], 5353)); s.listen()
    while True:
        c, _ = s.accept()
        n = struct.unpack('>H', c.recv(2))[0]
        r = reply(c.recv(n), True)
        c.sendall(struct.pack('>H', len(r)) + r); c.close()
threading.Thread(target=tcp, daemon=True).start()
print('ready', flush=True)
udp()
"#;

/// A resolver on the management host, at its address on the underlay.
fn resolver(lab: &Lab) -> (std::process::Child, String) {
    let hosts = lab.json("m1", "ip -j -4 address show scope global");
    let addresses = hosts.as_array().into_iter().flatten();
    let mut addresses = addresses.filter_map(|link| link["addr_info"][0]["local"].as_str());
    let address = addresses.next().expect("m1 has an address").to_owned();
    let child = lab.spawn("m1", &["/usr/bin/python3", "-c", RESOLVER, &address]);
    (child, address)
}

/// Whom routers on r1 ask, from now on.
fn resolvers(lab: &Lab, list: &str) {
    lab.sh(
        "r1",
        &format!(
            "sed -i '/^resolvers/d; /^metrics/d' /etc/vpc/agent.toml && \
             sed -i '1i resolvers = [{list}]\\nmetrics = \"127.0.0.1:9476\"' /etc/vpc/agent.toml"
        ),
    );
    lab.stop("r1", "agent");
    lab.start("r1", "agent");
}

#[test]
fn other_names_are_asked_of_the_hosts_resolvers() {
    let lab = lab();
    let ask = |question: &str| dig(&lab, "blue/web/a1", &format!("@10.4.1.1 {question}"));
    resolvers(&lab, "");
    let nobody = ask("www.example.org");
    assert!(nobody.contains("status: REFUSED"), "{nobody}");
    let (mut child, address) = resolver(&lab);
    resolvers(&lab, &format!("\"{address}:5353\""));
    lab.eventually("a name of others is known", || {
        let text = ask("www.example.org");
        let is = text.contains("203.0.113.7") && text.contains("status: NOERROR");
        is.then_some(()).ok_or(text)
    });
    for how in ["+tcp", "+noedns"] {
        let text = ask(&format!("{how} www.example.org"));
        assert!(text.contains("203.0.113.7"), "{text}");
    }
    // Too long for a datagram: dig comes again by TCP.
    let big = ask("big.example.org");
    assert_eq!(big.matches("203.0.113.7").count(), 200, "{big}");
    // The resolver is not told what only the VPC knows.
    for own in [
        "gone.web.blue.internal",
        "nobody.internal",
        "-x 10.9.9.9",
        "printer.local",
    ] {
        let text = ask(own);
        assert!(text.contains("status: NXDOMAIN"), "{own}: {text}");
    }
    let lost = ask("lost.example.org");
    assert!(lost.contains("status: SERVFAIL"), "{lost}");
    // One that asks what nobody answers, as fast as it can, keeps nobody else from asking.
    let mut flood = lab.spawn(&place("blue/web/a2"), &["sh", "-c", FLOOD]);
    for round in 0..20 {
        let text = ask("www.example.org");
        assert!(text.contains("203.0.113.7"), "round {round}: {text}");
        let own = short(&lab, "blue/db/d1", "@10.4.2.1 a1.web.blue.internal");
        assert_eq!(own, ["10.4.1.11"], "round {round}");
    }
    drop(flood.kill());
    drop(flood.wait());
    // It is seen whose questions were too many: by the agent, and before it by the kernel.
    let flooding = lab.admin("nic show blue/web/a2");
    let flooding = flooding["id"].as_str().expect("an id");
    let figures = lab.sh("r1", "curl -s http://127.0.0.1:9476/metrics");
    let limited = |line: &&str| line.starts_with("vpc_router_questions_limited_total");
    let limited: Vec<&str> = figures.lines().filter(limited).collect();
    assert!(
        limited.len() == 1 && limited[0].contains(flooding),
        "{flooding}: {limited:?}"
    );
    let router = lab.admin("router show blue/gw");
    let router = router["id"].as_str().expect("an id");
    let kernel = lab.sh(
        "r1",
        &format!("ip netns exec r-{router} nft list counter inet vpc asked-too-often"),
    );
    assert!(!kernel.contains("packets 0 "), "{kernel}");
    drop(child.kill());
    drop(child.wait());
}

const FLOOD: &str = r#"exec /usr/bin/python3 -c "
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
q = b'\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x04lost\x07example\x00\x00\x01\x00\x01'
while True: s.sendto(q, ('10.4.1.1', 53))
""#;

const USER_DATA: &str = "#cloud-config\nfinal_message: told by the router\n";

/// Status and body of a request.
fn curl(lab: &Lab, from: &str, request: &str) -> (String, String) {
    let line = format!("curl -s -g --max-time 10 -w '\\n%{{http_code}}' {request}");
    let output = lab.try_sh(&place(from), &line);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (body, status) = text.rsplit_once('\n').unwrap_or(("", &text));
    (status.to_owned(), body.to_owned())
}

/// The same, once somebody answers.
fn curl_soon(lab: &Lab, from: &str, request: &str) -> (String, String) {
    lab.eventually(&format!("{from}: curl {request}"), || {
        let answer = curl(lab, from, request);
        match answer.0.as_str() {
            "000" | "" => Err(format!("{answer:?}")),
            _ => Ok(answer),
        }
    })
}

fn with_user_data(lab: &Lab, path: &str, number: u8) {
    lab.sh(
        "m1",
        &format!(
            "printf '{}' > /run/user-data",
            USER_DATA.replace('\n', "\\n")
        ),
    );
    nic_with(lab, path, 1, number, "--user-data /run/user-data");
}

#[test]
fn each_nic_is_told_of_itself_alone() {
    let lab = lab();
    with_user_data(&lab, "blue/web/told", 20);
    let shown = lab.admin("nic show blue/web/told");
    assert_eq!(shown["user_data_bytes"], USER_DATA.len());
    let id = shown["id"].as_str().expect("an id");
    let (ask, refused) = (
        "-X PUT -H 'X-aws-ec2-metadata-token-ttl-seconds: 600'",
        "401",
    );
    for at in ["169.254.169.254", "[fd00:ec2::254]"] {
        let from = "blue/web/told";
        let url = |path: &str| format!("http://{at}/{path}");
        let (status, token) = curl_soon(&lab, from, &format!("{ask} {}", url("latest/api/token")));
        assert_eq!(status, "200", "{token}");
        let header = format!("-H 'X-aws-ec2-metadata-token: {token}'");
        let read = |path: &str| {
            let (status, body) = curl(&lab, from, &format!("{header} {}", url(path)));
            assert_eq!(status, "200", "{path}: {body}");
            body
        };
        assert_eq!(read("latest/meta-data/instance-id"), id);
        assert_eq!(read("latest/meta-data/hostname"), "told.web.blue.internal");
        assert_eq!(read("latest/meta-data/local-ipv4"), "10.4.1.20");
        assert_eq!(read("latest/user-data"), USER_DATA);
        // Without a token, with another's, by way of a proxy, under another name.
        let path = "latest/meta-data/instance-id";
        assert_eq!(curl(&lab, from, &url(path)).0, refused);
        for other in ["blue/web/a1", "red/web/a1"] {
            let (status, _) = curl(&lab, other, &format!("{header} {}", url(path)));
            assert_eq!(status, refused, "{other}");
        }
        for lie in [
            "-H 'X-Forwarded-For: 10.4.1.11'",
            "-H 'Host: evil.example.org'",
        ] {
            let (status, _) = curl(&lab, from, &format!("{header} {lie} {}", url(path)));
            assert_eq!(status, "403", "{lie}");
        }
        let open = curl(&lab, from, &url("openstack/latest/user_data"));
        assert_eq!(open, ("200".to_owned(), USER_DATA.to_owned()));
        let none = curl(&lab, "blue/web/a1", &url("openstack/latest/user_data"));
        assert_eq!(none.0, "404");
    }
    // The one in the other VPC at the same address is another.
    let names = ["blue", "red"].map(|vpc| {
        let url = "http://169.254.169.254/openstack/latest/meta_data.json";
        let (_, body) = curl_soon(&lab, &format!("{vpc}/web/a1"), url);
        let meta: serde_json::Value = serde_json::from_str(&body).expect("it is JSON");
        meta["hostname"].as_str().unwrap_or_default().to_owned()
    });
    assert_eq!(names, ["a1.web.blue.internal", "a1.web.red.internal"]);
    // No router behind the NIC passes it on.
    let wire = lab.wire(&place("blue/web/a1"), "eth0");
    curl(
        &lab,
        "blue/web/a1",
        "http://169.254.169.254/openstack/latest/meta_data.json",
    );
    let frames = wire.until("the answer", b"a1.web.blue.internal");
    let from = |frame: &&Vec<u8>| frame[12..14] == [8, 0] && frame[26..30] == [169, 254, 169, 254];
    let hops: Vec<u8> = frames.iter().filter(from).map(|frame| frame[22]).collect();
    assert!(
        hops.len() >= 2 && hops.iter().all(|hops| *hops == 1),
        "{hops:?}"
    );
    // Too much, and nothing, are refused.
    lab.sh("m1", "head -c 16385 /dev/zero > /run/large; : > /run/empty");
    let create = "nic create blue/web/bad --host c1 --attach netns:bad --user-data";
    assert!(
        lab.refused(&format!("{create} /run/large"))
            .contains("more than 16384 bytes")
    );
    assert!(
        lab.refused(&format!("{create} /run/empty"))
            .contains("is empty")
    );
}

/// What cloud-init's own code makes of it: source, address.
const CLOUD_INIT: &str = r#"
import json, sys
from cloudinit import helpers
from cloudinit.sources import DataSourceEc2 as ec2, DataSourceOpenStack as openstack
kind, url = sys.argv[1:]
paths = helpers.Paths({'cloud_dir': '/run/cloud-dir', 'run_dir': '/run/cloud-run'})
config = {'metadata_urls': [url], 'max_wait': 60, 'timeout': 10, 'retries': 1}
if kind == 'ec2':
    # As the firmware of a machine would say.
    ec2.identify_platform = lambda: ec2.CloudNames.AWS
    source = ec2.DataSourceEc2({'datasource': {'Ec2': config}}, None, paths)
    found = source.crawl_metadata()
    found['token'] = bool(source._api_token)
else:
    source = openstack.DataSourceOpenStack({'datasource': {'OpenStack': config}}, None, paths)
    found = source._crawl_metadata()
    from cloudinit.sources.helpers import openstack as helper
    found['network'] = helper.convert_net_json(found['networkdata'], known_macs={sys.stdin.readline().strip(): 'eth0'})
print(json.dumps(found, default=lambda b: b.decode()))
"#;

#[test]
fn cloud_init_reads_it() {
    let lab = lab();
    with_user_data(&lab, "blue/web/told", 20);
    let shown = lab.admin("nic show blue/web/told");
    let mac = shown["mac"].as_str().expect("a MAC");
    curl_soon(&lab, "blue/web/told", "http://169.254.169.254/openstack");
    lab.sh(
        "c1",
        &format!("cat > /run/read.py <<'END'\n{CLOUD_INIT}\nEND"),
    );
    let read = |kind: &str, url: &str| {
        let line = format!("echo {mac} | /usr/bin/python3 /run/read.py {kind} {url}");
        lab.json(&place("blue/web/told"), &line)
    };
    for url in ["http://169.254.169.254", "'http://[fd00:ec2::254]'"] {
        let found = read("ec2", url);
        assert_eq!(found["token"], true, "{found}");
        assert_eq!(found["user-data"], USER_DATA);
        let told = &found["meta-data"];
        assert_eq!(told["instance-id"], shown["id"]);
        assert_eq!(told["local-hostname"], "told.web.blue.internal");
        let nic = &told["network"]["interfaces"]["macs"][mac];
        assert_eq!(nic["local-ipv4s"], "10.4.1.20", "{told}");
        assert_eq!(nic["subnet-id"], shown["subnet_id"]);
    }
    let found = read("openstack", "http://169.254.169.254");
    assert_eq!(found["userdata"], USER_DATA, "{found}");
    assert_eq!(found["metadata"]["instance-id"], shown["id"]);
    assert_eq!(
        found["metadata"]["local-hostname"],
        "told.web.blue.internal"
    );
    let eth0 = &found["network"]["config"][0];
    assert_eq!(
        (&eth0["name"], &eth0["mac_address"]),
        (&"eth0".into(), &mac.into())
    );
    assert_eq!(eth0["subnets"][0]["type"], "dhcp4", "{eth0}");
}
