//! GoBGP as a route reflector: its configuration.

use super::reflector_id;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

/// The whole configuration of a reflector at `listen` for these hosts, as TOML for GoBGP 3.
pub(crate) fn gobgp(
    listen: SocketAddr,
    asn: u32,
    hosts: &BTreeSet<IpAddr>,
    key: Option<&str>,
) -> String {
    let (address, port) = (listen.ip(), listen.port());
    let id = reflector_id(address);
    let mut text = format!(
        r#"# gobgpd -f FILE -r; after a change of FILE: kill -HUP
[global.config]
  as = {asn}
  router-id = "{id}"
  port = {port}
  local-address-list = ["{address}"]
"#
    );
    for host in hosts {
        // Writing to a String does not fail.
        let _infallible = write!(
            text,
            r#"
[[neighbors]]
  [neighbors.config]
    neighbor-address = "{host}"
    peer-as = {asn}
{}  [neighbors.transport.config]
    passive-mode = true
  [neighbors.timers.config]
    hold-time = 9
    keepalive-interval = 3
  [neighbors.ttl-security.config]
    enabled = true
    ttl-min = 255
  [neighbors.route-reflector.config]
    route-reflector-client = true
    route-reflector-cluster-id = "{id}"
  [neighbors.graceful-restart.config]
    enabled = true
    restart-time = 120
    notification-enabled = true
  [[neighbors.afi-safis]]
    [neighbors.afi-safis.config]
      afi-safi-name = "l2vpn-evpn"
    [neighbors.afi-safis.mp-graceful-restart.config]
      enabled = true
"#,
            key.map(|key| format!("    auth-password = {}\n", toml::Value::from(key)))
                .unwrap_or_default(),
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documentation_has_what_is_printed() {
        let document = include_str!("../../../../docs/operating/reflectors.md");
        let host = "192.0.2.21".parse().unwrap();
        let listen = "192.0.2.9:179".parse().unwrap();
        let printed = gobgp(listen, 65000, &BTreeSet::from([host]), Some("KEY"));
        assert!(
            document.contains(&format!("```toml\n{printed}```\n")),
            "docs/operating/reflectors.md lacks:\n{printed}"
        );
    }

    #[test]
    fn a_key_is_quoted() {
        let host = "192.0.2.21".parse().unwrap();
        let listen = "192.0.2.9:179".parse().unwrap();
        let printed = gobgp(listen, 65000, &BTreeSet::from([host]), Some("a\"b\\"));
        let read: toml::Table = toml::from_str(&printed).unwrap();
        let key = &read["neighbors"][0]["config"]["auth-password"];
        assert_eq!(key.as_str(), Some("a\"b\\"));
    }
}
