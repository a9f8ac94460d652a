//! What a subnet's NICs are told: flags of `vpc subnet create` and `set`, and what `show` shows.

use api::v1;
use clap::{Args, ValueEnum};
use model::DomainName;
use serde::Serialize;
use std::collections::BTreeMap;
use std::net::IpAddr;

/// What is given takes the place of what was; an empty text takes it away.
#[derive(Debug, Args)]
pub(crate) struct Told {
    /// Whether hosts answer DHCP and router solicitations at each port, and silence others who do
    #[arg(long, value_name = "on|off")]
    dhcp: Option<Switch>,
    /// A resolver, IPv4 or IPv6; may be given several times
    #[arg(long, value_name = "ADDRESS", value_parser = empty_or::<IpAddr>)]
    dns: Vec<String>,
    /// The domain that NICs are in
    #[arg(long, value_name = "DOMAIN", value_parser = empty_or::<DomainName>)]
    domain: Option<String>,
    /// A domain that names are looked up in; may be given several times
    #[arg(long, value_name = "DOMAIN", value_parser = empty_or::<DomainName>)]
    search: Vec<String>,
    /// A time server, IPv4 or IPv6; may be given several times
    #[arg(long, value_name = "ADDRESS", value_parser = empty_or::<IpAddr>)]
    ntp: Vec<String>,
    /// A DHCPv4 option for clients that ask for it, as in 66=746674702e6c616e; N= takes it away
    #[arg(long, value_name = "N=HEX", value_parser = custom)]
    dhcp_option: Vec<(u8, Vec<u8>)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Switch {
    On,
    Off,
}

impl Told {
    /// True if nothing was given.
    pub(crate) fn is_empty(&self) -> bool {
        let Self {
            dhcp,
            dns,
            domain,
            search,
            ntp,
            dhcp_option,
        } = self;
        let lists = [dns, search, ntp].iter().all(|list| list.is_empty());
        dhcp.is_none() && domain.is_none() && dhcp_option.is_empty() && lists
    }

    /// What was, with what was given.
    pub(crate) fn changed(&self, mut options: v1::SubnetOptions) -> v1::SubnetOptions {
        if let Some(switch) = self.dhcp {
            options.dhcp_off = switch == Switch::Off;
        }
        if let Some(domain) = &self.domain {
            options.domain.clone_from(domain);
        }
        for (list, given) in [
            (&mut options.dns, &self.dns),
            (&mut options.search, &self.search),
            (&mut options.ntp, &self.ntp),
        ] {
            if !given.is_empty() {
                let kept = given.iter().filter(|text| !text.is_empty());
                *list = kept.cloned().collect();
            }
        }
        for (code, bytes) in &self.dhcp_option {
            let code = u32::from(*code);
            if bytes.is_empty() {
                options.custom.remove(&code);
            } else {
                options.custom.insert(code, bytes.clone());
            }
        }
        options
    }
}

/// The text, if it is empty or a `T`.
fn empty_or<T>(text: &str) -> Result<String, T::Err>
where
    T: std::str::FromStr + ToString,
{
    if text.is_empty() {
        return Ok(String::new());
    }
    text.parse::<T>().map(|value| value.to_string())
}

fn custom(text: &str) -> Result<(u8, Vec<u8>), String> {
    let bad = || "write CODE=HEX, as in 66=746674702e6c616e".to_owned();
    let (code, hex) = text.split_once('=').ok_or_else(bad)?;
    let code = code.parse().map_err(|_| bad())?;
    if !hex.len().is_multiple_of(2) || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(bad());
    }
    let bytes = (0..hex.len()).step_by(2).map(|at| {
        u8::from_str_radix(&hex[at..at + 2], 16).expect("both are digits of hexadecimal numbers")
    });
    Ok((code, bytes.collect()))
}

/// What a subnet's NICs are told.
#[derive(Debug, Serialize)]
pub(crate) struct OptionsView {
    dhcp: bool,
    dns: Vec<String>,
    domain: Option<String>,
    search: Vec<String>,
    ntp: Vec<String>,
    /// In hexadecimal.
    custom: BTreeMap<u32, String>,
}

impl From<v1::SubnetOptions> for OptionsView {
    fn from(options: v1::SubnetOptions) -> Self {
        let hex = |bytes: Vec<u8>| bytes.iter().map(|b| format!("{b:02x}")).collect();
        Self {
            dhcp: !options.dhcp_off,
            dns: options.dns,
            domain: Some(options.domain).filter(|domain| !domain.is_empty()),
            search: options.search,
            ntp: options.ntp,
            custom: (options.custom.into_iter())
                .map(|(code, bytes)| (code, hex(bytes)))
                .collect(),
        }
    }
}

impl OptionsView {
    /// Lines for people: what is not as usual.
    pub(crate) fn details(&self) -> Vec<(&'static str, String)> {
        let custom: Vec<_> = (self.custom.iter())
            .map(|(code, hex)| format!("{code}={hex}"))
            .collect();
        let dhcp = if self.dhcp { "" } else { "off" };
        [
            ("dhcp", dhcp.to_owned()),
            ("dns", self.dns.join(" ")),
            ("domain", self.domain.clone().unwrap_or_default()),
            ("search", self.search.join(" ")),
            ("ntp", self.ntp.join(" ")),
            ("dhcp options", custom.join(" ")),
        ]
        .into_iter()
        .filter(|(_, text)| !text.is_empty())
        .collect()
    }
}
