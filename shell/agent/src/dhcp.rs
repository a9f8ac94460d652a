//! Answers what ports ask of the host: DHCP, and who serves it. What is answered follows from the
//! configuration alone; who took which address when is kept for people to see.
//!
//! A thread of its own, so that neither a pass over a thousand NICs keeps a client waiting nor a flood
//! of questions a pass. It reads what the loop publishes and writes nothing that the loop reads.

use crate::disk::{Disk, StateError};
use crate::kernel::chain;
use crate::view::{View, unix_now};
use dhcp::{Event, Facts};
use host_plan::OwnedName;
use linux::{Asked, Question};
use model::{Attachment, IfName, NicId, PortRole, Stack, UnixMillis};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tracing::{debug, info, trace, warn};

/// The file in the state directory.
const LEASES: &str = "leases";
/// The thread looks at least this often whether the configuration changed or the agent ends.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Between writes of the file: a boot of a thousand machines is a few writes.
const KEEP_EVERY: Duration = Duration::from_secs(5);
/// After listening failed.
const RETRY: Duration = Duration::from_secs(1);

/// What a client was told of an address, last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Lease {
    /// When it took it first.
    pub(crate) since: UnixMillis,
    /// When it took it last.
    pub(crate) renewed: UnixMillis,
    /// Until when it may use it without asking again. The planner holds the address for it longer.
    pub(crate) until: UnixMillis,
    /// When it gave it back, if that was the last word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) released: Option<UnixMillis>,
    /// When it found it in use by somebody else, if it ever did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) declined: Option<UnixMillis>,
}

/// By NIC and address.
pub(crate) type Leases = BTreeMap<NicId, BTreeMap<IpAddr, Lease>>;

/// What was answered.
#[derive(Debug, Clone, Default)]
pub(crate) struct Book {
    /// Who took which address.
    pub(crate) leases: Leases,
    /// How often what happened, since the start.
    pub(crate) events: BTreeMap<&'static str, u64>,
    /// Why leases are not on disk, or nobody is answered; none if all is well.
    pub(crate) trouble: Option<String>,
    changed: bool,
}

/// The book, shared by the thread that writes it and those who show it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Dhcp(Arc<Mutex<Book>>);

impl Dhcp {
    /// Begins to answer, until `view` has no publisher any more.
    pub(crate) fn start(view: watch::Receiver<Arc<View>>, disk: &Disk) -> Result<Self, StateError> {
        let leases = match disk.load(LEASES) {
            Err(damage @ StateError::Damaged { .. }) => {
                let aside = disk.set_aside(LEASES)?;
                warn!(%damage, aside = %aside.display(), "Set aside; leases are noted anew");
                None
            }
            other => other?,
        };
        let book = Book {
            leases: leases.unwrap_or_default(),
            ..Book::default()
        };
        let shared = Self(Arc::new(Mutex::new(book)));
        let (to_disk, snapshots) = sync_channel(1);
        let spawn = |name: &str, work: Box<dyn FnOnce() + Send>| {
            thread::Builder::new()
                .name(name.to_owned())
                .spawn(work)
                .expect("a process may start a thread");
        };
        let (ours, disk) = (shared.clone(), disk.clone());
        spawn("leases", Box::new(move || ours.keep_all(&snapshots, &disk)));
        let server = Server {
            book: shared.clone(),
            view,
            stacks: Arc::default(),
            ports: BTreeMap::new(),
            advertise: BTreeMap::new(),
            to_disk,
        };
        spawn("dhcp", Box::new(move || server.run()));
        Ok(shared)
    }

    /// What was answered up to now.
    pub(crate) fn book(&self) -> Book {
        self.lock().clone()
    }

    /// Writes what is not on disk yet; at the end of the agent.
    pub(crate) fn keep_now(&self, disk: &Disk) {
        let leases = {
            let mut book = self.lock();
            std::mem::take(&mut book.changed).then(|| book.leases.clone())
        };
        if let Some(leases) = leases {
            self.keep(disk, &leases);
        }
    }

    fn keep_all(&self, snapshots: &Receiver<Leases>, disk: &Disk) {
        while let Ok(leases) = snapshots.recv() {
            self.keep(disk, &leases);
        }
    }

    fn keep(&self, disk: &Disk, leases: &Leases) {
        let trouble = disk.save(LEASES, leases).err().map(|error| chain(&error));
        if let Some(error) = &trouble {
            warn!(
                error,
                "Leases are not on disk; clients are answered all the same"
            );
        }
        let mut book = self.lock();
        book.changed |= trouble.is_some();
        book.trouble = trouble;
    }

    fn lock(&self) -> MutexGuard<'_, Book> {
        // Each change of the book is a single one, so it is whole also after a panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Server {
    book: Dhcp,
    view: watch::Receiver<Arc<View>>,
    /// What `ports` was made of.
    stacks: Arc<Vec<Arc<Stack>>>,
    ports: BTreeMap<IfName, Facts>,
    /// When each port in a subnet with IPv6 is told of its router next.
    advertise: BTreeMap<IfName, Instant>,
    to_disk: SyncSender<Leases>,
}

impl Server {
    fn run(mut self) {
        let Some(mut asked) = self.listen() else {
            return;
        };
        let mut kept = Instant::now();
        let mut lost = 0;
        loop {
            let questions = asked.wait(LOOK_EVERY).unwrap_or_else(|error| {
                warn!(error = chain(&error), "Taking what ports ask failed");
                // What fails for good must not fill the log.
                thread::park_timeout(RETRY);
                Vec::new()
            });
            if self.look().is_err() {
                return;
            }
            for question in questions {
                self.answer(&asked, &question);
            }
            self.advertise(&asked);
            if asked.lost() > lost {
                lost = asked.lost();
                self.book.lock().events.insert("lost", lost);
            }
            if kept.elapsed() >= KEEP_EVERY {
                kept = Instant::now();
                self.offer_to_disk();
            }
        }
    }

    /// None if the agent ends first.
    fn listen(&mut self) -> Option<Asked> {
        let mut told = false;
        loop {
            match Asked::open() {
                Ok(asked) => {
                    if told {
                        self.book.lock().trouble = None;
                        info!("Answers DHCP");
                    }
                    return Some(asked);
                }
                Err(error) => {
                    let error = chain(&error);
                    if !told {
                        warn!(error, "Nobody answers DHCP; trying again");
                    }
                    told = true;
                    self.book.lock().trouble = Some(error);
                }
            }
            thread::park_timeout(RETRY);
            self.look().ok()?;
        }
    }

    /// Takes in what the loop published; an error if it has ended.
    fn look(&mut self) -> Result<(), watch::error::RecvError> {
        if !self.view.has_changed()? {
            return Ok(());
        }
        let view = Arc::clone(&self.view.borrow_and_update());
        if Arc::ptr_eq(&view.stacks, &self.stacks) {
            return Ok(());
        }
        self.stacks = Arc::clone(&view.stacks);
        let before = std::mem::replace(&mut self.ports, ports(&self.stacks));
        // Who has nothing new to hear keeps its turn.
        let now = Instant::now();
        let has_v6 = self.ports.iter().filter(|(_, facts)| facts.v6.is_some());
        self.advertise = has_v6
            .map(|(name, facts)| {
                let turn = self.advertise.get(name).copied();
                let same = before.get(name) == Some(facts);
                (name.clone(), turn.filter(|_| same).unwrap_or(now))
            })
            .collect();
        // Before anything is settled NICs may be missing that are the server's to tell of.
        if view.settled > 0 {
            let here: BTreeSet<_> = (self.stacks.iter())
                .flat_map(|stack| &stack.ports)
                .map(|port| port.nic)
                .collect();
            let mut book = self.book.lock();
            let before = book.leases.len();
            book.leases.retain(|nic, _| here.contains(nic));
            book.changed |= book.leases.len() != before;
        }
        Ok(())
    }

    fn answer(&self, asked: &Asked, question: &Question) {
        let facts = asked
            .name(question.port)
            .and_then(|name| self.ports.get(&name));
        let Some(facts) = facts else {
            *self.book.lock().events.entry("unknown-port").or_default() += 1;
            return;
        };
        let answer = dhcp::answer(facts, &question.frame);
        if let Some(frame) = &answer.reply
            && let Err(error) = asked.answer(question.port, frame)
        {
            warn!(nic = %facts.nic, error = chain(&error), "An answer could not be sent");
        }
        trace!(nic = %facts.nic, event = answer.event.name(), "Asked");
        self.note(facts.nic, answer.event);
    }

    /// Tells ports whose turn it is, at random times as RFC 4861 §6.2.4 has it.
    fn advertise(&mut self, asked: &Asked) {
        let now = Instant::now();
        for (name, turn) in &mut self.advertise {
            if *turn > now {
                continue;
            }
            let most = u64::from(dhcp::ADVERTISE_SECS);
            *turn = now + Duration::from_secs(rand::random_range(most / 3..=most));
            let frame = self.ports.get(name).and_then(dhcp::advertisement);
            // A port that is not there yet asks when it comes up.
            if let Some(frame) = frame
                && let Err(error) = asked.tell(name, &frame)
            {
                warn!(%name, error = chain(&error), "A router advertisement could not be sent");
            }
        }
    }

    fn note(&self, nic: NicId, event: Event) {
        let now = unix_now();
        let mut book = self.book.lock();
        *book.events.entry(event.name()).or_default() += 1;
        match event {
            Event::Leased(address, secs) => {
                debug!(%nic, %address, secs, "Leased");
                let until = UnixMillis(now.0.saturating_add(u64::from(secs) * 1000));
                let leases = book.leases.entry(nic).or_default();
                let lease = leases.entry(address).or_insert(Lease {
                    since: now,
                    renewed: now,
                    until,
                    released: None,
                    declined: None,
                });
                if lease.released.take().is_some() {
                    lease.since = now;
                }
                (lease.renewed, lease.until) = (now, until);
                book.changed = true;
            }
            Event::Released(address) => {
                if let Some(lease) = book.of(nic, address) {
                    lease.released = Some(now);
                }
            }
            Event::Declined(address) => {
                warn!(%nic, %address, "A client found its address in use by somebody else");
                if let Some(lease) = book.of(nic, address) {
                    lease.declined = Some(now);
                }
            }
            _ => {}
        }
    }

    /// Nobody waits for the disk: while it is slow, the newest is offered again later.
    fn offer_to_disk(&self) {
        let mut book = self.book.lock();
        if book.changed && self.to_disk.try_send(book.leases.clone()).is_ok() {
            book.changed = false;
        }
    }
}

impl Book {
    /// A lease that is about to change.
    fn of(&mut self, nic: NicId, address: IpAddr) -> Option<&mut Lease> {
        let lease = self.leases.get_mut(&nic)?.get_mut(&address)?;
        self.changed = true;
        Some(lease)
    }
}

/// What is known of each port that may ask.
fn ports(stacks: &[Arc<Stack>]) -> BTreeMap<IfName, Facts> {
    let of_stack = |stack: &Arc<Stack>| {
        let ports = stack.ports.iter().filter(|p| p.role != PortRole::Standby);
        ports
            .filter_map(|port| {
                let facts = Facts::of(stack.segment(port.subnet)?, port)?;
                let name = match &port.attachment {
                    Attachment::Existing { ifname } => ifname.clone(),
                    Attachment::Tap | Attachment::Netns { .. } => OwnedName::port(port.nic),
                };
                Some((name, facts))
            })
            .collect::<Vec<_>>()
    };
    stacks.iter().flat_map(of_stack).collect()
}
