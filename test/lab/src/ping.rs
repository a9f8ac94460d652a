//! A ping that runs beside a test and counts what was lost.

use crate::Lab;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::{BufRead, BufReader, Read};
use std::process::Child;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

/// A running ping.
#[derive(Debug)]
pub struct Ping {
    child: Child,
    /// What it says in the end, and the number of the last reply (16 bits).
    reader: Option<JoinHandle<(String, u16)>>,
}

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PingResult {
    /// Requests sent; not the last ones whose replies were on their way at the end.
    pub sent: u32,
    /// Replies received, duplicates not counted.
    pub received: u32,
    /// Replies received more than once.
    pub duplicates: u32,
}

impl PingResult {
    /// Requests without a reply.
    pub fn lost(&self) -> u32 {
        self.sent.saturating_sub(self.received)
    }
}

impl Ping {
    /// Pings `address` from a workload every `interval`; returns once the first reply is in.
    ///
    /// # Panics
    /// If no reply comes.
    pub fn start(lab: &Lab, place: &str, address: &str, interval: Duration) -> Self {
        let interval = format!("{:.3}", interval.as_secs_f64());
        // The process that is told to end is ping itself.
        let line = format!("exec ping -n -i {interval} {address}");
        let mut child = lab.spawn(place, &["sh", "-c", &line]);
        let stdout = child.stdout.take().expect("it is piped");
        let (first, replied) = mpsc::channel();
        let reader = std::thread::spawn(move || {
            let mut lines = BufReader::new(stdout);
            let mut text = String::new();
            let mut line = String::new();
            let mut newest = 0;
            while lines.read_line(&mut line).unwrap_or(0) > 0 {
                if line.contains("bytes from") {
                    let _sent = first.send(());
                    newest = number_of(&line).unwrap_or(newest);
                } else {
                    text.push_str(&line);
                }
                line.clear();
            }
            (text, newest)
        });
        replied
            .recv_timeout(crate::LIMIT)
            .expect("a reply to the first ping");
        Self {
            child,
            reader: Some(reader),
        }
    }

    /// Ends it and counts.
    ///
    /// # Panics
    /// If it does not say what it counted.
    pub fn stop(mut self) -> PingResult {
        kill(self.own_pid(), Signal::SIGINT).expect("the ping is still running");
        let status = self.child.wait().expect("it is our child");
        let reader = self.reader.take().expect("it is taken here only");
        let (text, newest) = reader.join().expect("the reader does not panic");
        let mut errors = String::new();
        if let Some(mut stderr) = self.child.stderr.take() {
            drop(stderr.read_to_string(&mut errors));
        }
        let result = summary(&text);
        let result =
            result.unwrap_or_else(|| panic!("ping said nothing: {status}\n{text}{errors}"));
        without_the_last(result, newest)
    }
}

impl Ping {
    /// `vpc lab exec` has one child: the ping itself.
    fn own_pid(&self) -> Pid {
        let id = self.child.id();
        let children = std::fs::read_to_string(format!("/proc/{id}/task/{id}/children"));
        let children = children.unwrap_or_default();
        let ping = children
            .split_whitespace()
            .next()
            .and_then(|pid| pid.parse().ok());
        Pid::from_raw(ping.expect("the ping is still running"))
    }
}

impl Drop for Ping {
    fn drop(&mut self) {
        // The command ends with its `lab exec`. After `stop` there is nothing left to end.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// `64 bytes from 10.0.0.1: icmp_seq=7 ttl=64 time=0.031 ms`
fn number_of(line: &str) -> Option<u16> {
    let (_, rest) = line.split_once("icmp_seq=")?;
    rest.split(' ').next()?.parse().ok()
}

/// Requests whose replies may be on their way at the end. More without a reply are lost.
const ON_THEIR_WAY: u32 = 3;

/// Ping ends at once when it is told to: replies that are on their way then are not lost.
fn without_the_last(result: PingResult, newest: u16) -> PingResult {
    let behind = u32::from((result.sent as u16).wrapping_sub(newest));
    let on_their_way = if behind <= ON_THEIR_WAY { behind } else { 0 };
    PingResult {
        sent: result.sent - on_their_way.min(result.lost()),
        ..result
    }
}

/// `123 packets transmitted, 122 received, +1 duplicates, ...`
fn summary(text: &str) -> Option<PingResult> {
    let line = text
        .lines()
        .find(|line| line.contains("packets transmitted"))?;
    let number = |word: &str| -> Option<u32> {
        let part = line.split(',').find(|part| part.contains(word))?;
        part.trim()
            .trim_start_matches('+')
            .split(' ')
            .next()?
            .parse()
            .ok()
    };
    Some(PingResult {
        sent: number("transmitted")?,
        received: number("received")?,
        duplicates: number("duplicates").unwrap_or(0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_is_read() {
        let text = "\n--- 10.0.0.1 ping statistics ---\n120 packets transmitted, 118 received, \
                    +2 duplicates, 1.6% packet loss, time 1190ms\n";
        let result = summary(text).unwrap();
        assert_eq!(
            (result.sent, result.received, result.duplicates),
            (120, 118, 2)
        );
        assert_eq!(result.lost(), 2);
    }

    #[test]
    fn a_reply_that_is_still_on_its_way_is_not_lost() {
        let line = "64 bytes from 10.0.0.1: icmp_seq=119 ttl=64 time=0.031 ms";
        assert_eq!(number_of(line), Some(119));
        let result = |sent, received| PingResult {
            sent,
            received,
            duplicates: 0,
        };
        let lost = |sent, received, newest| without_the_last(result(sent, received), newest).lost();
        assert_eq!(lost(120, 120, 120), 0);
        assert_eq!(lost(120, 119, 119), 0);
        assert_eq!(lost(120, 117, 117), 0);
        // One before them, and one reply that came late.
        assert_eq!(lost(120, 119, 120), 1);
        assert_eq!(lost(120, 118, 119), 1);
        assert_eq!(lost(120, 119, 118), 0);
        // Nothing comes any more.
        assert_eq!(lost(120, 116, 116), 4);
        // The number has 16 bits.
        assert_eq!(lost(65_537, 65_536, 1), 1);
        assert_eq!(lost(65_537, 65_536, 0), 0);
    }
}
