//! Loads that fio makes, and what it says of them.

use lab::{Lab, text_of};
use serde_json::Value;

/// What is asked of a disk.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load {
    pub(crate) name: &'static str,
    /// As fio has it: `randread`.
    pub(crate) kind: &'static str,
    pub(crate) kib: u32,
    pub(crate) depth: u32,
}

/// What came of it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rate {
    /// Requests a second.
    pub(crate) iops: f64,
    /// Requests in all.
    pub(crate) requests: f64,
    /// Microseconds.
    pub(crate) mean: f64,
    pub(crate) p99: f64,
}

impl Load {
    pub(crate) const fn is_write(&self) -> bool {
        matches!(self.kind.as_bytes(), b"write" | b"randwrite")
    }

    /// What a row has: requests a second of small ones, MB/s of large ones.
    pub(crate) fn figure(&self, rate: Rate) -> f64 {
        match self.kib {
            0..64 => rate.iops,
            kib => rate.iops * f64::from(kib) * 1024.0 / 1e6,
        }
    }

    pub(crate) const fn unit(&self) -> &'static str {
        match self.kib {
            0..64 => "/s",
            _ => "MB/s",
        }
    }

    /// For so long, on what `target` says in fio's own words.
    pub(crate) fn run(&self, lab: &Lab, host: &str, target: &str, seconds: u64) -> Rate {
        let Self {
            kind, kib, depth, ..
        } = self;
        let line = format!(
            "cd /run && fio --name=load --rw={kind} --bs={kib}k --iodepth={depth} --runtime={seconds} --ramp_time=1 \
             --time_based --norandommap --randrepeat=0 --refill_buffers --percentile_list=99 --group_reporting \
             --output-format=json {target}"
        );
        rate(&fio(lab, host, &line))
    }
}

/// Writes all of a target once.
pub(crate) fn fill(lab: &Lab, host: &str, target: &str) {
    let line = format!(
        "cd /run && fio --name=fill --rw=write --bs=1m --iodepth=4 --end_fsync=1 --refill_buffers \
         --output-format=json {target}"
    );
    fio(lab, host, &line);
}

fn fio(lab: &Lab, host: &str, line: &str) -> Value {
    let output = lab.try_sh(host, line);
    assert!(output.status.success(), "{line}: {}", text_of(&output));
    // Notes may come before the report.
    let text = String::from_utf8_lossy(&output.stdout);
    let from = text.find('{').unwrap_or_default();
    let report = serde_json::from_str(&text[from..]);
    report.unwrap_or_else(|error| panic!("{line}: {error}: {text}"))
}

fn rate(report: &Value) -> Rate {
    let job = &report["jobs"][0];
    let ways = [&job["read"], &job["write"]];
    let busy = ways
        .into_iter()
        .find(|way| way["total_ios"].as_u64() > Some(0));
    let way = busy.unwrap_or_else(|| panic!("fio did nothing: {report}"));
    let number = |value: &Value| value.as_f64().expect("fio says it with a number");
    Rate {
        iops: number(&way["iops"]),
        requests: number(&way["total_ios"]),
        mean: number(&way["clat_ns"]["mean"]) / 1e3,
        p99: number(&way["clat_ns"]["percentile"]["99.000000"]) / 1e3,
    }
}
