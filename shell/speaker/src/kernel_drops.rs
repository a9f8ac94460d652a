//! What the kernel dropped before BGP could see it. Wrong keys and TTLs leave no other trace.

/// TCP packets dropped in this network namespace.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct KernelDrops {
    /// With a missing, wrong or unexpected TCP-MD5 signature (RFC 2385).
    pub(crate) unsigned: u64,
    /// With a TTL below what a socket takes (RFC 5082).
    pub(crate) too_far: u64,
}

impl KernelDrops {
    /// What the kernel has counted; zero where it does not count.
    pub(crate) fn read() -> Self {
        // Of the thread, whose namespace may be another than the process's.
        let text = std::fs::read_to_string("/proc/thread-self/net/netstat");
        text.map(|text| Self::parse(&text)).unwrap_or_default()
    }

    /// Lines come in pairs: names, then values.
    fn parse(text: &str) -> Self {
        let mut drops = Self::default();
        let lines: Vec<&str> = text.lines().collect();
        for pair in lines.chunks_exact(2) {
            let names = pair[0].split_whitespace();
            for (name, value) in names.zip(pair[1].split_whitespace()) {
                let value: u64 = value.parse().unwrap_or_default();
                match name {
                    "TCPMD5NotFound" | "TCPMD5Unexpected" | "TCPMD5Failure" => {
                        drops.unsigned += value;
                    }
                    "TCPMinTTLDrop" => drops.too_far += value,
                    _ => {}
                }
            }
        }
        drops
    }

    /// What came since another reading.
    pub(crate) fn since(self, before: Self) -> Self {
        Self {
            unsigned: self.unsigned.saturating_sub(before.unsigned),
            too_far: self.too_far.saturating_sub(before.too_far),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::KernelDrops;

    #[test]
    fn names_and_values_are_matched() {
        let text = "TcpExt: SyncookiesSent TCPMD5NotFound TCPMD5Unexpected TCPMD5Failure TCPMinTTLDrop\n\
                    TcpExt: 9 1 2 3 7\nIpExt: InNoRoutes\nIpExt: 5\n";
        let read = KernelDrops::parse(text);
        let (unsigned, too_far) = (6, 7);
        assert_eq!(read, KernelDrops { unsigned, too_far });
    }
}
