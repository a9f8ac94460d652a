//! The scenarios, by what they are about.

mod elsewhere;
mod hostile;
mod mobility;
mod reflector;
mod routed;
mod routes;
mod sessions;
mod soak;
mod tenants;

use crate::Row;
use crate::fabric::{Fabric, HOSTS, Vpc};
use lab::difference;

/// A NIC on each host.
fn everywhere(vpc: &Vpc<'_>) {
    for (number, host) in (11..).zip(HOSTS) {
        vpc.nic(&format!("a{number}"), host, number);
    }
}

/// Every host's tables, to compare them with later.
fn dumps(fabric: &Fabric) -> Vec<String> {
    HOSTS.iter().map(|host| fabric.lab.dump(host)).collect()
}

/// Waits until every host's tables are as they were.
fn are_as_before(fabric: &Fabric, dumps: &[String]) {
    for (host, before) in HOSTS.iter().zip(dumps) {
        fabric.lab.eventually(&format!("{host} is as before"), || {
            match fabric.lab.dump(host) {
                now if now == *before => Ok(()),
                now => Err(difference(before, &now)),
            }
        });
    }
}

/// In the order of their numbers.
pub(crate) const ALL: &[Row] = &[
    sessions::E01,
    routes::E02,
    routes::E03,
    routes::E04,
    mobility::E05,
    mobility::E06,
    mobility::E07,
    mobility::E08,
    routes::E09,
    mobility::E10,
    tenants::E11,
    tenants::E12,
    tenants::E13,
    sessions::E14,
    reflector::E15,
    reflector::E16,
    reflector::E17,
    reflector::E18,
    reflector::E19,
    reflector::E20,
    sessions::E21,
    hostile::E22,
    routed::E23,
    routed::E24,
    tenants::E25,
    tenants::E26,
    hostile::E27,
    sessions::E28,
    elsewhere::E29,
    elsewhere::E30,
    elsewhere::E31,
    sessions::E32,
    mobility::E33,
    soak::E34,
    tenants::E35,
];
