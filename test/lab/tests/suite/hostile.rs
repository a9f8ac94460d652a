//! Garbage, strangers, wrong credentials, full disks and damaged files: each gets a clear error,
//! nobody else notices, and nothing that was accepted is lost.

use api::tonic::Code;
use api::v1;
use lab::client::path;
use lab::{Lab, Ping, difference, text_of};
use std::collections::BTreeSet;
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::Duration;

const SERVER: &str = "100.64.0.1:7443";
const BGP: &str = "100.64.0.1:179";

fn lab_with_a_pair() -> Lab {
    let lab = Lab::up();
    lab.admin("create blue --cidr 10.4.0.0/16");
    lab.admin("subnet create blue/web --cidr 10.4.1.0/24");
    lab.admin("nic create blue/web/a1 --host c1 --attach netns:a1 --ip 10.4.1.11 --wait");
    lab.admin("nic create blue/web/a2 --host c2 --attach netns:a2 --ip 10.4.1.12 --wait");
    lab.reaches("c1/a1", "10.4.1.12");
    lab
}

/// What a peer that means no good may send first.
fn garbage() -> Vec<Vec<u8>> {
    let noise: Vec<u8> = (0..65_536_u32)
        .map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()[0])
        .collect();
    let open_of_a_lie = [&[0xff; 16][..], &[0xff, 0xff, 1]].concat();
    let hello_of_a_lie = [
        &[0x16, 3, 1, 0xff, 0xff, 1, 0xff, 0xff, 0xff],
        &noise[..40_000],
    ]
    .concat();
    let mut h2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    h2.extend([0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1]);
    h2.extend(&noise);
    vec![
        Vec::new(),
        noise,
        vec![0; 1 << 20],
        open_of_a_lie,
        hello_of_a_lie,
        h2,
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
    ]
}

/// Says it and hears the other side out. That it hangs up in the middle is fine; that it goes on
/// listening for ever is not.
fn say(mut stream: impl Read + Write, bytes: &[u8]) {
    let said = stream.write_all(bytes);
    if said.is_err() || bytes.is_empty() {
        return;
    }
    let mut answer = [0; 4096];
    loop {
        match stream.read(&mut answer) {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                return;
            }
            Err(_) => return,
        }
    }
}

fn tcp(target: &str) -> std::io::Result<TcpStream> {
    let target: SocketAddr = target.parse().expect("an address");
    let stream = TcpStream::connect_timeout(&target, Duration::from_millis(300))?;
    stream.set_read_timeout(Some(Duration::from_millis(300)))?;
    stream.set_write_timeout(Some(Duration::from_millis(300)))?;
    Ok(stream)
}

fn log(lab: &Lab, name: &str) -> String {
    fs::read_to_string(lab.logs().join(format!("{name}.log"))).expect("the log is there")
}

/// When the daemons of a host started, as process ids.
fn daemons(lab: &Lab, host: &str) -> String {
    lab.sh(host, "pgrep -x vpc | sort | tr '\\n' ' '")
}

#[test]
fn garbage_on_the_bgp_port_disturbs_no_session() {
    let lab = lab_with_a_pair();
    let ping = Ping::start(&lab, "c1/a1", "10.4.1.12", Duration::from_millis(10));
    let before = daemons(&lab, "m1");
    // From an enrolled host, where a TCP segment without its signature is not even heard, and from
    // an address that nobody enrolled.
    let mut heard = 0;
    for bytes in garbage() {
        lab.in_network_of("c1", || {
            if let Ok(stream) = tcp(BGP) {
                heard += 1;
                say(stream, &bytes);
            }
        });
    }
    assert_eq!(
        heard, 0,
        "an unsigned connection from an enrolled address was taken"
    );
    let device = lab.sh(
        "r1",
        "ip -br address | awk '/100\\.64\\.0\\.4/ {print $1}' | cut -d@ -f1",
    );
    let device = device.trim();
    lab.sh("r1", &format!("ip address add 100.64.0.99/24 dev {device}"));
    lab.sh("r1", "ip route add 100.64.0.1/32 dev $(ip -br address | awk '/100\\.64\\.0\\.4/ {print $1}' | cut -d@ -f1) src 100.64.0.99");
    for bytes in garbage() {
        lab.in_network_of("r1", || {
            if let Ok(stream) = tcp(BGP) {
                say(stream, &bytes);
            }
        });
    }
    lab.sh("r1", "ip route del 100.64.0.1/32");
    lab.admin("nic create blue/web/b2 --host c2 --attach netns:b2 --ip 10.4.1.22 --wait");
    lab.reaches("c1/a1", "10.4.1.22");
    assert_eq!(before, daemons(&lab, "m1"));
    let said = log(&lab, "m1-server");
    for host in ["100.64.0.2", "100.64.0.3"] {
        let down = said
            .lines()
            .find(|line| line.contains("session is down") && line.contains(host));
        assert_eq!(down, None);
    }
    let result = ping.stop();
    assert_eq!(result.lost(), 0, "{result:?}");
}

#[test]
fn garbage_and_silence_on_the_api_port_block_nobody() {
    let lab = lab_with_a_pair();
    let before = daemons(&lab, "m1");
    for bytes in garbage() {
        lab.in_network_of("c1", || say(tcp(SERVER).expect("it listens"), &bytes));
    }
    // Connections that never say a word, more than a host may have.
    let silent = lab.in_network_of("c1", || {
        (0..600).map_while(|_| tcp(SERVER).ok()).collect::<Vec<_>>()
    });
    assert!(silent.len() > 100, "{}", silent.len());
    lab.admin("nic create blue/web/b2 --host c2 --attach netns:b2 --ip 10.4.1.22 --wait");
    lab.admin("nic create blue/web/b1 --host c1 --attach netns:b1 --ip 10.4.1.21 --wait");
    drop(silent);
    // More than a message may hold, from one who may talk.
    let code = lab.with_admin(|mut client| async move {
        let mut request = v1::CreateVpcRequest {
            name: "big".to_owned(),
            ..Default::default()
        };
        request.cidrs = vec!["x".repeat(64 << 20)];
        client
            .create_vpc(request)
            .await
            .expect_err("it is too large")
            .code()
    });
    assert!(
        matches!(
            code,
            Code::OutOfRange | Code::ResourceExhausted | Code::InvalidArgument
        ),
        "{code:?}"
    );
    assert_eq!(lab.admin("list").as_array().map(Vec::len), Some(1));
    assert_eq!(before, daemons(&lab, "m1"));
}

#[test]
fn garbage_on_the_agents_socket_blocks_nobody() {
    let lab = lab_with_a_pair();
    let before = daemons(&lab, "c1");
    let dump = lab.dump("c1");
    let socket = format!("/proc/{}/root/run/vpc/agent.sock", lab.holder("c1"));
    let connect = || {
        let stream = UnixStream::connect(&socket).expect("it listens");
        stream
            .set_read_timeout(Some(Duration::from_millis(300)))
            .expect("a timeout");
        stream
            .set_write_timeout(Some(Duration::from_millis(300)))
            .expect("a timeout");
        stream
    };
    for bytes in garbage() {
        say(connect(), &bytes);
    }
    let silent: Vec<UnixStream> = (0..300).map(|_| connect()).collect();
    lab.json("c1", "vpc -o json agent status");
    lab.admin("nic create blue/web/b1 --host c1 --attach netns:b1 --ip 10.4.1.21 --wait");
    lab.admin("nic delete blue/web/b1 --wait");
    drop(silent);
    assert_eq!(before, daemons(&lab, "c1"));
    let now = lab.dump("c1");
    assert_eq!(dump, now, "{}", difference(&dump, &now));
}

#[test]
fn tokens_and_certificates_that_do_not_fit_are_refused() {
    let lab = lab_with_a_pair();
    let hosts = lab.admin("host list").as_array().map(Vec::len);
    let token = |more: &str| {
        let made = lab.admin(&format!("host token create {more}"));
        made["text"].as_str().expect("a text").to_owned()
    };
    // On r1, beside its own agent: what is written goes elsewhere.
    let join = |token: &str, name: &str| {
        let line = format!(
            "vpc host join --server 100.64.0.1 --token {token} --name {name} --underlay 100.64.0.9 \
             --host-credential /run/{name}.toml --agent-config /run/{name}-agent.toml"
        );
        lab.try_sh("r1", &line)
    };
    let refused = |token: &str, name: &str, expected: &str| {
        let output = join(token, name);
        let text = text_of(&output);
        assert!(!output.status.success(), "{text}");
        assert!(
            text.contains("error: ") && text.contains(expected),
            "{expected}: {text}"
        );
        assert!(
            !lab.try_sh("r1", &format!("test -e /run/{name}.toml"))
                .status
                .success()
        );
    };
    let good = token("");
    refused("nonsense", "x9", "token");
    let (start, pin) = good.rsplit_once('.').expect("three parts");
    let other = if pin.starts_with('0') { "1" } else { "0" };
    refused(
        &format!("{start}.{other}{}", &pin[1..]),
        "x9",
        "certificate",
    );
    let (id, _) = start.split_once('.').expect("three parts");
    refused(&format!("{id}.{}.{pin}", "0".repeat(64)), "x9", "token");
    refused(&token("--host x8"), "x9", "is for a host called x8");
    let expired = token("--ttl 1");
    lab.eventually("the token expires", || {
        let list = lab.admin("host token list").to_string();
        match list.contains("expired") {
            true => Ok(()),
            false => Err(list),
        }
    });
    refused(&expired, "x9", "expired");
    assert_eq!(lab.admin("host list").as_array().map(Vec::len), hosts);

    let output = join(&good, "x9");
    assert!(output.status.success(), "{}", text_of(&output));
    refused(&good, "x7", "used");

    // A host may not do what an administrator may, and no more at all once it is removed.
    let revision = lab.revision();
    for command in [
        "list",
        "create red --cidr 10.0.0.0/16",
        "host remove c1",
        "host token create",
    ] {
        let output = lab.try_sh("r1", &format!("vpc --credential /run/x9.toml {command}"));
        let text = text_of(&output);
        assert!(
            !output.status.success() && text.contains("administrator"),
            "{text}"
        );
    }
    assert_eq!(lab.revision(), revision);
    lab.admin("host remove x9");
    let removed = lab.credential_at("r1", "/run/x9.toml");
    let code = lab.block_on("r1", || async move {
        let mut client = match api::connect_host(&removed).await {
            Ok(client) => client,
            Err(_) => return Code::Unauthenticated,
        };
        let reports = futures::stream::pending::<v1::HostReport>();
        match client.sync(reports).await {
            Ok(answer) => match answer.into_inner().message().await {
                Ok(update) => panic!("a removed host was told {update:?}"),
                Err(status) => status.code(),
            },
            Err(status) => status.code(),
        }
    });
    assert!(
        matches!(code, Code::Unauthenticated | Code::PermissionDenied),
        "{code:?}"
    );

    // Another cluster: its administrator is nobody here, and we are nobody there.
    lab.sh("m1", "vpc server init --advertise 100.64.0.1 --data-dir /run/other --config /run/other.toml --admin-credential /run/other-admin.toml");
    let output = lab.try_sh("m1", "vpc --credential /run/other-admin.toml list");
    let text = text_of(&output);
    assert!(
        !output.status.success() && text.contains("error: "),
        "{text}"
    );
    // Even if it were made to trust us.
    lab.sh("m1", "awk '/^ca = /{skip=1} skip&&/^-----END/{skip=2;next} skip==2{skip=0;next} !skip' /run/other-admin.toml > /run/mixed.toml && awk '/^ca = /{on=1} on{print} on&&/^\"\"\"/{exit}' /etc/vpc/admin.toml >> /run/mixed.toml && chmod 600 /run/mixed.toml");
    let output = lab.try_sh("m1", "vpc --credential /run/mixed.toml list");
    let text = text_of(&output);
    assert!(
        !output.status.success() && text.contains("error: "),
        "{text}"
    );
    assert!(
        !text.contains("is not one"),
        "the credential itself is well formed: {text}"
    );
}

#[test]
fn a_server_whose_disk_is_full_says_so_and_loses_nothing() {
    let lab = lab_with_a_pair();
    lab.kill("m1", "server");
    lab.sh("m1", "cp -a /var/lib/vpc/server /run/copy && mount -t tmpfs -o size=3m,mode=700 tmpfs /var/lib/vpc/server && cp -a /run/copy/. /var/lib/vpc/server/");
    lab.start("m1", "server");
    wait_for_server(&lab);
    lab.try_sh("m1", "cat /dev/zero > /var/lib/vpc/server/fill");
    let mut accepted = BTreeSet::from(["blue".to_owned()]);
    let mut said = String::new();
    for number in 0..2000 {
        let name = format!("v{number}");
        let request = v1::CreateVpcRequest {
            name: name.clone(),
            cidrs: vec!["10.0.0.0/8".to_owned()],
            ..Default::default()
        };
        let answer = lab.with_admin(|mut client| async move { client.create_vpc(request).await });
        match answer {
            Ok(_) => drop(accepted.insert(name)),
            Err(status) => {
                said = status.message().to_owned();
                break;
            }
        }
    }
    assert!(said.contains("full") && said.contains("space"), "{said:?}");
    let listed = || -> BTreeSet<String> {
        let list = lab.admin("list");
        let names = list
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|vpc| vpc["name"].as_str());
        names.map(str::to_owned).collect()
    };
    assert_eq!(listed(), accepted);
    let text = lab.refused("create more --cidr 10.0.0.0/8");
    assert!(text.contains("full"), "{text}");
    // What is not saved is not told to hosts.
    let told = || {
        log(&lab, "c1-agent")
            .matches("Configuration received")
            .count()
    };
    let before = told();
    let text = lab.refused("nic create blue/web/b1 --host c1 --attach netns:b1 --ip 10.4.1.21");
    assert!(text.contains("full"), "{text}");
    lab.sh("m1", "rm /var/lib/vpc/server/fill");
    lab.eventually("the server takes changes again", || {
        let output = lab.try_sh("m1", "vpc create more --cidr 10.0.0.0/8");
        match output.status.success() {
            true => Ok(()),
            false => Err(text_of(&output)),
        }
    });
    accepted.insert("more".to_owned());
    assert_eq!(listed(), accepted);
    lab.admin("nic create blue/web/b2 --host c1 --attach netns:b2 --ip 10.4.1.22");
    lab.reaches("c2/a2", "10.4.1.22");
    // What it had, under another generation, and the NIC.
    assert!(told() <= before + 2, "{}", log(&lab, "c1-agent"));
    lab.sh("c1", "! ip netns list | grep -w b1");
    lab.kill("m1", "server");
    lab.start("m1", "server");
    wait_for_server(&lab);
    assert_eq!(listed(), accepted);
}

fn wait_for_server(lab: &Lab) {
    lab.eventually("the server answers", || {
        let output = lab.try_sh("m1", "vpc list");
        match output.status.success() {
            true => Ok(()),
            false => Err(text_of(&output)),
        }
    });
}

#[test]
fn an_agent_whose_disk_is_full_says_so_and_goes_on_when_there_is_space() {
    let lab = lab_with_a_pair();
    lab.kill("c1", "agent");
    lab.sh("c1", "cp -a /var/lib/vpc/agent /run/copy && mount -t tmpfs -o size=64k,mode=700 tmpfs /var/lib/vpc/agent && cp -a /run/copy/. /var/lib/vpc/agent/");
    lab.try_sh("c1", "cat /dev/zero > /var/lib/vpc/agent/fill");
    lab.start("c1", "agent");
    lab.admin("nic create blue/web/b1 --host c1 --attach netns:b1 --ip 10.4.1.21");
    lab.eventually("the agent says that its disk is full", || {
        let said = log(&lab, "c1-agent");
        match said.contains("free some space") {
            true => Ok(()),
            false => Err(said),
        }
    });
    // It works all the same, but does not claim what it could not keep.
    lab.reaches("c2/a2", "10.4.1.21");
    let nic = lab.admin("nic show blue/web/b1");
    assert_eq!(nic["state"], "pending", "{nic}");
    let output = lab.try_sh("c1", "cd /var/lib/vpc/agent && rm fill && ls -l");
    assert!(output.status.success(), "{}", text_of(&output));
    lab.eventually("the NIC is reported as made", || {
        let nic = lab.admin("nic show blue/web/b1");
        match nic["state"] == "applied" {
            true => Ok(()),
            false => Err(nic.to_string()),
        }
    });
    lab.kill("c1", "agent");
    lab.kill("m1", "server");
    let dump = lab.dump("c1");
    lab.start("c1", "agent");
    lab.eventually("the agent has all of it on disk", || {
        let output = lab.try_sh("c1", "vpc -o json agent status");
        let text = text_of(&output);
        match text.contains("\"nics\": 2") && text.contains("\"converged\": true") {
            true => Ok(()),
            false => Err(text),
        }
    });
    let now = lab.dump("c1");
    assert_eq!(dump, now, "{}", difference(&dump, &now));
    lab.start("m1", "server");
}

#[test]
fn a_damaged_store_is_not_served_and_its_copy_is() {
    let lab = lab_with_a_pair();
    let before = lab.eventually("all is applied", || nics_are_applied(&lab));
    lab.stop("m1", "server");
    lab.sh("m1", "cp -a /var/lib/vpc/server /run/copy");
    let damages = [
        (
            "noise in all pages",
            "dd if=/dev/urandom of=vpc.db bs=4096 seek=1 count=15 conv=notrunc status=none",
        ),
        (
            "another name in a row",
            "at=$(grep -obUa '\"blue\"' vpc.db | tail -1 | cut -d: -f1) && test -n \"$at\" && printf '\"blux\"' | dd of=vpc.db bs=1 seek=$at conv=notrunc status=none",
        ),
        ("a short file", "truncate -s 20000 vpc.db"),
        ("another file", "head -c 90000 /dev/urandom > vpc.db"),
    ];
    for (what, damage) in damages {
        lab.sh("m1", &format!("cd /var/lib/vpc/server && {damage}"));
        fs::write(lab.logs().join("m1-server.log"), "").expect("the log is ours");
        lab.start("m1", "server");
        let said = lab.eventually(
            &format!("{what}: the server says why it does not start"),
            || {
                let said = log(&lab, "m1-server");
                match said.contains("error: ") {
                    true => Ok(said),
                    false => Err(said),
                }
            },
        );
        assert!(
            said.contains("damaged") && said.contains("vpc.db") && said.contains("backup"),
            "{what}: {said}"
        );
        assert!(!said.contains("panicked"), "{what}: {said}");
        lab.sh(
            "m1",
            "rm -rf /var/lib/vpc/server/* && cp -a /run/copy/. /var/lib/vpc/server/",
        );
    }
    lab.eventually("the server can be started", || {
        let output = lab::vpc()
            .args(["lab", "start", "--name", lab.name(), "m1", "server"])
            .output();
        let output = output.expect("the vpc binary can be started");
        match output.status.success() {
            true => Ok(()),
            false => Err(text_of(&output)),
        }
    });
    wait_for_server(&lab);
    lab.eventually("everything is as before", || {
        let now = nics_are_applied(&lab)?;
        match now == before {
            true => Ok(()),
            false => Err(format!("{now:?}")),
        }
    });
}

/// All NICs, once all are applied, without the generations of their hosts that this took: a server that
/// starts knows the newest alone.
fn nics_are_applied(lab: &Lab) -> Result<Vec<serde_json::Value>, String> {
    let now = lab.admin("nic list");
    let mut nics = now.as_array().cloned().unwrap_or_default();
    if !nics.iter().all(|nic| nic["state"] == "applied") {
        return Err(now.to_string());
    }
    for nic in nics.iter_mut().filter_map(|nic| nic.as_object_mut()) {
        nic.retain(|key, _| !key.ends_with("generation"));
    }
    Ok(nics)
}

#[test]
fn damaged_agent_state_is_set_aside_and_the_kernel_left_alone() {
    let lab = lab_with_a_pair();
    let dump = lab.dump("c1");
    let ping = Ping::start(&lab, "c1/a1", "10.4.1.12", Duration::from_millis(10));
    for number in 0..2 {
        lab.kill("c1", "agent");
        lab.sh("c1", "cd /var/lib/vpc/agent && printf x | dd of=host-config bs=1 seek=100 conv=notrunc status=none");
        lab.start("c1", "agent");
        lab.eventually("the agent has the server's copy", || {
            let output = lab.try_sh("c1", "vpc -o json agent status");
            let text = text_of(&output);
            match text.contains("\"nics\": 1") && text.contains("\"converged\": true") {
                true => Ok(()),
                false => Err(text),
            }
        });
        lab.sh(
            "c1",
            &format!("test -e /var/lib/vpc/agent/host-config.damaged-{number}"),
        );
        assert!(log(&lab, "c1-agent").contains("Set aside; waiting for the server's copy"));
    }
    let status = lab.json("c1", "vpc -o json agent status");
    assert_eq!(status["actions"], 0, "{status}");
    let result = ping.stop();
    assert_eq!(result.lost(), 0, "{result:?}");
    let now = lab.dump("c1");
    assert_eq!(dump, now, "{}", difference(&dump, &now));
}

#[test]
fn only_root_gets_in_and_nothing_else_listens() {
    let lab = lab_with_a_pair();
    for host in ["m1", "c1", "c2", "r1"] {
        let mode = |path: &str| {
            lab.sh(host, &format!("stat -c '%a %U' {path}"))
                .trim()
                .to_owned()
        };
        assert_eq!(mode("/run/vpc/agent.sock"), "600 root", "{host}");
        assert_eq!(mode("/var/lib/vpc/agent"), "700 root", "{host}");
        let open = "find /var/lib/vpc/*/ /etc/vpc/host.toml /etc/vpc/*admin* /etc/vpc/server.toml -type f -perm /077 2>/dev/null";
        assert_eq!(lab.try_sh(host, open).stdout, b"", "{host}");
        let output = lab.try_sh(
            host,
            "setpriv --reuid nobody --regid nogroup --clear-groups vpc agent status",
        );
        assert!(!output.status.success(), "{}", text_of(&output));
    }
    assert_eq!(
        lab.sh("m1", "stat -c '%a %U' /var/lib/vpc/server").trim(),
        "700 root"
    );
    let listening = |host: &str| -> BTreeSet<String> {
        let sockets = lab.sh(host, "ss -Htuln");
        let line = |line: &str| {
            let words: Vec<&str> = line.split_whitespace().collect();
            format!("{} {}", words[0], words[4])
        };
        sockets.lines().map(line).collect()
    };
    let set = |list: &[&str]| {
        list.iter()
            .map(|s| (*s).to_owned())
            .collect::<BTreeSet<_>>()
    };
    // Tunnels where there are NICs; the server and its reflector where the server is; storage where there is a disk.
    for (host, address) in [("c1", "100.64.0.2"), ("c2", "100.64.0.3")] {
        let mut open = listening(host);
        assert!(open.remove(&format!("tcp {address}:7445")), "{open:?}");
        let socket = lab.sh(host, "stat -c '%a %U' /run/vpc/storage.sock");
        assert_eq!(socket.trim(), "600 root", "{host}");
        if lab.is_tap(host) {
            // What a datapath sends from: one port for each share of the flows, and nobody reads there.
            let sends = |socket: &str| {
                let port = socket.strip_prefix(&format!("udp {address}:"));
                port.and_then(|port| port.parse::<u16>().ok()) >= Some(49_152)
            };
            open.retain(|socket| !sends(socket));
            assert_eq!(open, set(&[&format!("udp {address}:4789")]));
            let socket = lab.sh(host, "stat -c '%a %U' /run/vpc/datapath.sock");
            assert_eq!(socket.trim(), "600 root", "{host}");
        } else {
            assert_eq!(open, set(&["udp 0.0.0.0:4789"]));
        }
    }
    assert_eq!(listening("r1"), set(&[]));
    let open = ["tcp *:7443", "tcp 100.64.0.1:179", "tcp 100.64.0.1:7445"];
    assert_eq!(listening("m1"), set(&open));
    assert!(lab.with_admin(|mut client| async move {
        let web = v1::GetRequest {
            object: Some(path("blue/web")),
        };
        client.get_subnet(web).await.is_ok()
    }));
}
