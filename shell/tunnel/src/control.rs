//! The owner of what a datapath has: tables, TAPs, sockets, workers.

use crate::capture::{CaptureRequest, Record, Watcher};
use crate::sockets::Sockets;
use crate::wire::{Figures, FlowFigures, Handed, Tally};
use crate::worker::{Ended, Gone, Legacy, Letter, Manner, Taken, Worker};
use datapath::{Change, Dues, Noted, Reason, Tables, flows_together};
use linux::{TapQueue, TunnelSocket};
use model::IfName;
use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel};
use std::time::Duration;
use tracing::{info, warn};

/// How long workers may take to say what they counted: a batch of frames takes far less than a
/// millisecond.
const REPORT_WAIT: Duration = Duration::from_secs(5);

/// What a datapath has.
#[derive(Debug)]
pub(crate) struct Control {
    tables: Tables,
    workers: Vec<Worker>,
    taps: BTreeMap<IfName, Tap>,
    next_tap: usize,
    /// Of each worker, as long as there is an address.
    sockets: Vec<Sockets>,
    gone: Receiver<Gone>,
    next_watcher: u64,
    /// Frames that TAPs' queues had no room for.
    queues_full: u64,
    /// What those counted whose place this one took.
    before: Figures,
    pushed_out_before: u64,
    /// All is another process's now.
    handed: bool,
}

/// What a datapath counted until it ended.
#[derive(Debug)]
pub(crate) struct Account {
    pub(crate) tally: Tally,
    /// What each worker had noted of flows.
    pub(crate) noted: Vec<Vec<Noted>>,
}

/// A TAP that is open: its number among the workers, and each one's queue.
#[derive(Debug)]
struct Tap {
    number: usize,
    queues: Vec<TapQueue>,
    /// What its queues had no room for when that was last counted; none before the first time.
    not_taken: Option<u64>,
}

impl Control {
    pub(crate) fn start(workers: usize, manner: Manner) -> io::Result<Self> {
        let (letters, gone) = channel();
        let dues = Arc::<Dues>::default();
        let workers = (0..workers)
            .map(|number| Worker::start(number, manner, Arc::clone(&dues), letters.clone()));
        Ok(Self {
            tables: Tables::default(),
            workers: workers.collect::<io::Result<_>>()?,
            taps: BTreeMap::new(),
            next_tap: 0,
            sockets: Vec::new(),
            gone,
            next_watcher: 0,
            queues_full: 0,
            before: Figures::default(),
            pushed_out_before: 0,
            handed: false,
        })
    }

    /// Goes on with what another process had. Its descriptors are in the order of [`Control::hand`].
    pub(crate) fn take_over(manner: Manner, handed: Handed, fds: Vec<OwnedFd>) -> io::Result<Self> {
        let mut control = Self::start(handed.workers, manner)?;
        let mut fds = fds.into_iter();
        for (number, (name, datagrams)) in handed.taps.into_iter().enumerate() {
            let queues = fds.by_ref().take(handed.workers);
            let queues = queues.map(|fd| TapQueue::from_fd(fd, datagrams)).collect();
            let tap = Tap {
                number,
                queues,
                not_taken: None,
            };
            control.taps.insert(name, tap);
        }
        control.next_tap = control.taps.len();
        if let Some(local) = handed.local {
            for _ in 0..handed.workers {
                let some: Vec<OwnedFd> = fds.by_ref().take(handed.sockets).collect();
                let some = Sockets::from_fds(local, some.into_iter());
                control
                    .sockets
                    .push(some.ok_or(io::ErrorKind::UnexpectedEof)?);
            }
        }
        let rows: Arc<[Change]> = handed.rows.into();
        rows.iter().for_each(|row| control.tables.apply(row));
        for (position, worker) in control.workers.iter().enumerate() {
            let queue = |(name, tap): (&IfName, &Tap)| {
                let queue = tap.queues[position].try_clone()?;
                Ok((name.clone(), tap.number, queue))
            };
            let taps = control.taps.iter().map(queue);
            worker.tell(Letter::TakeOver(Taken {
                taps: taps.collect::<io::Result<_>>()?,
                rows: Arc::clone(&rows),
                sockets: control.sockets.get(position).map(copy).transpose()?,
            }));
        }
        Ok(control)
    }

    /// What there is, and the descriptors that go with it. From here on nothing is taken in.
    pub(crate) fn hand(&mut self) -> (Handed, Vec<BorrowedFd<'_>>) {
        self.clear_gone();
        self.handed = true;
        let queues = self.taps.values().flat_map(|tap| &tap.queues);
        let mut fds: Vec<BorrowedFd<'_>> = queues.map(AsFd::as_fd).collect();
        for sockets in &self.sockets {
            fds.push(sockets.receiving.as_fd());
            fds.extend(sockets.sending.iter().map(AsFd::as_fd));
        }
        let datagrams = |tap: &Tap| tap.queues.iter().all(TapQueue::datagrams);
        let taps = self.taps.iter();
        let handed = Handed {
            workers: self.workers.len(),
            local: self.sockets.first().map(|sockets| sockets.local),
            rows: self.tables.dump(),
            taps: taps
                .map(|(name, tap)| (name.clone(), datagrams(tap)))
                .collect(),
            sockets: self.sockets.first().map_or(0, |s| s.sending.len() + 1),
        };
        (handed, fds)
    }

    /// Goes on with what another process counted; after one that did not say, begins anew.
    pub(crate) fn go_on(&mut self, told: Option<Account>) {
        let (mut overflowed, mut noted) = (Vec::new(), Vec::new());
        if let Some(Account { tally, noted: told }) = told {
            self.before = tally.figures;
            self.pushed_out_before = tally.pushed_out;
            (overflowed, noted) = (tally.overflowed, told);
            for (name, not_taken) in tally.not_taken {
                if let Some(tap) = self.taps.get_mut(&name) {
                    tap.not_taken = Some(not_taken);
                }
            }
        }
        self.count_queues();
        let mut overflowed = overflowed.into_iter();
        let mut noted = noted.into_iter();
        for worker in &self.workers {
            worker.tell(Letter::GoOn(Legacy {
                overflowed: overflowed.next().flatten(),
                noted: noted.next().unwrap_or_default(),
            }));
        }
    }

    /// True while another process takes over.
    pub(crate) fn is_handed(&self) -> bool {
        self.handed
    }

    /// It was not taken over after all.
    pub(crate) fn keep(&mut self) {
        self.handed = false;
    }

    /// Ends all workers; what was counted until then.
    pub(crate) fn stop(&mut self) -> Account {
        let ended: Vec<Option<Ended>> = self.workers.drain(..).map(Worker::stop).collect();
        self.count_queues();
        let mut tally = Tally {
            figures: self.before.clone(),
            pushed_out: self.pushed_out_before,
            not_taken: BTreeMap::new(),
            overflowed: Vec::with_capacity(ended.len()),
        };
        let mut noted = Vec::with_capacity(ended.len());
        for ended in ended {
            let legacy = match ended {
                Some(ended) => {
                    tally.figures = tally.figures.add(ended.figures);
                    tally.pushed_out += ended.pushed_out;
                    ended.legacy
                }
                None => Legacy::default(),
            };
            tally.overflowed.push(legacy.overflowed);
            noted.push(legacy.noted);
        }
        self.add_queues_full(&mut tally.figures);
        let counted = self.taps.iter();
        let counted = counted.filter_map(|(name, tap)| Some((name.clone(), tap.not_taken?)));
        tally.not_taken = counted.collect();
        Account { tally, noted }
    }

    pub(crate) fn dump(&mut self) -> Vec<Change> {
        self.clear_gone();
        self.tables.dump()
    }

    /// Takes changes in; for each, what is wrong with it, if anything. All workers have them then.
    pub(crate) fn apply(&mut self, changes: Vec<Change>) -> Result<Vec<Option<String>>, String> {
        if self.handed {
            return Err("another process is taking over".to_owned());
        }
        self.clear_gone();
        let mut outcomes = Vec::with_capacity(changes.len());
        let mut good = Vec::with_capacity(changes.len());
        for change in changes {
            let outcome = self.prepare(&change).map_err(|error| error.to_string());
            let stale = match (&outcome, &change) {
                (Ok(()), Change::Unbind { place }) => Some(place.tap.clone()),
                _ => None,
            };
            if outcome.is_ok() {
                self.tables.apply(&change);
                good.push(change);
            }
            outcomes.push(outcome.err());
            if let Some(tap) = stale.filter(|tap| !self.is_used(tap)) {
                self.spread(&mut good);
                self.taps.remove(&tap);
                self.tell_all(|| Letter::Forget(tap.clone()));
            }
        }
        self.spread(&mut good);
        if self.taps.values().any(|tap| tap.not_taken.is_none()) {
            self.count_queues();
        }
        self.settle()?;
        Ok(outcomes)
    }

    fn spread(&self, changes: &mut Vec<Change>) {
        let changes: Arc<[Change]> = std::mem::take(changes).into();
        if !changes.is_empty() {
            self.tell_all(|| Letter::Changes(Arc::clone(&changes)));
        }
    }

    /// What has to be there before a row means something.
    fn prepare(&mut self, change: &Change) -> io::Result<()> {
        match change {
            Change::SetLocal(None) => {
                self.sockets.clear();
                self.tell_all(|| Letter::Sockets(None));
                Ok(())
            }
            Change::SetLocal(Some(local)) => self.open_sockets(*local),
            Change::Bind { place, .. } if !self.taps.contains_key(&place.tap) => {
                let queues = (0..self.workers.len()).map(|_| TapQueue::open(&place.tap));
                let queues = queues.collect::<io::Result<_>>()?;
                self.add_tap(place.tap.clone(), queues)
            }
            _ => Ok(()),
        }
    }

    fn is_used(&self, tap: &IfName) -> bool {
        self.tables.bindings.keys().any(|place| place.tap == *tap)
    }

    fn add_tap(&mut self, name: IfName, queues: Vec<TapQueue>) -> io::Result<()> {
        let number = self.next_tap;
        self.next_tap += 1;
        for (worker, queue) in self.workers.iter().zip(&queues) {
            worker.tell(Letter::Tap(name.clone(), number, queue.try_clone()?));
        }
        let tap = Tap {
            number,
            queues,
            not_taken: None,
        };
        self.taps.insert(name, tap);
        Ok(())
    }

    fn open_sockets(&mut self, local: IpAddr) -> io::Result<()> {
        if self
            .sockets
            .first()
            .is_some_and(|sockets| sockets.local == local)
        {
            return Ok(());
        }
        let sockets = self.workers.iter().map(|_| Sockets::open(local));
        let sockets = sockets.collect::<io::Result<_>>()?;
        self.use_sockets(sockets)?;
        info!(%local, "Tunnel open");
        Ok(())
    }

    fn use_sockets(&mut self, sockets: Vec<Sockets>) -> io::Result<()> {
        for (worker, sockets) in self.workers.iter().zip(&sockets) {
            worker.tell(Letter::Sockets(Some(copy(sockets)?)));
        }
        self.sockets = sockets;
        Ok(())
    }

    /// Waits until all workers have read all that they were told.
    pub(crate) fn settle(&self) -> Result<(), String> {
        self.ask_all(Letter::Report).map(drop)
    }

    /// What all workers counted together, and what never came to them.
    pub(crate) fn figures(&mut self) -> Result<Figures, String> {
        self.count_queues();
        let reports = self.ask_all(Letter::Report)?;
        let mut sum = (reports.into_iter()).fold(self.before.clone(), Figures::add);
        self.add_queues_full(&mut sum);
        Ok(sum)
    }

    fn add_queues_full(&self, figures: &mut Figures) {
        if self.queues_full > 0 {
            let reason = Reason::TapQueueFull.name().to_owned();
            *figures.dropped.entry(reason).or_default() += self.queues_full;
        }
    }

    fn count_queues(&mut self) {
        match linux::frames_not_taken() {
            Ok(now) => {
                for (name, tap) in &mut self.taps {
                    let Some(now) = now.get(name.as_str()).copied() else {
                        continue;
                    };
                    // What was before is not ours to count; under the same name it may be another
                    // device by now.
                    let before = tap.not_taken.replace(now).unwrap_or(now);
                    self.queues_full += now.saturating_sub(before);
                }
            }
            Err(error) => warn!(%error, "What TAPs' queues had no room for is not counted"),
        }
    }

    /// Which flows pass all workers together.
    pub(crate) fn flows(&self) -> Result<FlowFigures, String> {
        let reports = self.ask_all(Letter::Flows)?;
        let pushed_out = reports.iter().map(|report| report.pushed_out).sum::<u64>();
        let flows = reports.into_iter().flat_map(|report| report.flows);
        Ok(FlowFigures {
            flows: flows_together(flows),
            pushed_out: self.pushed_out_before + pushed_out,
        })
    }

    /// What each worker answers.
    fn ask_all<T>(&self, letter: impl Fn(Sender<T>) -> Letter) -> Result<Vec<T>, String> {
        let (to, answers) = channel();
        self.tell_all(|| letter(to.clone()));
        let answer = |_: &Worker| answers.recv_timeout(REPORT_WAIT);
        let all: Result<Vec<T>, _> = self.workers.iter().map(answer).collect();
        all.map_err(|_| "a worker does not answer: see the datapath's log".to_owned())
    }

    /// Has all workers show frames.
    pub(crate) fn watch(
        &mut self,
        request: &CaptureRequest,
        to: SyncSender<Record>,
    ) -> Result<u64, String> {
        let number = self.next_watcher;
        let watcher = Watcher::new(number, request, to)?;
        self.next_watcher += 1;
        self.tell_all(|| Letter::Watch(watcher.clone()));
        // From the answer on, frames are seen.
        self.settle()?;
        Ok(number)
    }

    pub(crate) fn unwatch(&self, number: u64) {
        self.tell_all(|| Letter::Unwatch(number));
    }

    fn tell_all(&self, letter: impl Fn() -> Letter) {
        self.workers.iter().for_each(|worker| worker.tell(letter()));
    }

    /// TAPs that somebody removed are bound to nothing any more.
    fn clear_gone(&mut self) {
        while let Ok(Gone(name)) = self.gone.try_recv() {
            let Some(tap) = self.taps.remove(&name) else {
                continue;
            };
            info!(tap = %name, number = tap.number, "TAP gone");
            self.tables.bindings.retain(|place, _| place.tap != name);
            self.tell_all(|| Letter::Forget(name.clone()));
        }
    }
}

fn copy(sockets: &Sockets) -> io::Result<Sockets> {
    let sending = sockets.sending.iter().map(TunnelSocket::try_clone);
    Ok(Sockets {
        local: sockets.local,
        receiving: sockets.receiving.try_clone()?,
        sending: sending.collect::<io::Result<_>>()?,
    })
}
