//! The suite runs over each transport by `VPC_TRANSPORT` in the environment: `kernel`, `tap`, or
//! `mixed`, where every second host has TAPs.

use std::env;

/// What `vpc lab up` is told of transports beside these options, which win.
pub fn options(given: &[&str]) -> Vec<String> {
    let wanted = env::var("VPC_TRANSPORT").unwrap_or_default();
    if given.contains(&"--transport") || given.contains(&"--bare") {
        return Vec::new();
    }
    let words = match wanted.as_str() {
        "" | "kernel" => return Vec::new(),
        "mixed" => mixed(given),
        wanted => wanted.to_owned(),
    };
    vec!["--transport".to_owned(), words]
}

/// Every second host has TAPs, and so has the one with the routers: each pair of neighbours is mixed.
/// FRR's hosts have the kernel's tunnels.
fn mixed(given: &[&str]) -> String {
    let value = |flag: &str| {
        let at = given.iter().position(|option| *option == flag)?;
        given.get(at + 1).copied()
    };
    let hosts = match value("--hosts").unwrap_or("2") {
        list if list.parse::<u8>().is_err() => list.to_owned(),
        count => {
            let count = count.parse().unwrap_or(2_u8);
            let compute = (1..=count).map(|n| format!("c{n}"));
            compute
                .chain(["r1".to_owned()])
                .collect::<Vec<_>>()
                .join(",")
        }
    };
    // It may be given several times.
    let speakers = given.windows(2).filter(|pair| pair[0] == "--speaker");
    let frr: Vec<&str> = speakers.flat_map(|pair| pair[1].split(',')).collect();
    let names = hosts
        .split(',')
        .map(|host| host.split(':').next().unwrap_or(host));
    let taps = names.filter(|name| {
        let second = name.ends_with(['2', '4', '6', '8']);
        let speaks_frr = frr
            .iter()
            .any(|word| *word == "frr" || *word == format!("{name}=frr"));
        (second || *name == "r1") && !speaks_frr
    });
    let taps = taps.map(|name| format!("{name}=tap"));
    // One that is there in any lab, as it is.
    std::iter::once("kernel".to_owned())
        .chain(taps)
        .collect::<Vec<_>>()
        .join(",")
}

#[cfg(test)]
mod tests {
    use super::mixed;

    #[test]
    fn every_second_host_is_named() {
        assert_eq!(mixed(&[]), "kernel,c2=tap,r1=tap");
        assert_eq!(mixed(&["--hosts", "3"]), "kernel,c2=tap,r1=tap");
        assert_eq!(
            mixed(&["--hosts", "m1,c1,c2,r1,r2"]),
            "kernel,c2=tap,r1=tap,r2=tap"
        );
        assert_eq!(mixed(&["--hosts", "m1,c1,big2:compute"]), "kernel,big2=tap");
        assert_eq!(mixed(&["--speaker", "c2=frr"]), "kernel,r1=tap");
        assert_eq!(mixed(&["--speaker", "frr"]), "kernel");
        let two = ["--speaker", "c1=frr", "--speaker", "c2=frr"];
        assert_eq!(mixed(&two), "kernel,r1=tap");
    }
}
