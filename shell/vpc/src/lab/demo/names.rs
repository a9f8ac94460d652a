//! What routers of the demo tell NICs: names, and metadata.

use super::SETTLE;
use super::reach::Nic;
use crate::failure::{Doing, Outcome};
use crate::lab::cluster::Inside;
use crate::lab::told::Told;
use serde::Serialize;
use std::time::Instant;

/// One NIC and what its router told it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Answer {
    /// Who asked.
    from: String,
    /// For which name.
    name: String,
    address: Option<String>,
    hostname: Option<String>,
    expected_address: String,
    expected_hostname: String,
}

/// `a1.web.blue.internal` for `blue/web/a1`.
fn name_of(path: &str) -> String {
    let parts: Vec<&str> = path.rsplit('/').collect();
    format!("{}.internal", parts.join("."))
}

/// In each VPC the first NIC asks for the last.
pub(crate) fn look(inside: &Inside<'_>, nics: &[Nic]) -> Outcome<Vec<Answer>> {
    let vpc = |nic: &Nic| nic.path.split('/').next().unwrap_or_default().to_owned();
    let mut answers = Vec::new();
    for of_vpc in nics.chunk_by(|one, other| vpc(one) == vpc(other)) {
        if let [first, .., last] = of_vpc {
            answers.push(settled(inside, first, last)?);
        }
    }
    Ok(answers)
}

/// Asks until all is as expected, or the time is up.
fn settled(inside: &Inside<'_>, from: &Nic, about: &Nic) -> Outcome<Answer> {
    let deadline = Instant::now() + SETTLE;
    loop {
        let answer = ask(inside, from, about)?;
        if answer.wrong().is_none() || Instant::now() >= deadline {
            return Ok(answer);
        }
    }
}

fn ask(inside: &Inside<'_>, from: &Nic, about: &Nic) -> Outcome<Answer> {
    let name = name_of(&about.path);
    let net = from.ipv4.rsplit_once('.').map_or("", |(net, _)| net);
    let argv = [
        "vpc",
        "lab",
        "told",
        "--resolver",
        &format!("{net}.1"),
        &name,
    ];
    let output = inside.command(&from.place(), &argv).output();
    let output = output.doing(|| format!("asking the router from {}", from.path))?;
    let told: Told = serde_json::from_slice(&output.stdout)
        .doing(|| format!("reading what {} was told", from.path))?;
    Ok(Answer {
        from: from.path.clone(),
        name,
        address: told.address.map(|ip| ip.to_string()),
        hostname: told.hostname,
        expected_address: about.ipv4.clone(),
        expected_hostname: name_of(&from.path),
    })
}

impl Answer {
    /// What is not as expected, in words.
    pub(crate) fn wrong(&self) -> Option<String> {
        let said = |told: &Option<String>| told.clone().unwrap_or_else(|| "nothing".to_owned());
        let expected = (Some(&self.expected_address), Some(&self.expected_hostname));
        if (self.address.as_ref(), self.hostname.as_ref()) == expected {
            return None;
        }
        Some(format!(
            "{} asked its router: expected {} for {} and {} for itself, was told {} and {}",
            self.from,
            self.expected_address,
            self.name,
            self.expected_hostname,
            said(&self.address),
            said(&self.hostname),
        ))
    }

    /// A line for people.
    pub(crate) fn line(&self) -> String {
        let said = |told: &Option<String>| told.clone().unwrap_or_else(|| "-".to_owned());
        format!(
            "{:<14} {} is {}; metadata: it is {}",
            self.from,
            self.name,
            said(&self.address),
            said(&self.hostname)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_tenants_answer_is_caught() {
        let mut answer = Answer {
            from: "blue/web/a1".to_owned(),
            name: name_of("blue/db/a2"),
            address: Some("10.4.2.12".to_owned()),
            hostname: Some("a1.web.blue.internal".to_owned()),
            expected_address: "10.4.2.12".to_owned(),
            expected_hostname: name_of("blue/web/a1"),
        };
        assert_eq!(answer.wrong(), None);
        answer.hostname = Some("a1.web.red.internal".to_owned());
        assert_eq!(
            answer.wrong().as_deref(),
            Some(
                "blue/web/a1 asked its router: expected 10.4.2.12 for a2.db.blue.internal and \
                 a1.web.blue.internal for itself, was told 10.4.2.12 and a1.web.red.internal"
            )
        );
    }
}
