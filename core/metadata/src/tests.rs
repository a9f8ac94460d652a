use super::*;
use model::{Mtu, NicId, SubnetId, UserData};
use proptest::prelude::*;

const KEY: Key = Key::from_random([7; 32]);
const MAC: &str = "02:00:00:00:00:0b";

fn with(check: impl FnOnce(&Instance<'_>)) {
    let nic = NamedNic {
        nic: NicId::from_random(5),
        name: "a1".parse().unwrap(),
        mac: MAC.parse().unwrap(),
        addresses: vec!["10.4.1.11".parse().unwrap(), "fd00:4::11".parse().unwrap()],
        user_data: Some(UserData::new(b"#!/bin/sh\n".to_vec()).unwrap()),
    };
    let leg = RouterLeg {
        subnet: SubnetId::from_random(3),
        mac: "02:00:00:00:00:01".parse().unwrap(),
        addresses: vec![
            "10.4.1.1/24".parse().unwrap(),
            "fd00:4::1/64".parse().unwrap(),
        ],
        mtu: Mtu::new(1450).unwrap(),
    };
    check(&Instance {
        nic: &nic,
        subnet: "web",
        dhcp: true,
        leg: &leg,
        vpc: VpcId::from_random(2),
        vpc_name: "blue",
        public: &["198.51.100.9".parse().unwrap()],
    });
}

fn get<'a>(path: &'a str) -> Request<'a> {
    Request {
        method: "GET",
        path,
        host: Some(b"169.254.169.254"),
        ..Request::default()
    }
}

fn text(response: &Response) -> &str {
    std::str::from_utf8(&response.body).unwrap()
}

/// With a token.
fn read(instance: &Instance<'_>, path: &str) -> Response {
    let token = token::issue(&KEY, instance.nic.nic, 100, 60);
    let token = Some(token.as_bytes());
    answer(&KEY, 100, instance, &Request { token, ..get(path) })
}

#[test]
fn ec2_is_read_with_a_token_of_ones_own_only() {
    with(|instance| {
        let ask = |request: &Request<'_>| answer(&KEY, 100, instance, request);
        let put = |ttl: &'static str| Request {
            method: "PUT",
            ttl: Some(ttl.as_bytes()),
            ..get("/latest/api/token")
        };
        let made = ask(&put("60"));
        assert_eq!((made.status, made.token_ttl), (200, Some(60)));
        for bad in ["", "0", "21601", "+5", "1e3", "99999999999"] {
            assert_eq!(ask(&put(bad)).status, 400, "{bad}");
        }
        let path = "/latest/meta-data/instance-id";
        let at = |now, token: &[u8]| {
            let token = Some(token);
            answer(&KEY, now, instance, &Request { token, ..get(path) }).status
        };
        assert_eq!(at(159, &made.body), 200);
        assert_eq!(at(160, &made.body), 401, "it ended");
        assert_eq!(ask(&get(path)).status, 401, "none");
        let mut changed = made.body;
        changed[15] ^= 1;
        assert_eq!(at(100, &changed), 401, "lives longer");
        assert_eq!(at(100, b"x"), 401);
        let other = token::issue(&KEY, NicId::from_random(6), 100, 60);
        assert_eq!(at(100, other.as_bytes()), 401, "another's");
        assert_eq!(
            ask(&Request {
                method: "POST",
                ..put("60")
            })
            .status,
            405
        );
    });
}

#[test]
fn the_tree_of_ec2() {
    with(|instance| {
        let id = instance.nic.nic.to_string();
        let below = format!("/2021-03-23/meta-data/network/interfaces/macs/{MAC}");
        let escaped = below.replace(':', "%3A");
        let subnet = instance.leg.subnet.to_string();
        for (path, expected) in [
            ("/latest/", "dynamic\nmeta-data\nuser-data"),
            ("/latest/user-data", "#!/bin/sh\n"),
            (
                "/latest/meta-data/",
                "hostname\ninstance-id\nipv6\nlocal-hostname\nlocal-ipv4\nmac\nnetwork/\npublic-ipv4",
            ),
            ("/2009-04-04/meta-data/instance-id", &id),
            ("/latest/meta-data/hostname", "a1.web.blue.internal"),
            ("/latest//meta-data//local-ipv4", "10.4.1.11"),
            ("/latest/meta-data/public-ipv4", "198.51.100.9"),
            (
                "/latest/meta-data/network/interfaces/macs/",
                &format!("{MAC}/"),
            ),
            (&format!("{below}/subnet-id"), &subnet),
            (&format!("{escaped}/ipv6s"), "fd00:4::11"),
            (&format!("{below}/subnet-ipv4-cidr-block"), "10.4.1.0/24"),
        ] {
            let response = read(instance, path);
            assert_eq!(
                (response.status, text(&response)),
                (200, expected),
                "{path}"
            );
        }
        let document = read(instance, "/latest/dynamic/instance-identity/document");
        let document: serde_json::Value = serde_json::from_slice(&document.body).unwrap();
        assert_eq!(document["instanceId"], id);
        for path in [
            "/2000-01-01/meta-data/",
            "/latest/meta-data/instance",
            "/latest/meta-data/network/inter",
            "/latest/dynamic/instance-identity/pkcs7",
            "/latest/../etc/passwd",
        ] {
            assert_eq!(read(instance, path).status, 404, "{path}");
        }
    });
}

#[test]
fn openstack_is_read_without() {
    with(|instance| {
        let ask = |path| answer(&KEY, 100, instance, &get(path));
        assert!(text(&ask("/openstack")).ends_with("\nlatest"));
        assert_eq!(ask("/openstack/latest/user_data").body, b"#!/bin/sh\n");
        let json = |path| serde_json::from_slice::<serde_json::Value>(&ask(path).body).unwrap();
        let meta = json("/openstack/2018-08-27/meta_data.json");
        assert_eq!(meta["uuid"], instance.nic.nic.to_string());
        assert_eq!(meta["hostname"], "a1.web.blue.internal");
        let net = json("/openstack/latest/network_data.json");
        assert_eq!(net["links"][0]["ethernet_mac_address"], MAC);
        assert_eq!(net["networks"][0]["type"], "ipv4_dhcp");
        assert_eq!(ask("/openstack/latest/password").status, 404);
        let fixed = Instance {
            dhcp: false,
            ..*instance
        };
        let net = answer(&KEY, 1, &fixed, &get("/openstack/latest/network_data.json"));
        let net: serde_json::Value = serde_json::from_slice(&net.body).unwrap();
        assert_eq!(net["networks"][0]["ip_address"], "10.4.1.11");
        assert_eq!(net["networks"][0]["netmask"], "255.255.255.0");
        assert_eq!(net["networks"][1]["routes"][0]["gateway"], "fd00:4::1");
    });
}

#[test]
fn who_asks_for_another_is_refused() {
    with(|instance| {
        let status = |request: &Request<'_>| answer(&KEY, 100, instance, request).status;
        let path = "/openstack/latest/meta_data.json";
        let forwarded = true;
        assert_eq!(
            status(&Request {
                forwarded,
                ..get(path)
            }),
            403
        );
        for (host, expected) in [
            (Some("169.254.169.254"), 200),
            (Some("169.254.169.254:80"), 200),
            (Some("[fd00:ec2::254]"), 200),
            (Some("[fd00:ec2::254]:80"), 200),
            (Some("evil.example.org"), 403),
            (Some("169.254.169.254.nip.io"), 403),
            (Some("10.4.1.1"), 403),
            (Some(""), 403),
            (None, 403),
        ] {
            let host = host.map(str::as_bytes);
            assert_eq!(status(&Request { host, ..get(path) }), expected, "{host:?}");
        }
    });
}

proptest! {
    #[test]
    fn no_request_hurts(
        path in "[ -~]{0,60}|/(latest|openstack)/[a-z/.%:_-]{0,60}|\\PC{0,40}",
        token in prop::collection::vec(any::<u8>(), 0..60),
        put: bool,
    ) {
        with(|instance| {
            let request = Request {
                method: if put { "PUT" } else { "GET" },
                token: Some(&token),
                ttl: Some(&token),
                ..get(&path)
            };
            let response = answer(&KEY, 100, instance, &request);
            assert!(response.status != 200 || !path.starts_with("/latest/meta-data"));
            assert!(response.body.len() <= UserData::MOST_BYTES);
        });
    }
}
