//! Bundles without VLAN filtering: small programs that put the 802.1Q tag on and take it off.
//!
//! A subnet of a bundle has a bridge of its own and a veth pair to the tunnel. On the pair's outer
//! end a program tags what comes and sends it out of the VXLAN device. On the VXLAN device each
//! VLAN has a filter, its priority the VLAN's number, that takes the tag off and sends the frame
//! into the pair; the last filter drops what no VLAN claimed. The programs are assembled here: they
//! are a dozen instructions, and so need no compiler on the build machine. The names of filters say
//! what their programs do, so that a look at them tells if a pair is connected.

use crate::attr::{self, Message};
use crate::error::Cause;
use crate::socket::Socket;
use crate::sys;
use model::VlanId;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// `struct bpf_insn` (`linux/bpf.h`): `| opcode 1 | source 4 bits, destination 4 bits | offset 2 | immediate 4 |`.
#[derive(Debug, Clone, Copy)]
struct Insn {
    opcode: u8,
    destination: u8,
    source: u8,
    offset: i16,
    immediate: i32,
}

const fn insn(opcode: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> Insn {
    Insn {
        opcode,
        destination,
        source,
        offset,
        immediate,
    }
}

/// `destination = immediate`.
const fn set(destination: u8, immediate: i32) -> Insn {
    insn(0xb7, destination, 0, 0, immediate)
}

/// `destination = *(u32 *)(source + offset)`.
const fn load(destination: u8, source: u8, offset: i16) -> Insn {
    insn(0x61, destination, source, offset, 0)
}

/// `destination &= immediate`.
const fn and(destination: u8, immediate: i32) -> Insn {
    insn(0x57, destination, 0, 0, immediate)
}

/// Skips `offset` instructions if `register == immediate`.
const fn if_equal(register: u8, immediate: i32, offset: i16) -> Insn {
    insn(0x15, register, 0, offset, immediate)
}

/// Skips `offset` instructions if `register != immediate`.
const fn unless_equal(register: u8, immediate: i32, offset: i16) -> Insn {
    insn(0x55, register, 0, offset, immediate)
}

const fn call(helper: i32) -> Insn {
    insn(0x85, 0, 0, 0, helper)
}

const EXIT: Insn = insn(0x95, 0, 0, 0, 0);

const SKB_VLAN_PUSH: i32 = 18;
const SKB_VLAN_POP: i32 = 19;
const REDIRECT: i32 = 23;
/// Offsets in `struct __sk_buff`.
const VLAN_PRESENT: i16 = 20;
const VLAN_TCI: i16 = 24;
const TC_ACT_UNSPEC: i32 = -1;
const TC_ACT_SHOT: i32 = 2;
/// As the helper wants it, in network byte order.
const ETH_P_8021Q: i32 = 0x8100_u16.to_be() as i32;

/// On the pair's outer end: tag, and out of the tunnel. What has a tag already would have two.
fn push(vlan: VlanId, vxlan: u32) -> Vec<Insn> {
    vec![
        load(2, 1, VLAN_PRESENT),
        unless_equal(2, 0, 8),
        set(2, ETH_P_8021Q),
        set(3, i32::from(vlan.get())),
        call(SKB_VLAN_PUSH),
        unless_equal(0, 0, 4),
        set(1, vxlan as i32),
        set(2, 0),
        call(REDIRECT),
        EXIT,
        set(0, TC_ACT_SHOT),
        EXIT,
    ]
}

/// On the VXLAN device: what has this VLAN's tag goes untagged into the pair; the next filter sees
/// the rest.
fn pop(vlan: VlanId, outer: u32) -> Vec<Insn> {
    vec![
        load(2, 1, VLAN_PRESENT),
        if_equal(2, 0, 9),
        load(2, 1, VLAN_TCI),
        and(2, 0xfff),
        unless_equal(2, i32::from(vlan.get()), 6),
        call(SKB_VLAN_POP),
        unless_equal(0, 0, 6),
        set(1, outer as i32),
        set(2, 0),
        call(REDIRECT),
        EXIT,
        set(0, TC_ACT_UNSPEC),
        EXIT,
        set(0, TC_ACT_SHOT),
        EXIT,
    ]
}

fn drop_all() -> Vec<Insn> {
    vec![set(0, TC_ACT_SHOT), EXIT]
}

fn loaded(program: &[Insn]) -> Result<OwnedFd, Cause> {
    let mut bytes = Vec::with_capacity(program.len() * 8);
    for insn in program {
        bytes.push(insn.opcode);
        // The first field of a C bit-field is in the low bits on little-endian machines.
        bytes.push(if cfg!(target_endian = "little") {
            insn.source << 4 | insn.destination
        } else {
            insn.destination << 4 | insn.source
        });
        bytes.extend_from_slice(&insn.offset.to_ne_bytes());
        bytes.extend_from_slice(&insn.immediate.to_ne_bytes());
    }
    Ok(sys::load_classifier(&bytes)?)
}

/// Priority of the filter on the outer end.
const PUSH_PRIORITY: u16 = 1;
/// Priority of the filter that drops the rest: after every VLAN's.
const DROP_PRIORITY: u16 = 5000;
/// Both halves of `TC_H_CLSACT` and `TC_H_MIN_INGRESS` (`linux/pkt_sched.h`).
const CLSACT_HANDLE: u32 = 0xffff_0000;
const INGRESS: u32 = CLSACT_HANDLE | sys::TC_H_MIN_INGRESS;
/// Of our filters; each has its priority for itself.
const HANDLE: u32 = 1;
const DROP_NAME: &str = "vpc-drop";

/// `struct tcmsg`.
fn tc(kind: u16, flags: i32, index: u32, handle: u32, parent: u32, priority: u16) -> Message {
    let protocol = (libc::ETH_P_ALL as u16).to_be();
    let info = u32::from(priority) << 16 | u32::from(protocol);
    let mut message = Message::new(kind, flags);
    message
        .header(&[libc::AF_UNSPEC as u8, 0, 0, 0])
        .header(&index.to_ne_bytes())
        .header(&handle.to_ne_bytes())
        .header(&parent.to_ne_bytes())
        .header(&info.to_ne_bytes());
    message
}

fn clsact(socket: &mut Socket, index: u32) -> Result<(), Cause> {
    let flags = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
    let mut message = Message::new(libc::RTM_NEWQDISC, flags);
    message
        .header(&[libc::AF_UNSPEC as u8, 0, 0, 0])
        .header(&index.to_ne_bytes())
        .header(&CLSACT_HANDLE.to_ne_bytes())
        .header(&sys::TC_H_CLSACT.to_ne_bytes())
        .header(&[0; 4])
        .put_text(sys::TCA_KIND, "clsact");
    match socket.request(message) {
        Err(cause) if cause.errno() == Some(libc::EEXIST) => Ok(()),
        other => other,
    }
}

/// Attaches a program to what comes in on an interface, in the place of the one that is there.
fn attach(
    socket: &mut Socket,
    index: u32,
    priority: u16,
    name: &str,
    program: &[Insn],
) -> Result<(), Cause> {
    clsact(socket, index)?;
    let program = loaded(program)?;
    let flags = libc::NLM_F_CREATE | libc::NLM_F_REPLACE;
    let mut message = tc(
        libc::RTM_NEWTFILTER,
        flags,
        index,
        HANDLE,
        INGRESS,
        priority,
    );
    message
        .put_text(sys::TCA_KIND, "bpf")
        .nest_exactly(sys::TCA_OPTIONS, |m| {
            m.put(sys::TCA_BPF_FD, &program.as_fd().as_raw_fd().to_ne_bytes())
                .put_text(sys::TCA_BPF_NAME, name)
                .put_u32(sys::TCA_BPF_FLAGS, sys::TCA_BPF_FLAG_ACT_DIRECT);
        });
    socket.request(message)
}

/// Name of the filter on the outer end: it says where the other filter is.
fn push_name(vlan: VlanId, vxlan: u32) -> String {
    format!("vpc-push-{vlan}-{vxlan}")
}

fn parse_push_name(name: &str) -> Option<(VlanId, u32)> {
    let (vlan, vxlan) = name.strip_prefix("vpc-push-")?.split_once('-')?;
    Some((VlanId::new(vlan.parse().ok()?).ok()?, vxlan.parse().ok()?))
}

/// What a filter's name in a message says; none if it is not one of ours on an outer end.
pub(crate) fn filter_of(payload: &[u8]) -> Option<(VlanId, u32)> {
    deciding_program(payload).and_then(parse_push_name)
}

/// Name of a VLAN's filter on the tunnel: it says where its program sends to.
fn pop_name(vlan: VlanId, outer: u32) -> String {
    format!("vpc-pop-{vlan}-{outer}")
}

/// Connects a pair's outer end with the tunnel.
pub(crate) fn connect(
    socket: &mut Socket,
    outer: u32,
    vxlan: u32,
    vlan: VlanId,
) -> Result<(), Cause> {
    attach(socket, vxlan, DROP_PRIORITY, DROP_NAME, &drop_all())?;
    let name = pop_name(vlan, outer);
    attach(socket, vxlan, vlan.get(), &name, &pop(vlan, outer))?;
    let name = push_name(vlan, vxlan);
    attach(socket, outer, PUSH_PRIORITY, &name, &push(vlan, vxlan))
}

/// The outer end of a pair that is connected, by numbers of interfaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Connected {
    pub(crate) outer: u32,
    pub(crate) vlan: VlanId,
    pub(crate) vxlan: u32,
}

/// Which of these interfaces are outer ends whose filters are all in place: their own, and both on
/// the tunnel.
pub(crate) fn connected(socket: &mut Socket, ends: &[u32]) -> Result<Vec<Connected>, Cause> {
    let asked: Vec<_> = ends.iter().map(|end| (*end, PUSH_PRIORITY)).collect();
    let names = filter_names(socket, &asked)?;
    let mut pairs: Vec<Connected> = Vec::new();
    for (outer, name) in ends.iter().zip(names) {
        let push = name.as_deref().and_then(parse_push_name);
        pairs.extend(push.map(|(vlan, vxlan)| Connected {
            outer: *outer,
            vlan,
            vxlan,
        }));
    }
    let on_tunnels: Vec<_> = pairs
        .iter()
        .flat_map(|pair| [(pair.vxlan, pair.vlan.get()), (pair.vxlan, DROP_PRIORITY)])
        .collect();
    let names = filter_names(socket, &on_tunnels)?;
    let in_place = pairs.into_iter().zip(names.chunks(2));
    Ok(in_place
        .filter(|(pair, names)| {
            let pop = pop_name(pair.vlan, pair.outer);
            matches!(names, [Some(first), Some(last)] if *first == pop && last == DROP_NAME)
        })
        .map(|(pair, _)| pair)
        .collect())
}

/// Names of the programs that decide in filters, asked for by interface and priority.
fn filter_names(socket: &mut Socket, filters: &[(u32, u16)]) -> Result<Vec<Option<String>>, Cause> {
    let mut names = vec![None; filters.len()];
    let mut questions: Vec<Message> = filters
        .iter()
        .map(|(index, priority)| tc(libc::RTM_GETTFILTER, 0, *index, HANDLE, INGRESS, *priority))
        .collect();
    let results = socket.ask(&mut questions, |position, payload| {
        names[position] = deciding_program(payload).map(str::to_owned);
    });
    for result in results {
        match result {
            // No filter, no clsact, or no such interface any more.
            Err(cause)
                if matches!(
                    cause.errno(),
                    Some(libc::EINVAL | libc::ENODEV | libc::ENOENT)
                ) => {}
            other => other?,
        }
    }
    Ok(names)
}

/// The name of the program in a message about a filter, if what it returns is the verdict.
fn deciding_program(payload: &[u8]) -> Option<&str> {
    let options = attr::attribute(payload.get(20..)?, sys::TCA_OPTIONS)?;
    let flags = attr::u32(attr::attribute(options, sys::TCA_BPF_FLAGS)?)?;
    let name = attr::attribute(options, sys::TCA_BPF_NAME)?;
    (flags & sys::TCA_BPF_FLAG_ACT_DIRECT != 0)
        .then(|| attr::text(name))
        .flatten()
}

/// True for a message about a filter or clsact where our filters are.
pub(crate) fn is_of_ingress(payload: &[u8]) -> bool {
    let at = |offset| payload.get(offset..).and_then(attr::u32);
    // `struct tcmsg`: `| family 1 | padding 3 | interface 4 | handle 4 | parent 4 | info 4 |`.
    at(8) == Some(CLSACT_HANDLE) || at(12) == Some(INGRESS)
}

/// Takes the filter of a pair off its tunnel, before the pair goes. An interface that has no such
/// filter, or is no outer end, is left alone.
pub(crate) fn disconnect(socket: &mut Socket, outer: u32) -> Result<(), Cause> {
    let mut pairs = Vec::new();
    let request = tc(libc::RTM_GETTFILTER, 0, outer, 0, INGRESS, 0);
    let result = socket.dump(request, |_, payload| {
        pairs.extend(filter_of(payload));
    });
    match result {
        // No clsact there, or no such interface any more.
        Err(cause)
            if matches!(
                cause.errno(),
                Some(libc::EINVAL | libc::ENODEV | libc::ENOENT)
            ) => {}
        other => other?,
    }
    for (vlan, vxlan) in pairs {
        let delete = tc(libc::RTM_DELTFILTER, 0, vxlan, 0, INGRESS, vlan.get());
        match socket.request(delete) {
            Err(cause)
                if matches!(
                    cause.errno(),
                    Some(libc::EINVAL | libc::ENODEV | libc::ENOENT)
                ) => {}
            other => other?,
        }
    }
    Ok(())
}

/// Loads and attaches the largest program, for the probe.
pub(crate) fn attach_probe(socket: &mut Socket, index: u32) -> Result<(), Cause> {
    let vlan = VlanId::new(1).expect("1 is a VLAN");
    attach(socket, index, 1, "vpc-probe", &pop(vlan, index))?;
    attach(socket, index, 2, "vpc-probe", &push(vlan, index))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jumps_stay_in_their_program() {
        let vlan = VlanId::new(7).unwrap();
        for program in [push(vlan, 3), pop(vlan, 4), drop_all()] {
            for (at, insn) in program.iter().enumerate() {
                if matches!(insn.opcode, 0x15 | 0x55) {
                    let to = at + 1 + insn.offset as usize;
                    assert!(matches!(program[to].opcode, 0xb7), "{at} jumps to {to}");
                }
            }
            assert_eq!(program.last().unwrap().opcode, EXIT.opcode);
        }
    }

    #[test]
    fn a_filter_says_where_the_other_is() {
        let vlan = VlanId::new(4094).unwrap();
        assert_eq!(parse_push_name(&push_name(vlan, 77)), Some((vlan, 77)));
        for foreign in ["", "vpc-pop", "vpc-push-", "vpc-push-0-3", "vpc-push-1-x"] {
            assert_eq!(parse_push_name(foreign), None);
        }
    }
}
