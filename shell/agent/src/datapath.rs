//! The datapath as the kernel's thread sees it: started if it should run, asked what it was told,
//! told more, ended when nothing uses it any more.
//!
//! Nobody but this agent tells it anything, so what it was told is kept here: a hundred thousand rows
//! are asked for when it is first talked to, after anything went wrong and at each whole look.

use crate::kernel::chain;
use datapath::{Change, Tables};
use model::Transport;
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};
use tracing::{info, warn};
use tunnel::{Client, Figures, SOCKET_NAME, TunnelError};

/// Rows that are told at once.
const BATCH: usize = 4096;
/// How long the kernel's thread waits for one that is being started: mostly it is there by then.
const PATIENCE: Duration = Duration::from_millis(500);
/// How long a host without a connection passes for one whose datapath has what it was told: another takes
/// over, or is started. What is not ready is not announced, and on a busy machine some tenths of a second
/// pass until it answers.
const FAITH: Duration = Duration::from_secs(5);
/// After one could not be started, which may take its time; then twice as long, and so on ...
const RETRY_FIRST: Duration = Duration::from_millis(500);
/// ... up to this.
const RETRY_MOST: Duration = Duration::from_secs(30);

/// What is told of a datapath without being asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum News {
    /// One that was talked to has ended: its process.
    Ended(u32),
    /// It is known what became of one that was looked for, later than a look waits for it.
    Found,
}

/// The one datapath of this host.
pub(crate) struct Datapath {
    run_dir: PathBuf,
    transport: Transport,
    tell: Arc<dyn Fn(News) + Send + Sync>,
    /// Whose end is waited for already.
    watched: Option<u32>,
    talk: Option<Talk>,
    /// While there is no connection: what was known by the last one.
    lost: Option<Lost>,
    faith: Duration,
    /// Those that are being looked for.
    coming: Option<Receiver<Result<Client, TunnelError>>>,
    /// Why there is none, though there should be.
    trouble: Option<Trouble>,
}

struct Trouble {
    why: String,
    retry_at: Instant,
    wait: Duration,
}

/// A connection, and what is known by it.
struct Talk {
    client: Client,
    told: Tables,
}

/// A connection that broke, or whose process ended.
struct Lost {
    told: Tables,
    at: Instant,
}

impl Datapath {
    /// `tell` is called on threads of their own.
    pub(crate) fn new(
        run_dir: &Path,
        transport: Transport,
        tell: impl Fn(News) + Send + Sync + 'static,
    ) -> Self {
        Self {
            run_dir: run_dir.to_owned(),
            transport,
            tell: Arc::new(tell),
            watched: None,
            talk: None,
            lost: None,
            faith: FAITH,
            coming: None,
            trouble: None,
        }
    }

    /// What it was told, and why it does not run if it should. With `whole` it is asked itself. While
    /// another is looked for, for a while both.
    pub(crate) fn look(&mut self, whole: bool) -> (Option<Tables>, Option<String>) {
        let asked = match &mut self.talk {
            Some(talk) if whole => talk.ask(),
            _ => Ok(()),
        };
        if let Err(error) = asked {
            info!(error = chain(&error), "The datapath does not answer");
            self.lose();
        }
        let now = Instant::now();
        let trouble = self.trouble.as_ref().filter(|held| held.retry_at > now);
        let trouble = match trouble.map(|trouble| trouble.why.clone()) {
            None => match self.attend() {
                Ok(is_starting) => is_starting.then(|| "it is being started".to_owned()),
                Err(error) => Some(self.failed(chain(&error))),
            },
            held => held,
        };
        self.end_if_unused();
        if let Some(talk) = &self.talk {
            return (Some(talk.told.clone()), None);
        }
        let is_coming = self.coming.is_some();
        self.lost
            .take_if(|lost| !is_coming || lost.at.elapsed() >= self.faith);
        (self.lost.as_ref().map(|lost| lost.told.clone()), trouble)
    }

    /// Tells it changes; each has its outcome at its place. What follows a broken connection is
    /// left to the next look.
    pub(crate) fn apply(&mut self, changes: &[&Change]) -> Vec<Result<(), String>> {
        let mut outcomes = Vec::with_capacity(changes.len());
        for batch in changes.chunks(BATCH) {
            let batch: Vec<Change> = batch.iter().map(|change| (*change).clone()).collect();
            let Some(talk) = &mut self.talk else {
                let missing = || Err("no datapath runs".to_owned());
                outcomes.extend(batch.iter().map(|_| missing()));
                continue;
            };
            match talk.tell(&batch) {
                Ok(some) => outcomes.extend(some),
                Err(error) => {
                    let error = chain(&error);
                    outcomes.extend(batch.iter().map(|_| Err(error.clone())));
                    self.lose();
                }
            }
        }
        outcomes
    }

    /// One that was talked to has ended; it may not be the one that is talked to now.
    pub(crate) fn has_ended(&mut self, pid: u32) {
        if self
            .talk
            .as_ref()
            .is_some_and(|talk| talk.client.pid() == pid)
        {
            self.lose();
        }
        self.watched.take_if(|watched| *watched == pid);
    }

    fn lose(&mut self) {
        if let Some(Talk { told, .. }) = self.talk.take() {
            let at = Instant::now();
            self.lost = Some(Lost { told, at });
        }
    }

    /// Notes why there is none, and when that is looked into again.
    fn failed(&mut self, why: String) -> String {
        let before = self.trouble.take();
        let wait = before.as_ref().map_or(RETRY_FIRST, |trouble| {
            trouble.wait.saturating_mul(2).min(RETRY_MOST)
        });
        if before.is_none_or(|trouble| trouble.why != why) {
            warn!(error = why, "No datapath was started");
        }
        self.trouble = Some(Trouble {
            why: why.clone(),
            retry_at: Instant::now() + wait,
            wait,
        });
        why
    }

    /// Sees to it that the right one is talked to. Finding or starting it may take seconds; true while that
    /// is under way.
    fn attend(&mut self) -> Result<bool, TunnelError> {
        while !self.talks_to_the_right_one() {
            let coming = match self.coming.take() {
                Some(coming) => coming,
                None => find(&self.run_dir, self.transport, &self.tell)?,
            };
            // Meanwhile one of another version goes on, and is told what is new.
            let patience = match self.talk {
                Some(_) => Duration::ZERO,
                None => PATIENCE,
            };
            match coming.recv_timeout(patience) {
                Ok(client) => self.talk_by(client?)?,
                Err(RecvTimeoutError::Timeout) => {
                    self.coming = Some(coming);
                    return Ok(true);
                }
                // None runs, and none needs to.
                Err(RecvTimeoutError::Disconnected) if self.transport == Transport::Kernel => break,
                Err(RecvTimeoutError::Disconnected) => continue,
            }
            self.coming = Some(coming);
        }
        // Whoever has been found: the next one is looked for anew.
        self.coming = None;
        self.trouble = None;
        Ok(false)
    }

    fn talks_to_the_right_one(&self) -> bool {
        let is_right =
            |talk: &Talk| self.transport == Transport::Kernel || talk.client.is_own_version();
        self.talk.as_ref().is_some_and(is_right)
    }

    fn talk_by(&mut self, client: Client) -> Result<(), TunnelError> {
        let mut talk = Talk {
            client,
            told: Tables::default(),
        };
        talk.ask()?;
        let (pid, rows) = (talk.client.pid(), talk.told.macs.len());
        if self.watched.replace(pid) != Some(pid) {
            self.watch(pid);
        }
        info!(pid, macs = rows, "Talking to the datapath");
        self.talk = Some(talk);
        self.lost = None;
        Ok(())
    }

    fn watch(&self, pid: u32) {
        let path = self.run_dir.join(SOCKET_NAME);
        let tell = Arc::clone(&self.tell);
        let thread = thread::Builder::new().name("datapath".to_owned());
        let spawned = thread.spawn(move || wait_for_end(&path, || tell(News::Ended(pid))));
        if let Err(error) = spawned {
            warn!(%error, "That a datapath ends is seen late");
        }
    }

    /// Ends one that an agent of another setting left, once its tables are empty.
    fn end_if_unused(&mut self) {
        let unused = |talk: &mut Talk| talk.told == Tables::default();
        let kernel = self.transport == Transport::Kernel;
        if let Some(talk) = self.talk.take_if(|talk| kernel && unused(talk)) {
            match talk.client.stop() {
                Ok(()) => info!("The datapath has ended: the kernel carries"),
                Err(error) => warn!(error = chain(&error), "The datapath did not end well"),
            }
        }
    }
}

impl Talk {
    fn ask(&mut self) -> Result<(), TunnelError> {
        self.told = self.client.tables()?;
        Ok(())
    }

    fn tell(&mut self, changes: &[Change]) -> Result<Vec<Result<(), String>>, TunnelError> {
        let outcomes = self.client.apply(changes)?;
        let mut doubt = false;
        for (change, outcome) in changes.iter().zip(&outcomes) {
            match outcome {
                Ok(()) => self.told.apply(change),
                Err(_) => doubt = true,
            }
        }
        if doubt {
            // What else it is without, it says itself.
            self.ask()?;
        }
        Ok(outcomes)
    }
}

/// Those that are to be talked to, one after the other, from a thread of its own: the one that runs; if
/// none runs that should, or one of another version, one that is started and takes over from it.
fn find(
    run_dir: &Path,
    transport: Transport,
    tell: &Arc<dyn Fn(News) + Send + Sync>,
) -> Result<Receiver<Result<Client, TunnelError>>, TunnelError> {
    let (to, coming) = channel();
    let (run_dir, tell) = (run_dir.to_owned(), Arc::clone(tell));
    let begin = Instant::now();
    let find = move || {
        let found = |found| {
            // Who waits may have ended.
            drop(to.send(found));
            if begin.elapsed() >= PATIENCE {
                tell(News::Found);
            }
        };
        match Client::connect(&run_dir) {
            Ok(client) => {
                let is_right = transport == Transport::Kernel || client.is_own_version();
                found(Ok(client));
                if is_right {
                    return;
                }
            }
            Err(TunnelError::Absent { .. }) if transport == Transport::Kernel => return,
            Err(error) if transport == Transport::Kernel => return found(Err(error)),
            Err(TunnelError::Absent { .. }) => {}
            Err(error) => {
                let error = chain(&error);
                info!(error, "A datapath that does not answer is replaced");
            }
        }
        found(Client::start(&run_dir));
    };
    let thread = thread::Builder::new().name("datapath".to_owned());
    thread.spawn(find).map_err(TunnelError::Start)?;
    Ok(coming)
}

/// What the datapath counted whose socket is in a directory; none if none runs there.
pub(crate) async fn figures(run_dir: Option<PathBuf>) -> Option<Figures> {
    let run_dir = run_dir?;
    let ask = move || Client::connect(&run_dir)?.figures();
    // Of one that does not answer the conditions tell.
    tokio::task::spawn_blocking(ask).await.ok()?.ok()
}

/// A connection by which nothing is ever said: it breaks when the process ends.
fn wait_for_end(path: &Path, gone: impl Fn()) {
    if let Ok(mut stream) = UnixStream::connect(path) {
        // An answer to nothing, or an error, says the same as the end.
        let _end = stream.read(&mut [0]);
    }
    gone();
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::datapath::{Binding, Domain, Place, Unknown};
    use model::{IfName, MacAddr, Mtu, Vni};
    use std::sync::mpsc::TryRecvError;

    fn domain() -> Domain {
        Domain {
            vni: Vni::new(7).unwrap(),
            tag: None,
        }
    }

    /// A datapath in this process, which is what it takes for its own.
    fn runs() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let options = tunnel::Options {
            run_dir: dir.path().to_owned(),
            workers: Some(1),
            busy_poll: Duration::ZERO,
            flows: 0,
        };
        thread::spawn(move || tunnel::run(&options));
        let socket = dir.path().join(SOCKET_NAME);
        testkit::eventually("it listens", Duration::from_secs(10), || {
            UnixStream::connect(&socket)
                .map(drop)
                .map_err(|e| e.to_string())
        });
        dir
    }

    fn seen_by(dir: &Path, transport: Transport) -> Datapath {
        Datapath::new(dir, transport, |_| {})
    }

    fn flood(last: u8) -> Change {
        Change::AddFlood {
            domain: domain(),
            vtep: [192, 0, 2, last].into(),
        }
    }

    #[test]
    fn what_was_told_is_known_and_what_was_refused_is_not() {
        let dir = runs();
        let mut datapath = seen_by(dir.path(), Transport::Tap);
        assert_eq!(datapath.look(false), (Some(Tables::default()), None));
        let nowhere = Change::Bind {
            place: Place {
                tap: IfName::new("lo").unwrap(),
                vlan: None,
            },
            binding: Binding {
                domain: domain(),
                mtu: Mtu::new(1400).unwrap(),
                unknown: Unknown::Flood,
            },
        };
        let mac = Change::SetMac {
            domain: domain(),
            mac: MacAddr([2, 0, 0, 0, 0, 1]),
            vtep: [192, 0, 2, 1].into(),
        };
        let outcomes = datapath.apply(&[&flood(1), &nowhere, &mac]);
        let worked: Vec<bool> = outcomes.iter().map(Result::is_ok).collect();
        assert_eq!(worked, [true, false, true], "{outcomes:?}");
        let told = Tables::of([flood(1), mac]);
        assert_eq!(datapath.look(false), (Some(told.clone()), None));
        assert_eq!(datapath.look(true), (Some(told), None));
    }

    #[test]
    fn what_another_told_is_seen_when_it_is_asked() {
        let dir = runs();
        let mut datapath = seen_by(dir.path(), Transport::Tap);
        datapath.look(false);
        let mut other = Client::connect(dir.path()).unwrap();
        other.apply(&[flood(1)]).unwrap();
        assert_eq!(datapath.look(false).0, Some(Tables::default()));
        assert_eq!(datapath.look(true).0, Some(Tables::of([flood(1)])));
        other.apply(&[flood(2)]).unwrap();
        datapath.has_ended(std::process::id() + 1);
        assert_eq!(datapath.look(false).0, Some(Tables::of([flood(1)])));
        datapath.has_ended(std::process::id());
        let both = Tables::of([flood(1), flood(2)]);
        assert_eq!(datapath.look(false).0, Some(both));
    }

    #[test]
    fn a_search_that_has_ended_is_begun_again() {
        let dir = runs();
        let mut datapath = seen_by(dir.path(), Transport::Tap);
        datapath.coming = Some(channel().1);
        assert_eq!(datapath.look(false), (Some(Tables::default()), None));
        assert!(datapath.coming.is_none());
    }

    #[test]
    fn while_another_comes_what_the_one_before_was_told_holds_for_a_while() {
        let dir = runs();
        let mut datapath = seen_by(dir.path(), Transport::Tap);
        datapath.look(false);
        datapath.apply(&[&flood(1)]);
        // One that is late.
        let path = dir.path().join(SOCKET_NAME);
        std::fs::remove_file(&path).unwrap();
        let late = std::os::unix::net::UnixListener::bind(&path).unwrap();
        datapath.has_ended(std::process::id());
        let starts = Some("it is being started".to_owned());
        let told = Some(Tables::of([flood(1)]));
        assert_eq!(datapath.look(false), (told.clone(), starts.clone()));
        assert_eq!(datapath.look(true), (told, starts.clone()));
        datapath.faith = Duration::ZERO;
        assert_eq!(datapath.look(false), (None, starts));
        drop(late);
    }

    #[test]
    fn one_that_is_found_late_is_told_of() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(SOCKET_NAME);
        let late = std::os::unix::net::UnixListener::bind(path).unwrap();
        let (told, heard) = channel();
        let tell = move |news| told.send(news).unwrap();
        let mut datapath = Datapath::new(dir.path(), Transport::Kernel, tell);
        let starts = Some("it is being started".to_owned());
        assert_eq!(datapath.look(false), (None, starts));
        assert_eq!(heard.try_recv(), Err(TryRecvError::Empty));
        drop(late);
        assert_eq!(heard.recv_timeout(Duration::from_secs(10)), Ok(News::Found));
        // Nobody answers there now, which is what it has to say.
        assert!(datapath.look(false).1.unwrap().contains("talking to"));
    }

    #[test]
    fn one_that_cannot_be_started_again_is_missed_at_once() {
        let dir = runs();
        let mut datapath = seen_by(dir.path(), Transport::Tap);
        datapath.look(false);
        datapath.apply(&[&flood(1)]);
        std::fs::remove_file(dir.path().join(SOCKET_NAME)).unwrap();
        datapath.has_ended(std::process::id());
        // This program is a test, and knows no such arguments.
        let (tables, trouble) = datapath.look(false);
        assert_eq!(tables, None);
        assert!(trouble.unwrap().contains("ended at once"));
    }

    #[test]
    fn more_rows_than_fit_at_once_are_all_told() {
        let dir = runs();
        let mut datapath = seen_by(dir.path(), Transport::Tap);
        datapath.look(false);
        let row = |number: usize| Change::SetMac {
            domain: domain(),
            mac: MacAddr([2, 0, 0, 0, (number >> 8) as u8, number as u8]),
            vtep: [192, 0, 2, 1].into(),
        };
        let rows: Vec<Change> = (0..BATCH + 1).map(row).collect();
        let outcomes = datapath.apply(&rows.iter().collect::<Vec<_>>());
        assert_eq!(outcomes, vec![Ok(()); BATCH + 1]);
        assert_eq!(datapath.look(true).0, Some(Tables::of(rows)));
    }

    #[test]
    fn one_that_still_has_rows_is_not_ended_for_the_kernels_sake() {
        let dir = runs();
        Client::connect(dir.path())
            .unwrap()
            .apply(&[flood(1)])
            .unwrap();
        let mut datapath = seen_by(dir.path(), Transport::Kernel);
        assert_eq!(datapath.look(true), (Some(Tables::of([flood(1)])), None));
    }

    #[test]
    fn none_is_missed_only_where_one_should_run() {
        let dir = tempfile::tempdir().unwrap();
        let nowhere = dir.path().join("is-not-there");
        let mut kernel = seen_by(&nowhere, Transport::Kernel);
        assert_eq!(kernel.look(true), (None, None));
        let mut tap = seen_by(&nowhere, Transport::Tap);
        let (tables, trouble) = tap.look(true);
        assert_eq!(tables, None);
        let trouble = trouble.unwrap();
        assert!(trouble.contains("starting the datapath: "), "{trouble}");
        // It is not tried again at once.
        std::fs::create_dir(&nowhere).unwrap();
        assert_eq!(tap.look(true), (None, Some(trouble)));
        let outcome = tap.apply(&[&flood(1)]);
        assert_eq!(outcome, [Err("no datapath runs".to_owned())]);
    }

    #[test]
    fn one_that_ends_at_once_is_told_of() {
        let dir = tempfile::tempdir().unwrap();
        // This program is a test, and knows no such arguments.
        let (tables, trouble) = seen_by(dir.path(), Transport::Tap).look(true);
        assert_eq!(tables, None);
        let trouble = trouble.unwrap();
        assert!(
            trouble.contains("ended at once (exit status: "),
            "{trouble}"
        );
    }

    #[test]
    fn one_that_does_not_answer_holds_nobody_up() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(SOCKET_NAME);
        let _silent = std::os::unix::net::UnixListener::bind(path).unwrap();
        let begin = Instant::now();
        let (tables, trouble) = seen_by(dir.path(), Transport::Tap).look(true);
        assert_eq!(tables, None);
        assert_eq!(trouble.as_deref(), Some("it is being started"));
        // An answer is waited for far longer.
        assert!(begin.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn its_end_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(SOCKET_NAME);
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let (told, heard) = channel();
        thread::spawn(move || wait_for_end(&path, move || told.send(()).unwrap()));
        let (connection, _) = listener.accept().unwrap();
        assert!(heard.try_recv().is_err());
        drop(connection);
        heard.recv_timeout(Duration::from_secs(10)).unwrap();
    }
}
