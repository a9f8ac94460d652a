//! A worker: one thread, one queue of each TAP, one set of sockets, one engine. It shares nothing with
//! the others but what they may let through together, and is told by messages what changes.

use crate::capture::{Outer, Watcher};
use crate::deliver::deliver;
use crate::sockets::{SOURCE_PORTS, Sockets};
use crate::wire::{Figures, FlowFigures};
use datapath::{
    Bounds, Change, Direction, Dues, Engine, Fate, Inbox, Message, Noted, OFFLOAD_BYTES, Offload,
    Outbox, Reason, Received, Span, VXLAN_PORT, vni_of,
};
use linux::{Got, Receiver, Sender, TUNNEL_PACKETS_MAX, TapQueue, ToSend};
use model::IfName;
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::time::{ClockId, clock_gettime};
use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver as Mailbox, Sender as Letters, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use tracing::{debug, warn};

/// The largest frame of a TAP: an IP packet, Ethernet, a tag, and the header before it.
const FRAME_BYTES: usize = 65_535 + 18 + OFFLOAD_BYTES;
/// Frames that are read before anything is sent. Few enough to stay in the processor's cache.
const ARENA_BYTES: usize = 4 * FRAME_BYTES;
const FRAMES_AT_ONCE: usize = 128;
/// Messages that are received at once.
const MESSAGES_AT_ONCE: usize = 16;
// Each packet of a message has two parts, and the kernel takes no more of them (`UIO_MAXIOV`).
const _: () = assert!(2 * TUNNEL_PACKETS_MAX <= 1_024);
/// Tokens of what is waited for; TAPs have their numbers.
const LETTERS: u64 = u64::MAX;
const SOCKET: u64 = u64::MAX - 1;

/// What a worker is told.
#[derive(Debug)]
pub(crate) enum Letter {
    /// Its queue of a TAP, and the TAP's number.
    Tap(IfName, usize, TapQueue),
    /// All that another process had, at once: who reads from a TAP knows what to do with the frame.
    TakeOver(Taken),
    /// Go on with what was counted, now that nobody else counts.
    GoOn(Legacy),
    /// A TAP is nobody's any more.
    Forget(IfName),
    /// Rows.
    Changes(Arc<[Change]>),
    /// Its sockets; none: it sends and receives nothing.
    Sockets(Option<Sockets>),
    /// Show frames.
    Watch(Watcher),
    /// Show them no more.
    Unwatch(u64),
    /// Say what was counted; all letters before have been read then.
    Report(Letters<Figures>),
    /// Say which flows pass.
    Flows(Letters<FlowFigures>),
    /// End, after what is under way was sent.
    Stop,
}

/// What a worker takes over.
#[derive(Debug)]
pub(crate) struct Taken {
    pub(crate) taps: Vec<(IfName, usize, TapQueue)>,
    pub(crate) rows: Arc<[Change]>,
    pub(crate) sockets: Option<Sockets>,
}

/// What a worker that has ended leaves to the one that goes on.
#[derive(Debug, Default)]
pub(crate) struct Legacy {
    /// What the receiving socket had dropped when that was last counted.
    pub(crate) overflowed: Option<u32>,
    pub(crate) noted: Vec<Noted>,
}

/// What a worker counted until it ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) figures: Figures,
    pub(crate) pushed_out: u64,
    pub(crate) legacy: Legacy,
}

/// A TAP that a worker can read no more.
#[derive(Debug)]
pub(crate) struct Gone(pub(crate) IfName);

/// A running worker.
#[derive(Debug)]
pub(crate) struct Worker {
    letters: Letters<Letter>,
    bell: Arc<EventFd>,
    thread: JoinHandle<Ended>,
}

/// How workers run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Manner {
    /// How long a worker goes on looking after it had something to do, before it sleeps.
    pub(crate) busy_poll: Duration,
    /// See [`Engine::new`].
    pub(crate) seed: u64,
    /// See [`Engine::count_flows`].
    pub(crate) flows: usize,
}

impl Worker {
    pub(crate) fn start(
        number: usize,
        manner: Manner,
        dues: Arc<Dues>,
        gone: Letters<Gone>,
    ) -> io::Result<Self> {
        let (letters, mailbox) = channel();
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let bell = Arc::new(EventFd::from_value_and_flags(0, flags)?);
        let body = Body::new(mailbox, Arc::clone(&bell), manner, dues, gone)?;
        let thread = thread::Builder::new()
            .name(format!("worker-{number}"))
            .spawn(move || body.run())?;
        Ok(Self {
            letters,
            bell,
            thread,
        })
    }

    pub(crate) fn tell(&self, letter: Letter) {
        // It ends only when it is told to.
        drop(self.letters.send(letter));
        if let Err(error) = self.bell.write(1) {
            warn!(%error, "A worker was not woken");
        }
    }

    /// Ends it, and waits for that; nothing is known of one that panicked.
    pub(crate) fn stop(self) -> Option<Ended> {
        self.tell(Letter::Stop);
        let ended = self.thread.join().ok();
        if ended.is_none() {
            warn!("A worker had panicked");
        }
        ended
    }
}

struct Tap {
    name: IfName,
    queue: TapQueue,
}

struct Body {
    mailbox: Mailbox<Letter>,
    bell: Arc<EventFd>,
    gone: Letters<Gone>,
    manner: Manner,
    epoll: Epoll,
    taps: BTreeMap<usize, Tap>,
    sockets: Option<Sockets>,
    engine: Engine,
    outbox: Outbox,
    messages: Vec<Message>,
    inbox: Inbox,
    arena: Vec<u8>,
    receiver: Receiver,
    sender: Sender,
    /// Sockets, by their number, that had no room when something was last sent by them.
    full: [bool; SOURCE_PORTS],
    /// What the receiving socket had dropped when that was last counted; none while the process before
    /// counts it.
    overflowed: Option<u32>,
    /// The kernel splits what is sent. Older ones refuse to where the way out computes no checksums.
    splits: bool,
    watchers: Vec<Watcher>,
}

impl Body {
    fn new(
        mailbox: Mailbox<Letter>,
        bell: Arc<EventFd>,
        manner: Manner,
        dues: Arc<Dues>,
        gone: Letters<Gone>,
    ) -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(&*bell, EpollEvent::new(EpollFlags::EPOLLIN, LETTERS))?;
        let mut engine = Engine::new(manner.seed, dues);
        engine.count_flows(manner.flows);
        Ok(Self {
            mailbox,
            bell,
            gone,
            manner,
            epoll,
            taps: BTreeMap::new(),
            sockets: None,
            engine,
            outbox: Outbox::default(),
            messages: Vec::new(),
            inbox: Inbox::default(),
            arena: vec![0; ARENA_BYTES],
            receiver: Receiver::new(MESSAGES_AT_ONCE),
            sender: Sender::default(),
            full: [false; SOURCE_PORTS],
            overflowed: None,
            splits: true,
            watchers: Vec::new(),
        })
    }

    fn run(mut self) -> Ended {
        self.work();
        self.count_overflow();
        let noted = self.engine.noted(since_boot());
        Ended {
            figures: Figures::of(&self.engine),
            pushed_out: self.engine.flows_pushed_out(),
            legacy: Legacy {
                overflowed: self.overflowed,
                noted: noted.copied().collect(),
            },
        }
    }

    fn work(&mut self) {
        let mut events = [EpollEvent::empty(); 64];
        let mut until: Option<Instant> = None;
        loop {
            let wait = match until {
                Some(until) if Instant::now() < until => EpollTimeout::ZERO,
                _ => EpollTimeout::NONE,
            };
            let count = match self.epoll.wait(&mut events, wait) {
                Ok(count) => count,
                Err(Errno::EINTR) => continue,
                Err(error) => {
                    warn!(%error, "Waiting for frames failed; the worker ends");
                    return;
                }
            };
            if count == 0 {
                std::hint::spin_loop();
                continue;
            }
            for event in &events[..count] {
                match event.data() {
                    LETTERS => {
                        if !self.read_letters() {
                            return;
                        }
                    }
                    SOCKET => self.read_socket(),
                    tap => self.read_tap(tap as usize),
                }
            }
            if !self.manner.busy_poll.is_zero() {
                until = Some(Instant::now() + self.manner.busy_poll);
            }
        }
    }

    /// False if it is to end.
    fn read_letters(&mut self) -> bool {
        match self.bell.read() {
            Ok(_) | Err(Errno::EAGAIN) => {}
            Err(error) => warn!(%error, "Reading the bell failed"),
        }
        while let Ok(letter) = self.mailbox.try_recv() {
            match letter {
                Letter::Stop => return false,
                Letter::Tap(name, number, queue) => self.add_tap(name, number, queue),
                Letter::TakeOver(taken) => {
                    for (name, number, queue) in taken.taps {
                        self.add_tap(name, number, queue);
                    }
                    taken.rows.iter().for_each(|row| self.engine.apply(row));
                    self.set_sockets(taken.sockets);
                    self.overflowed = None;
                }
                Letter::GoOn(legacy) => {
                    self.overflowed = legacy.overflowed.or_else(|| self.dropped());
                    self.engine.take_over(since_boot(), &legacy.noted);
                }
                Letter::Forget(name) => {
                    let number = self.taps.iter().find(|(_, tap)| tap.name == name);
                    if let Some(number) = number.map(|(number, _)| *number) {
                        self.forget_tap(number);
                    }
                }
                Letter::Changes(changes) => {
                    changes.iter().for_each(|change| self.engine.apply(change));
                }
                Letter::Sockets(sockets) => self.set_sockets(sockets),
                Letter::Watch(watcher) => self.watchers.push(watcher),
                Letter::Unwatch(number) => self.watchers.retain(|w| w.number != number),
                Letter::Report(to) => {
                    self.count_overflow();
                    drop(to.send(Figures::of(&self.engine)));
                }
                Letter::Flows(to) => {
                    let flows = self.engine.flows(since_boot());
                    drop(to.send(FlowFigures {
                        flows: flows.collect(),
                        pushed_out: self.engine.flows_pushed_out(),
                    }));
                }
            }
        }
        true
    }

    fn add_tap(&mut self, name: IfName, number: usize, queue: TapQueue) {
        let interest = EpollEvent::new(EpollFlags::EPOLLIN, number as u64);
        if let Err(error) = self.epoll.add(&queue, interest) {
            warn!(%name, %error, "A TAP cannot be watched");
            drop(self.gone.send(Gone(name)));
            return;
        }
        self.engine
            .name_tap(name.clone(), number, queue.datagrams());
        self.taps.insert(number, Tap { name, queue });
    }

    /// Counts what the receiving socket had no room for since this was last looked at.
    fn count_overflow(&mut self) {
        let Some((before, now)) = self.overflowed.zip(self.dropped()) else {
            return;
        };
        let more = now.wrapping_sub(before);
        self.overflowed = Some(now);
        self.engine
            .count_many(Reason::ReceiveBufferFull, more as usize);
    }

    /// What it had no room for since it was made.
    fn dropped(&self) -> Option<u32> {
        let dropped = self.sockets.as_ref()?.receiving.dropped();
        dropped
            .inspect_err(|error| debug!(%error, "What a socket dropped is not known"))
            .ok()
    }

    fn set_sockets(&mut self, sockets: Option<Sockets>) {
        self.count_overflow();
        self.full = [false; SOURCE_PORTS];
        if let Some(before) = std::mem::replace(&mut self.sockets, sockets) {
            unwatch(&self.epoll, &before.receiving);
        }
        if let Some(sockets) = &self.sockets {
            let interest = EpollEvent::new(EpollFlags::EPOLLIN, SOCKET);
            if let Err(error) = self.epoll.add(&sockets.receiving, interest) {
                warn!(%error, "The tunnel's socket cannot be watched");
            }
        }
        self.overflowed = self.dropped();
    }

    /// Reads what a TAP has, up to an arena full, and sends it.
    fn read_tap(&mut self, number: usize) {
        let Some(tap) = self.taps.get(&number) else {
            return;
        };
        self.outbox.clear();
        let now = since_boot();
        let (mut used, mut frames) = (0, 0);
        let mut gone = None;
        while frames < FRAMES_AT_ONCE && self.arena.len() - used >= FRAME_BYTES {
            let bytes = match tap.queue.read(&mut self.arena[used..used + FRAME_BYTES]) {
                Ok(Some(bytes)) => bytes,
                Ok(None) => break,
                Err(error) => {
                    gone = Some(error);
                    break;
                }
            };
            frames += 1;
            let end = used + bytes;
            let header = self.arena[used..end].first_chunk::<OFFLOAD_BYTES>();
            match header.and_then(Offload::parse) {
                None => self.engine.count(Reason::Malformed),
                Some(offload) => {
                    let at = used + OFFLOAD_BYTES;
                    let bytes = &mut self.arena[..end];
                    let out = &mut self.outbox;
                    let fate = self.engine.from_tap(now, number, bytes, at, offload, out);
                    if !self.watchers.is_empty() {
                        let frame = &self.arena[at..end];
                        let vni = self.engine.vni_at(number, frame);
                        let dropped = match &fate {
                            Fate::Dropped(reason) => Some(reason.name()),
                            Fate::Answered(_) => Some("answered"),
                            Fate::Sent => None,
                        };
                        for watcher in &self.watchers {
                            watcher.inner(frame, vni, Direction::Out, dropped);
                            if let Fate::Answered(reply) = &fate {
                                watcher.inner(reply.frame(), vni, Direction::In, None);
                            }
                        }
                    }
                    match fate {
                        Fate::Sent => {}
                        Fate::Answered(reply) => {
                            let none = Offload::default().to_bytes();
                            let parts = [IoSlice::new(&none), IoSlice::new(reply.frame())];
                            if tap.queue.write(&parts).is_err() {
                                self.engine.count(Reason::TapFull);
                            }
                        }
                        Fate::Dropped(reason) => debug!(tap = %tap.name, %reason, "Dropped"),
                    }
                }
            }
            used = end;
        }
        self.send();
        if let Some(error) = gone {
            self.lose_tap(number, &error);
        }
    }

    fn lose_tap(&mut self, number: usize, error: &io::Error) {
        if error.kind() == io::ErrorKind::Interrupted {
            return;
        }
        if let Some(name) = self.forget_tap(number) {
            warn!(tap = %name, %error, "A TAP is gone");
            drop(self.gone.send(Gone(name)));
        }
    }

    fn forget_tap(&mut self, number: usize) -> Option<IfName> {
        let tap = self.taps.remove(&number)?;
        // It may be open elsewhere in the process, and would still be waited for.
        unwatch(&self.epoll, &tap.queue);
        self.engine.forget_tap(&tap.name);
        Some(tap.name)
    }

    /// Sends what is in the outbox: runs of packets of one flow as one message each.
    fn send(&mut self) {
        let Some(sockets) = &self.sockets else {
            let packets = self.outbox.packets.iter();
            let count = packets.map(|packets| packets.segments.len()).sum();
            self.engine.count_many(Reason::Unreachable, count);
            return;
        };
        let bounds = Bounds {
            ports: SOURCE_PORTS,
            packets: if self.splits { TUNNEL_PACKETS_MAX } else { 1 },
        };
        self.outbox.messages(bounds, &mut self.messages);
        if !self.watchers.is_empty() {
            self.show_sent(sockets);
        }
        let (outbox, arena) = (&self.outbox, &self.arena);
        let mut parts: Vec<IoSlice<'_>> = Vec::new();
        let mut spans = Vec::with_capacity(self.messages.len());
        for message in &self.messages {
            let start = parts.len();
            for segment in message.segments.of(&outbox.segments) {
                parts.push(IoSlice::new(segment.head.of(&outbox.heads)));
                if !segment.body.is_empty() {
                    parts.push(IoSlice::new(segment.body.of(arena)));
                }
            }
            spans.push(start..parts.len());
        }
        let mut ready = Vec::with_capacity(self.messages.len());
        let mut spans = spans.into_iter();
        for run in self.messages.chunk_by(|a, b| a.port == b.port) {
            ready.clear();
            ready.extend(run.iter().zip(&mut spans).map(|(message, span)| ToSend {
                to: SocketAddr::new(message.to, VXLAN_PORT),
                traffic_class: message.traffic_class,
                split: (message.packets() > 1).then_some(message.size as u16),
                parts: &parts[span],
            }));
            let port = run[0].port;
            let full = &mut self.full[port];
            let socket = &sockets.sending[port];
            let left_out = deliver(&mut self.sender, socket, &ready, full);
            let mut left = left_out.messages.iter().peekable();
            for (number, message) in run.iter().enumerate() {
                match left.next_if(|left| left.at == number) {
                    Some(left) => self.engine.count_many(left.reason, message.packets()),
                    None => self.engine.count_sent(message),
                }
            }
            self.splits &= !left_out.refused;
        }
    }

    fn show_sent(&self, sockets: &Sockets) {
        let outbox = &self.outbox;
        for packets in &outbox.packets {
            for segment in packets.segments.of(&outbox.segments) {
                let (head, body) = (segment.head.of(&outbox.heads), segment.body.of(&self.arena));
                let packet = Outer {
                    from: SocketAddr::new(
                        sockets.local,
                        sockets.port(packets.hash as usize % SOURCE_PORTS),
                    ),
                    to: SocketAddr::new(packets.to, VXLAN_PORT),
                    traffic_class: packets.traffic_class,
                    vni: vni_of(head),
                    parts: &[head, body],
                };
                for watcher in &self.watchers {
                    watcher.outer(&packet, Direction::Out, None);
                }
            }
        }
    }

    /// What came from the underlay, and what became of it.
    fn show_received(&self, local: IpAddr, got: &Got, bytes: &[u8], dropped: Option<Reason>) {
        let packet = Outer {
            from: SocketAddr::new(got.from, got.port),
            to: SocketAddr::new(local, VXLAN_PORT),
            traffic_class: got.traffic_class,
            vni: vni_of(bytes),
            parts: &[bytes],
        };
        for watcher in &self.watchers {
            watcher.outer(&packet, Direction::In, dropped.map(Reason::name));
        }
    }

    fn read_socket(&mut self) {
        // As often as a TAP's turn, so that neither starves the other.
        for _ in 0..4 {
            let Some(sockets) = &self.sockets else { return };
            let count = match self.receiver.receive(&sockets.receiving) {
                Ok(0) => return,
                Ok(count) => count,
                Err(error) => {
                    if error.kind() != io::ErrorKind::Interrupted {
                        warn!(%error, "Receiving failed");
                    }
                    return;
                }
            };
            self.inbox.clear();
            let now = since_boot();
            let bytes = self.receiver.bytes();
            for got in self.receiver.messages() {
                if got.truncated {
                    self.engine.count(Reason::Truncated);
                    continue;
                }
                let received = Received {
                    from: got.from,
                    traffic_class: got.traffic_class,
                    at: got.at,
                    length: got.length,
                    split: got.split,
                };
                let mut dropped: Vec<(Reason, Span)> = Vec::new();
                let is_watched = !self.watchers.is_empty();
                let note = |reason, span| {
                    debug!(from = %got.from, %reason, "Dropped");
                    if is_watched {
                        dropped.push((reason, span));
                    }
                };
                self.engine
                    .from_tunnel(now, bytes, &received, &mut self.inbox, note);
                if is_watched {
                    let whole = &bytes[got.at..got.at + got.length];
                    let size = got.split.map_or(whole.len(), usize::from).max(1);
                    let parts = whole.chunks(size);
                    let lost = |at: usize| {
                        let at = got.at + at * size;
                        let found = dropped.iter().find(|(_, span)| span.start() == at);
                        found.map(|(reason, _)| *reason)
                    };
                    for (number, part) in parts.enumerate() {
                        self.show_received(sockets.local, &got, part, lost(number));
                    }
                }
            }
            self.engine.end_of_batch(bytes, &mut self.inbox);
            self.write();
            if count < MESSAGES_AT_ONCE {
                return;
            }
        }
    }

    /// Gives the TAPs what is in the inbox.
    fn write(&mut self) {
        let mut lost = None;
        let bytes = self.receiver.bytes();
        let inbox = &self.inbox;
        let headers = inbox.frames.iter().map(|frame| frame.offload.to_bytes());
        let headers: Vec<[u8; OFFLOAD_BYTES]> = headers.collect();
        let mut parts: Vec<IoSlice<'_>> = Vec::new();
        for (frame, header) in inbox.frames.iter().zip(&headers) {
            let Some(tap) = self.taps.get(&frame.tap) else {
                self.engine.count(Reason::TapGone);
                continue;
            };
            parts.clear();
            parts.push(IoSlice::new(header));
            if !frame.head.is_empty() {
                parts.push(IoSlice::new(frame.head.of(&inbox.heads)));
            }
            let spans: &[Span] = frame.parts.of(&inbox.parts);
            parts.extend(spans.iter().map(|span| IoSlice::new(span.of(bytes))));
            if !self.watchers.is_empty() {
                let whole: Vec<u8> = parts[1..]
                    .iter()
                    .flat_map(|part| part.iter().copied())
                    .collect();
                let vni = self.engine.vni_at(frame.tap, &whole);
                for watcher in &self.watchers {
                    watcher.inner(&whole, vni, Direction::In, None);
                }
            }
            match tap.queue.write(&parts) {
                Ok(()) => {}
                Err(error) if error.raw_os_error() == Some(Errno::EBADFD as i32) => {
                    self.engine.count(Reason::TapGone);
                    lost = Some((frame.tap, error));
                }
                // Down, or no memory.
                Err(error) => {
                    debug!(tap = %tap.name, %error, "A frame was not taken");
                    self.engine.count(Reason::TapFull);
                }
            }
        }
        if let Some((number, error)) = lost {
            self.lose_tap(number, &error);
        }
    }
}

/// The clock of all workers, and of those of the process that takes over.
fn since_boot() -> Duration {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from)
}

fn unwatch(epoll: &Epoll, what: &impl AsFd) {
    if let Err(error) = epoll.delete(what) {
        debug!(%error, "It was not waited for");
    }
}
