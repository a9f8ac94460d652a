//! Clients of a volume that remember all they asked for and were told: blocks are registers, and what was seen of
//! them has to be linearizable, whatever became of hosts meanwhile.

use crate::Lab;
use nbd::ClientConfig;
use nbd_io::{Client, Pool, RequestError, Target};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use testkit::history::{Kind, NOTHING, Operation, linearizable};
use tokio::sync::watch;

const BLOCK: usize = 4096;
/// Blocks that are used: few, so that clients meet.
const BLOCKS: u64 = 48;
/// Clients, each with a connection and one request at a time.
const CLIENTS: u64 = 6;
/// Between attempts to connect.
const AGAIN: Duration = Duration::from_millis(5);

/// Where clients go to; `None` for a moment in which they are to go nowhere.
type Place = Option<PathBuf>;

/// Clients that run until they are asked what they saw.
#[derive(Debug)]
pub struct Clients {
    shared: Arc<Shared>,
    place: watch::Sender<Place>,
    stop: watch::Sender<bool>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    serial: AtomicU64,
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    operations: Vec<Operation>,
    /// When something was answered as done.
    done: Vec<Instant>,
    /// Why something was not, and how often.
    failures: BTreeMap<String, u64>,
}

impl Shared {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where this machine finds the socket of a volume's URI on a lab host.
pub fn socket(lab: &Lab, host: &str, uri: &str) -> PathBuf {
    let path = uri.split_once("socket=").map(|(_, path)| path);
    let path = path.expect("it is served at a socket");
    PathBuf::from(format!("/proc/{}/root{path}", lab.holder(host)))
}

impl Clients {
    /// Starts them on a volume that nothing was written to.
    ///
    /// # Panics
    /// If the system starts no threads.
    pub fn start(socket: PathBuf) -> Self {
        let shared = Arc::new(Shared::default());
        shared.serial.store(NOTHING + 1, Ordering::Relaxed);
        let (place, places) = watch::channel(Some(socket));
        let (stop, stopped) = watch::channel(false);
        let threads = (0..CLIENTS).map(|number| {
            let client = One {
                number,
                shared: Arc::clone(&shared),
                writes: true,
                places: places.clone(),
                stopped: stopped.clone(),
            };
            client.start()
        });
        Self {
            threads: threads.collect(),
            shared,
            place,
            stop,
        }
    }

    /// They leave where they are, with what is under way: it may still happen there.
    pub fn leave(&self) {
        self.place.send_replace(None);
    }

    /// The volume was attached elsewhere by now, so what was under way at the place before happened already or never
    /// does; all go there.
    pub fn go(&self, socket: PathBuf) {
        // Nobody is there yet: whatever has no answer is of the place before.
        self.leave();
        let now = Instant::now();
        for operation in &mut self.shared.seen().operations {
            if operation.end.is_none() {
                operation.end = Some(now);
            }
        }
        self.place.send_replace(Some(socket));
    }

    /// One more, which stays at a place whatever becomes of the others, and reads: what it is told counts, too.
    pub fn watch(&mut self, socket: PathBuf) {
        let (_, places) = watch::channel(Some(socket));
        let watcher = One {
            number: CLIENTS + self.threads.len() as u64,
            writes: false,
            shared: Arc::clone(&self.shared),
            places,
            stopped: self.stop.subscribe(),
        };
        self.threads.push(watcher.start());
    }

    /// The longest time from then on in which nothing was done; to be called when something is again.
    pub fn longest_gap(&self, from: Instant) -> Duration {
        let seen = self.shared.seen();
        let mut done: Vec<Instant> = seen.done.iter().copied().filter(|at| *at > from).collect();
        done.push(from);
        done.sort();
        let gaps = done.windows(2).map(|two| two[1] - two[0]);
        gaps.max().unwrap_or_default()
    }

    /// When something was done last.
    ///
    /// # Panics
    /// If nothing was.
    pub fn last_done(&self) -> Instant {
        let last = self.shared.seen().done.iter().max().copied();
        last.expect("something was done")
    }

    /// Waits until so many requests were done that were asked after `from`.
    ///
    /// # Panics
    /// If they are not.
    pub fn wait_done(&self, from: Instant, count: usize) {
        testkit::eventually("requests are done", crate::LIMIT, || {
            let seen = self.shared.seen();
            let after = seen
                .operations
                .iter()
                .filter(|operation| operation.done && operation.begin > from);
            match after.count() {
                done if done >= count => Ok(()),
                done => Err(format!("{done} of {count}; failures: {:?}", seen.failures)),
            }
        });
    }

    /// Ends them.
    ///
    /// # Panics
    /// If what they saw cannot have been.
    pub fn finish(mut self) -> Summary {
        self.end();
        let seen = self.shared.seen();
        if let Err(why) = linearizable(&seen.operations) {
            panic!("not linearizable: {why}");
        }
        let count = |kind| {
            let operations = seen.operations.iter();
            operations
                .filter(|operation| operation.kind == kind && operation.done)
                .count()
        };
        Summary {
            writes: count(Kind::Write),
            reads: count(Kind::Read),
            failures: seen.failures.clone(),
        }
    }

    fn end(&mut self) {
        self.stop.send_replace(true);
        for thread in self.threads.drain(..) {
            thread
                .join()
                .expect("a client saw what it wrote, or zeroes");
        }
    }
}

/// What came of it.
#[derive(Debug, Clone)]
pub struct Summary {
    /// Done.
    pub writes: usize,
    /// Done.
    pub reads: usize,
    /// What was told instead, and how often.
    pub failures: BTreeMap<String, u64>,
}

impl Drop for Clients {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        for thread in self.threads.drain(..) {
            // A test that panics has said why.
            drop(thread.join());
        }
    }
}

struct One {
    number: u64,
    writes: bool,
    shared: Arc<Shared>,
    places: watch::Receiver<Place>,
    stopped: watch::Receiver<bool>,
}

impl One {
    fn start(self) -> JoinHandle<()> {
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            runtime.expect("a runtime").block_on(self.run());
        })
    }

    async fn run(mut self) {
        let mut stopped = self.stopped.clone();
        tokio::select! {
            _ = stopped.wait_for(|stopped| *stopped) => {}
            () = self.work() => {}
        }
    }

    async fn work(&mut self) {
        let pool = Pool::default();
        // Each its own sequence, the same in every run.
        let mut random = Random(0x9e37_79b9_7f4a_7c15 ^ (self.number << 40));
        loop {
            let Some(socket) = self.places.borrow_and_update().clone() else {
                // Whoever could say where to go has ended: so does this, soon.
                drop(self.places.changed().await);
                continue;
            };
            let config = ClientConfig {
                export: String::new(),
                tls: false,
                allocation: false,
            };
            let connected =
                Client::connect(&Target::Unix(socket), config, None, pool.clone()).await;
            let Ok(client) = connected else {
                tokio::time::sleep(AGAIN).await;
                continue;
            };
            loop {
                let mut places = self.places.clone();
                let block = random.next() % BLOCKS;
                let write = self.writes && random.next().is_multiple_of(2);
                let asked = self.request(&client, block, write);
                tokio::select! {
                    done = asked => if !done { break },
                    Ok(()) = places.changed() => break,
                }
            }
        }
    }

    /// False if the connection is of no use any more.
    async fn request(&self, client: &Client, block: u64, write: bool) -> bool {
        let offset = block * BLOCK as u64;
        let begin = Instant::now();
        let result = if write {
            let value = self.shared.serial.fetch_add(1, Ordering::Relaxed);
            let at = {
                let mut seen = self.shared.seen();
                seen.operations.push(Operation {
                    register: block,
                    kind: Kind::Write,
                    value,
                    begin,
                    end: None,
                    done: false,
                });
                seen.operations.len() - 1
            };
            let result = client.write(offset, content(block, value), false).await;
            if result.is_ok() {
                let mut seen = self.shared.seen();
                let operation = &mut seen.operations[at];
                // The answer may have come just before the volume was attached elsewhere.
                operation.end.get_or_insert_with(Instant::now);
                operation.done = true;
            }
            result
        } else {
            let read = client.read(offset, BLOCK as u32).await;
            read.map(|data| {
                let value = value_of(block, &data);
                self.shared.seen().operations.push(Operation {
                    register: block,
                    kind: Kind::Read,
                    value,
                    begin,
                    end: Some(Instant::now()),
                    done: true,
                });
            })
        };
        let lost = matches!(result, Err(RequestError::Lost));
        let mut seen = self.shared.seen();
        match result {
            Ok(()) => seen.done.push(Instant::now()),
            Err(error) => *seen.failures.entry(error.to_string()).or_default() += 1,
        }
        !lost
    }
}

/// A block with a value all over it.
fn content(block: u64, value: u64) -> bytes::Bytes {
    let word = (value << 16 | block).to_le_bytes();
    word.repeat(BLOCK / word.len()).into()
}

fn value_of(block: u64, data: &[u8]) -> u64 {
    let mut words = data
        .chunks_exact(8)
        .map(|word| u64::from_le_bytes(word.try_into().expect("a word has 8 bytes")));
    let first = words.next().unwrap_or_default();
    assert!(
        words.all(|word| word == first),
        "block {block} has parts of several writes"
    );
    assert!(
        first == NOTHING || first & 0xffff == block,
        "block {block} has what was written to another: {first:x}"
    );
    first >> 16
}

/// A sequence of numbers (splitmix64).
struct Random(u64);

impl Random {
    const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}
