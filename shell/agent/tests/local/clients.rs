//! Foreign clients behind real ports: each ends with exactly the address that is planned for it.

use super::*;

/// What a hook of a client is told goes into a file named by the reason; a new address onto the
/// interface.
const HOOK: &str = r#"#!/bin/sh
TOLD="${0%/*}"
reason=${reason:-$1}
env > "$TOLD/new"
mv "$TOLD/new" "$TOLD/$reason"
case "$reason" in
BOUND | RENEW | REBIND | REBOOT) ip address replace "$new_ip_address/24" dev "$interface" ;;
BOUND6 | RENEW6 | REBIND6) ip address replace "$new_ip6_address/128" dev "$interface" ;;
bound | renew) ip address replace "$ip/24" dev "$interface" ;;
esac
exit 0
"#;

const DHCLIENT: &str = "
option rfc3442-routes code 121 = array of unsigned integer 8;
request subnet-mask, routers, interface-mtu, domain-name, domain-name-servers, domain-search,
  ntp-servers, rfc3442-routes, tftp-server-name, dhcp6.name-servers, dhcp6.domain-search;
send dhcp-client-identifier \"me\";
timeout 20;
";

/// NIC `number` is a veth pair of the operator's, whose far end is `eth0` in namespace `k<number>`.
fn lend(number: u8) -> v1::attachment::Kind {
    sh(&format!(
        "ip netns add k{number} && ip link add l{number} type veth peer name eth0 netns k{number} &&
         ip -n k{number} link set dev eth0 address 02:00:00:00:01:{number:02x} mtu 1400 &&
         ip -n k{number} link set dev lo up"
    ));
    v1::attachment::Kind::Existing(v1::attachment::Existing {
        ifname: format!("l{number}"),
    })
}

async fn add(
    l2: &mut v1::l2_client::L2Client<Channel>,
    segment: impl FnOnce(&mut v1::Segment),
    ports: Vec<v1::Port>,
) {
    let mut stack = stack(v1::Encoding::VlanBased);
    segment(&mut stack.segments[0]);
    let request = v1::AddStackRequest {
        stack: Some(stack),
        wait_ms: 0,
    };
    l2.add_stack(request).await.unwrap();
    for port in ports {
        let request = v1::AddNicRequest {
            vpc_id: VPC.to_owned(),
            port: Some(port),
            segment: None,
            wait_ms: 20_000,
        };
        let state = l2.add_nic(request).await.unwrap().into_inner();
        assert!(state.ready, "{state:?}");
    }
}

/// A client in a namespace; ended when it is dropped.
struct Client {
    process: tokio::process::Child,
    told: PathBuf,
}

impl Client {
    fn start(host: &Host, place: &str, command: &str) -> Self {
        let told = host.dir.join(format!("told-{place}"));
        drop(std::fs::remove_dir_all(&told));
        std::fs::create_dir(&told).unwrap();
        // Some clients clear the environment: the hook knows its place by its own.
        let hook = told.join("hook");
        std::fs::write(&hook, HOOK).unwrap();
        sh(&format!("chmod 755 {}", hook.display()));
        let config = told.join("dhclient.conf");
        std::fs::write(&config, DHCLIENT).unwrap();
        let command = command
            .replace("HOOK", hook.to_str().unwrap())
            .replace("CONFIG", config.to_str().unwrap())
            .replace("TOLD", told.to_str().unwrap());
        let log = std::fs::File::create(told.join("log")).unwrap();
        let process = tokio::process::Command::new("ip")
            .args([
                "netns",
                "exec",
                place,
                "sh",
                "-c",
                &format!("exec {command}"),
            ])
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        Self { process, told }
    }

    /// What the client says of itself.
    fn log(&self) -> String {
        std::fs::read_to_string(self.told.join("log")).unwrap_or_default()
    }

    /// Waits until the hook was told; with what.
    async fn told(&self, reason: &str) -> String {
        let path = self.told.join(reason);
        wait_for(&format!("{reason} in {}", self.told.display()), || {
            std::fs::read_to_string(&path).map_err(|_| self.log())
        })
        .await
    }

    fn signal(&self, name: &str) {
        let process = self.process.id().unwrap();
        sh(&format!("kill -{name} {process}"));
    }
}

fn has(told: &str, lines: &[&str]) {
    for line in lines {
        assert!(
            told.lines().any(|there| there == *line),
            "no {line} in {told}"
        );
    }
}

async fn leases(agent: &Running) -> v1::LeasesResponse {
    let mut control = api::connect_agent(&agent.socket).await.unwrap();
    let leases = control.leases(v1::LeasesRequest {}).await;
    leases.unwrap().into_inner()
}

fn up(number: u8) {
    sh(&format!("ip -n k{number} link set dev eth0 up"));
}

#[test]
fn clients_take_their_planned_addresses_and_renew_them_without_a_router() {
    isolated(async |host| {
        sh("mkdir -p /var/lib/dhcpcd && mount -t tmpfs none /var/lib/dhcpcd");
        let agent = host.agent().await;
        let mut l2 = agent.l2().await;
        let ports = (1..=3).map(|n| port(n, lend(n))).collect();
        add(&mut l2, |_| {}, ports).await;
        (1..=3).for_each(up);

        let udhcpc = Client::start(&host, "k1", "udhcpc -f -i eth0 -O mtu -s HOOK -t 20 -T 1");
        let dhclient = Client::start(
            &host,
            "k2",
            "dhclient -d -4 -cf CONFIG -sf HOOK -lf TOLD/leases -pf TOLD/pid eth0",
        );
        // It leaves helpers behind when it is killed, but not out of a process namespace.
        let dhcpcd = Client::start(
            &host,
            "k3",
            "unshare --pid --fork --kill-child dhcpcd -4 -A -B --noipv4ll -c HOOK eth0",
        );
        has(
            &udhcpc.told("bound").await,
            &[
                "ip=10.4.1.11",
                "mask=24",
                "mtu=1400",
                "serverid=10.4.1.1",
                "lease=86400",
            ],
        );
        has(
            &dhclient.told("BOUND").await,
            &[
                "new_ip_address=10.4.1.12",
                "new_subnet_mask=255.255.255.0",
                "new_interface_mtu=1400",
                "new_dhcp_renewal_time=3600",
            ],
        );
        has(&dhcpcd.told("BOUND").await, &["new_ip_address=10.4.1.13"]);
        for (from, to) in [
            ("k1", "10.4.1.12"),
            ("k2", "10.4.1.13"),
            ("k3", "10.4.1.11"),
        ] {
            sh_beside(&format!("ip netns exec {from} ping -c 1 -W 5 {to}")).await;
        }

        // The server's address resolves, and a renewal is sent there. The agent is another one.
        agent.stop().await;
        let agent = host.agent().await;
        udhcpc.signal("USR1");
        has(&udhcpc.told("renew").await, &["ip=10.4.1.11"]);
        let resolved = sh("ip -n k1 neigh show 10.4.1.1");
        assert!(resolved.contains("lladdr 12:"), "{resolved}");

        // Who took what is known over the restart, too.
        let known = leases(&agent).await;
        let taken: Vec<_> = (known.leases.iter())
            .map(|lease| (lease.nic_name.as_str(), lease.address.as_str()))
            .collect();
        let expected = [
            ("blue/web/a1", "10.4.1.11"),
            ("blue/web/a2", "10.4.1.12"),
            ("blue/web/a3", "10.4.1.13"),
        ];
        assert_eq!(taken, expected);
        assert!(known.leases[0].renewed_unix_ms > known.leases[0].since_unix_ms);
        assert_eq!(known.trouble, "");
        assert!(known.events["leased"] >= 1, "{:?}", known.events);
        udhcpc.signal("USR2");
        udhcpc.told("deconfig").await;
        let deadline = Instant::now() + LIMIT;
        while leases(&agent).await.leases[0].released_unix_ms == 0 {
            assert!(Instant::now() < deadline, "nobody heard of the release");
        }
        agent.stop().await;
    });
}

#[test]
fn clients_hear_of_the_router_and_all_that_the_subnet_says() {
    isolated(async |host| {
        let agent = host.agent().await;
        let mut l2 = agent.l2().await;
        let with_all = |segment: &mut v1::Segment| {
            segment.options = Some(v1::SubnetOptions {
                dns: vec!["10.4.1.53".to_owned(), "fd00:4:1::53".to_owned()],
                domain: "blue.internal".to_owned(),
                search: vec!["web.blue.internal".to_owned(), "blue.internal".to_owned()],
                ntp: vec!["10.4.1.123".to_owned()],
                custom: [(66, b"boot.lan".to_vec())].into(),
                dhcp_off: false,
            });
            segment.gateway = Some(v1::Gateway {
                mac: "02:00:00:00:09:01".to_owned(),
                addresses: vec!["10.4.1.1".to_owned(), "fd00:4:1::1".to_owned()],
            });
        };
        let mut formed = port(2, lend(2));
        formed.addresses[1] = "fd00:4:1::ff:fe00:102".to_owned();
        add(&mut l2, with_all, vec![port(1, lend(1)), formed]).await;

        (1..=2).for_each(up);
        let dhclient = Client::start(
            &host,
            "k1",
            "dhclient -d -4 -cf CONFIG -sf HOOK -lf TOLD/leases -pf TOLD/pid eth0",
        );
        has(
            &dhclient.told("BOUND").await,
            &[
                "new_ip_address=10.4.1.11",
                "new_routers=10.4.1.1",
                "new_rfc3442_routes=32 169 254 169 254 10 4 1 1 0 10 4 1 1",
                "new_domain_name_servers=10.4.1.53",
                "new_domain_name=blue.internal",
                "new_domain_search=web.blue.internal. blue.internal.",
                "new_ntp_servers=10.4.1.123",
                "new_tftp_server_name=boot.lan",
            ],
        );

        // The kernel forms the address that is planned, and no other where another is planned.
        let router = "fe80::ff:fe00:901";
        wait_for("the planned address by advertisement alone", || {
            let addresses = sh("ip -n k2 -6 address show dev eth0 scope global -tentative");
            let routes = sh("ip -n k2 -6 route show default");
            let both =
                addresses.contains("inet6 fd00:4:1::ff:fe00:102/64") && routes.contains(router);
            if both {
                Ok(())
            } else {
                Err(addresses + &routes)
            }
        })
        .await;
        wait_for("a default route by advertisement", || {
            let routes = sh("ip -n k1 -6 route show default");
            if routes.contains(router) {
                Ok(())
            } else {
                Err(routes)
            }
        })
        .await;
        assert_eq!(sh("ip -n k1 -6 address show dev eth0 scope global"), "");
        // Until nobody else has it, no program may use it.
        wait_for("the link-local address", || {
            let local = sh("ip -n k1 -6 address show dev eth0 scope link -tentative");
            if local.is_empty() { Err(local) } else { Ok(()) }
        })
        .await;
        let seen = host.dir.join("rdisc6");
        sh_beside(&format!(
            "ip netns exec k1 rdisc6 -1 -r 5 eth0 > {}",
            seen.display()
        ))
        .await;
        let seen = std::fs::read_to_string(seen).unwrap();
        for line in [
            "Stateful address conf.    :          Yes",
            "1400 bytes",
            "fd00:4:1::53",
            "web.blue.internal",
        ] {
            assert!(seen.contains(line), "no {line:?} in {seen}");
        }

        let stateful = Client::start(
            &host,
            "k1",
            "dhclient -d -6 -cf CONFIG -sf HOOK -lf TOLD/leases -pf TOLD/pid eth0",
        );
        has(
            &stateful.told("BOUND6").await,
            &[
                "new_ip6_address=fd00:4:1::11",
                "new_dhcp6_name_servers=fd00:4:1::53",
                "new_dhcp6_domain_search=web.blue.internal. blue.internal.",
            ],
        );
        sh_beside("ip netns exec k1 ping -c 1 -W 5 fd00:4:1::ff:fe00:102").await;
        let known = leases(&agent).await;
        assert!(
            known
                .leases
                .iter()
                .any(|lease| lease.address == "fd00:4:1::11")
        );
        agent.stop().await;
    });
}
