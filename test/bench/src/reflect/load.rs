//! `bench reflect-load`: the peers of one run, inside the reflector's network namespace.

use super::client::{self, Routes, Seen, Session};
use serde::{Deserialize, Serialize};
use std::fs;
use std::io::Write;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Where the reflector listens, in a namespace of its own.
pub(super) const REFLECTOR: Ipv4Addr = Ipv4Addr::new(10, 200, 255, 254);
/// The first client; the others follow.
pub(super) const FIRST_CLIENT: Ipv4Addr = Ipv4Addr::new(10, 200, 0, 1);
/// Time between two probes.
const PROBE_EVERY: Duration = Duration::from_millis(20);
/// The table is sent over and over at least this long for the probes.
const PROBE_FOR: Duration = Duration::from_secs(4);
const PROBES_MAX: usize = 5000;

/// One run.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct Plan {
    pub(super) routes: usize,
    pub(super) vnis: usize,
    pub(super) receivers: usize,
    /// The reflector's process.
    pub(super) pid: u32,
    /// How long each step may take.
    pub(super) limit_s: u64,
    /// One client that never reads is there from the start.
    pub(super) mute: bool,
}

/// What came of it; seconds, KiB.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Outcome {
    /// From the first octet sent until the last receiver had all; none: not in time.
    pub(super) converged_s: Option<f64>,
    /// From the late joiner's connection attempt until it had all.
    pub(super) joined_s: Option<f64>,
    /// From the first octet of the withdrawal until nobody had any.
    pub(super) withdrawn_s: Option<f64>,
    /// Of probes that came, ms.
    pub(super) probe_p50_ms: Option<f64>,
    pub(super) probe_p99_ms: Option<f64>,
    pub(super) probes: usize,
    pub(super) probes_lost: usize,
    /// Resident before the first route, when all had all, and the most there ever was.
    pub(super) idle_kib: u64,
    pub(super) full_kib: u64,
    pub(super) peak_kib: u64,
    /// Processor time of the reflector until all had all.
    pub(super) cpu_s: f64,
}

fn nth_client(n: usize) -> Ipv4Addr {
    Ipv4Addr::from_bits(FIRST_CLIENT.to_bits() + u32::try_from(n).expect("few"))
}

/// Carries out the plan.
pub(super) fn run(plan: &Plan) -> Outcome {
    let mut outcome = Outcome::default();
    let limit = Duration::from_secs(plan.limit_s);
    let routes = Routes {
        count: plan.routes,
        vnis: plan.vnis,
    };
    let (feeder_ip, prober_ip) = (nth_client(0), nth_client(1));
    let mut feeder = client::session(feeder_ip, REFLECTOR);
    client::drain(&feeder.stream);
    let prober = client::session(prober_ip, REFLECTOR);
    client::drain(&prober.stream);
    let _mute = plan.mute.then(|| client::session(nth_client(2), REFLECTOR));
    let receivers: Vec<Arc<Seen>> = (0..plan.receivers)
        .map(|n| client::receiver(nth_client(4 + n), REFLECTOR, plan.routes, PROBES_MAX))
        .collect();
    // Sessions that came up just now are told End-of-RIB first; FRR also groups them.
    thread::sleep(Duration::from_secs(3));

    let table = client::table(routes, feeder_ip, true, 0);
    let gone = client::table(routes, feeder_ip, false, 0);
    outcome.idle_kib = status(plan.pid, "VmRSS");
    let cpu = cpu_seconds(plan.pid);
    let start = Instant::now();
    feed(&mut feeder, &table);
    outcome.converged_s = wait(&receivers, start, limit, Seen::all_at);
    outcome.cpu_s = cpu_seconds(plan.pid) - cpu;
    outcome.full_kib = status(plan.pid, "VmRSS");
    outcome.peak_kib = status(plan.pid, "VmHWM");
    if outcome.converged_s.is_none() {
        return outcome;
    }

    let start = Instant::now();
    let late = client::receiver(nth_client(3), REFLECTOR, plan.routes, PROBES_MAX);
    outcome.joined_s = wait(std::slice::from_ref(&late), start, limit, Seen::all_at);

    let start = Instant::now();
    feed(&mut feeder, &gone);
    outcome.withdrawn_s = wait(&receivers, start, limit, Seen::none_at);
    if outcome.withdrawn_s.is_some() {
        probe(
            plan,
            &mut outcome,
            (feeder, routes, feeder_ip),
            prober,
            &receivers,
        );
    }
    outcome.peak_kib = status(plan.pid, "VmHWM");
    outcome
}

/// Single routes of one client while another sends its whole table over and over: each time with
/// another mobility sequence than before, so that each time all of it has to be passed on.
fn probe(
    plan: &Plan,
    outcome: &mut Outcome,
    (mut feeder, routes, feeder_ip): (Session, Routes, Ipv4Addr),
    mut prober: Session,
    receivers: &[Arc<Seen>],
) {
    let over = Arc::new(AtomicBool::new(false));
    let stop = Arc::clone(&over);
    let feeding = thread::spawn(move || {
        let tables = [1, 2].map(|sequence| client::table(routes, feeder_ip, true, sequence));
        for table in tables.iter().cycle() {
            if stop.load(Ordering::Relaxed) || feeder.write(table).is_err() {
                return;
            }
        }
    });
    let start = Instant::now();
    let mut sent = vec![];
    let mut next = start;
    while start.elapsed() < PROBE_FOR {
        thread::sleep(next.saturating_duration_since(Instant::now()));
        next += PROBE_EVERY;
        let message = client::single(plan.routes + sent.len(), nth_client(1));
        sent.push(Instant::now());
        feed(&mut prober, &message);
    }
    let deadline = Instant::now() + Duration::from_secs(plan.limit_s.min(15));
    let came = |number: usize, at: Instant| {
        let times = receivers.iter().map(|seen| seen.probe_at(number));
        let last = times.collect::<Option<Vec<_>>>()?.into_iter().max()?;
        Some(last.duration_since(at).as_secs_f64() * 1e3)
    };
    // The feeder goes on until the last probe is through: the load must not end before.
    while Instant::now() < deadline
        && !sent
            .iter()
            .enumerate()
            .all(|(n, at)| came(n, *at).is_some())
    {
        thread::sleep(Duration::from_millis(5));
    }
    over.store(true, Ordering::Relaxed);
    let delays: Vec<f64> = sent
        .iter()
        .enumerate()
        .filter_map(|(n, at)| came(n, *at))
        .collect();
    outcome.probes = sent.len();
    outcome.probes_lost = sent.len() - delays.len();
    outcome.probe_p50_ms = Some(crate::figures::percentile(&delays, 0.5));
    outcome.probe_p99_ms = Some(crate::figures::percentile(&delays, 0.99));
    // It may hang in a write to a reflector that reads no more; it ends with this process.
    drop(feeding);
}

fn feed(to: &mut Session, bytes: &[u8]) {
    drop(to.write(bytes));
}

fn wait(
    receivers: &[Arc<Seen>],
    start: Instant,
    limit: Duration,
    when: impl Fn(&Seen) -> Option<Instant>,
) -> Option<f64> {
    loop {
        let times: Option<Vec<Instant>> = receivers.iter().map(|seen| when(seen)).collect();
        if let Some(last) = times.and_then(|times| times.into_iter().max()) {
            return Some(last.duration_since(start).as_secs_f64());
        }
        let lost = receivers.iter().any(|seen| seen.is_lost());
        if lost || start.elapsed() > limit {
            let held: Vec<usize> = receivers.iter().map(|seen| seen.held()).collect();
            let mut err = std::io::stderr().lock();
            drop(writeln!(
                err,
                "   session lost: {lost}; routes held: {held:?}"
            ));
            return None;
        }
        thread::sleep(Duration::from_millis(1));
    }
}

/// A line of `/proc/PID/status`, KiB.
fn status(pid: u32, key: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with(key));
    let value = line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok());
    value.unwrap_or(0)
}

fn cpu_seconds(pid: u32) -> f64 {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields: Vec<&str> = text
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .collect();
    let ticks = |at: usize| -> f64 { fields.get(at).and_then(|f| f.parse().ok()).unwrap_or(0.0) };
    (ticks(11) + ticks(12)) / 100.0
}
