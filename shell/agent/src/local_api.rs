//! The host's own gRPC services, L2, L3, Sbs, AgentControl and Evpn, on a root-only unix socket.

use crate::dhcp::{Dhcp, Lease};
use crate::events::{Event, Reply, Request};
use crate::evpn_api::EvpnApi;
use crate::l3_api::without_gateways_of;
use crate::meter::Meter;
use crate::names::Tally;
use crate::sbs_api::SbsApi;
use crate::standby::Standbys;
use crate::view::View;
use api::tonic::{self, Response, Status};
use api::v1;
use datapath::{Domain, Place, Tables};
use host_plan::{FdbTarget, HostState, Link, LinkKind, OwnedName, VlanMembership};
use model::{
    Attachment, Capability, IfName, MacAddr, NicId, ObjectId, Port, Role, Segment, Stack, SubnetId,
    VpcId,
};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UnixListener;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_stream::Stream;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};

/// Requests on this socket are small; a configuration of a thousand NICs is not asked for here.
const LARGEST_REQUEST_BYTES: usize = 1 << 20;

/// Who the host is, for `Status`.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    pub(crate) name: String,
    pub(crate) roles: BTreeSet<Role>,
    pub(crate) capabilities: BTreeSet<Capability>,
}

#[derive(Clone)]
pub(crate) struct Local {
    pub(crate) view: watch::Receiver<Arc<View>>,
    events: mpsc::Sender<Event>,
    bgp: EvpnApi,
    dhcp: Dhcp,
    pub(crate) meter: Meter,
    names: Tally,
    standbys: Standbys,
    identity: Arc<Identity>,
}

/// Who knows what the loop does not.
pub(crate) struct Knowing {
    pub(crate) evpn: EvpnApi,
    pub(crate) dhcp: Dhcp,
    pub(crate) meter: Meter,
    pub(crate) names: Tally,
    pub(crate) standbys: Standbys,
    pub(crate) storage: SbsApi,
}

/// Binds the socket: in a directory and with a mode that only root can use. A socket that a killed
/// agent left is replaced; one that answers is not.
pub(crate) async fn bind(socket: &Path) -> io::Result<UnixListener> {
    if let Some(dir) = socket.parent() {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)?;
    }
    if socket.exists() {
        if tokio::net::UnixStream::connect(socket).await.is_ok() {
            return Err(io::Error::new(
                io::ErrorKind::AddrInUse,
                "another agent answers there: stop it first (vpc agent stop)",
            ));
        }
        fs::remove_file(socket)?;
    }
    let listener = UnixListener::bind(socket)?;
    fs::set_permissions(socket, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Serves until the loop is gone.
pub(crate) async fn serve(
    listener: UnixListener,
    view: watch::Receiver<Arc<View>>,
    events: mpsc::Sender<Event>,
    knowing: Knowing,
    identity: Identity,
    until: impl Future<Output = ()>,
) -> Result<(), tonic::transport::Error> {
    let local = Local {
        view,
        events,
        bgp: knowing.evpn,
        dhcp: knowing.dhcp,
        meter: knowing.meter,
        names: knowing.names,
        standbys: knowing.standbys,
        identity: Arc::new(identity),
    };
    tonic::transport::Server::builder()
        .add_service(local.bgp.clone().service())
        .add_service(knowing.storage.service())
        .add_service(
            v1::l2_server::L2Server::new(local.clone())
                .max_decoding_message_size(LARGEST_REQUEST_BYTES),
        )
        .add_service(
            v1::l3_server::L3Server::new(local.clone())
                .max_decoding_message_size(LARGEST_REQUEST_BYTES),
        )
        .add_service(
            v1::agent_control_server::AgentControlServer::new(local)
                .max_decoding_message_size(LARGEST_REQUEST_BYTES),
        )
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), until)
        .await
}

pub(crate) type Answer<T> = Result<Response<T>, Status>;
pub(crate) type Streamed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl Local {
    pub(crate) fn now(&self) -> Arc<View> {
        Arc::clone(&self.view.borrow())
    }

    pub(crate) async fn ask(
        &self,
        request: impl FnOnce(Reply<()>) -> Request,
    ) -> Result<(), Status> {
        let (reply, answer) = oneshot::channel();
        let ending = || Status::unavailable("the agent is stopping");
        self.events
            .send(Event::Request(request(reply)))
            .await
            .map_err(|_| ending())?;
        answer.await.map_err(|_| ending())?
    }

    /// Waits until everything asked so far is done in the kernel.
    pub(crate) async fn settle(&self, wait_ms: u32) -> Result<(), Status> {
        if wait_ms == 0 {
            return Ok(());
        }
        let mut view = self.view.clone();
        let asked = view.borrow().asked;
        let settled = view.wait_for(|view| view.settled >= asked);
        match tokio::time::timeout(Duration::from_millis(wait_ms.into()), settled).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(Status::unavailable("the agent is stopping")),
            Err(_) => Err(Status::deadline_exceeded(format!(
                "accepted, but not in the kernel after {wait_ms} ms: ask for its status to see why"
            ))),
        }
    }
}

#[tonic::async_trait]
impl v1::l2_server::L2 for Local {
    async fn add_stack(
        &self,
        request: tonic::Request<v1::AddStackRequest>,
    ) -> Answer<v1::StackState> {
        let request = request.into_inner();
        let mut wire = request.stack.ok_or_else(|| missing("stack"))?;
        draw(&mut wire.vpc_id, || {
            VpcId::from_random(rand::random()).to_string()
        });
        if wire.name.is_empty() {
            wire.name = format!("local/{}", wire.vpc_id);
        }
        for segment in &mut wire.segments {
            draw(&mut segment.subnet_id, || {
                SubnetId::from_random(rand::random()).to_string()
            });
        }
        let stack = Stack::try_from(wire).map_err(invalid)?;
        let id = stack.vpc;
        if let Some(there) = find_stack(&self.now(), id)
            && bare(there, &stack) == bare(&stack, &stack)
        {
            return Ok(Response::new(stack_state(&self.now(), there)));
        }
        self.ask(|reply| Request::AddStack(stack, reply)).await?;
        self.settle(request.wait_ms).await?;
        let view = self.now();
        let stack = find_stack(&view, id).ok_or_else(|| gone("stack", &id.to_string()))?;
        Ok(Response::new(stack_state(&view, stack)))
    }

    async fn get_stack(
        &self,
        request: tonic::Request<v1::GetStackRequest>,
    ) -> Answer<v1::StackState> {
        let view = self.now();
        let stack = stack_by_id(&view, &request.into_inner().vpc_id)?;
        Ok(Response::new(stack_state(&view, stack)))
    }

    async fn list_stacks(
        &self,
        request: tonic::Request<v1::ListStacksRequest>,
    ) -> Answer<v1::ListStacksResponse> {
        let wanted = request.into_inner().origin;
        let view = self.now();
        let stacks = view.stacks.iter().map(|stack| stack_state(&view, stack));
        let stacks = stacks
            .filter(|state| matches_origin(wanted, state.origin))
            .collect();
        Ok(Response::new(v1::ListStacksResponse { stacks }))
    }

    async fn stack_status(
        &self,
        request: tonic::Request<v1::StackStatusRequest>,
    ) -> Answer<v1::StackStatusResponse> {
        let view = self.now();
        let stack = stack_by_id(&view, &request.into_inner().vpc_id)?;
        let state = stack_state(&view, stack);
        let empty = HostState::default();
        let observed = view.observed.as_deref().unwrap_or(&empty);
        let names = links_of(stack);
        let rows = observed.fdb.iter().filter(|row| names.contains(&row.dev));
        let rows = rows.map(|row| kernel_row(observed, row));
        let neighbours = observed.neighbours.iter();
        let neighbours = neighbours.filter(|row| names.contains(&row.dev));
        let neighbours = neighbours.map(|row| v1::KernelNeighbour {
            link: row.dev.to_string(),
            address: row.ip.to_string(),
            mac: row.mac.to_string(),
            protocol: stamp(row.ours),
        });
        let behind = BehindTaps::of(observed, &names);
        Ok(Response::new(v1::StackStatusResponse {
            vpc_id: stack.vpc.to_string(),
            origin: state.origin,
            ready: state.ready,
            conditions: state.conditions,
            links: names
                .iter()
                .filter_map(|name| kernel_link(observed, name))
                .collect(),
            vlans: names
                .iter()
                .flat_map(|name| kernel_vlans(observed, name))
                .collect(),
            fdb: rows.chain(behind.fdb()).collect(),
            neighbours: neighbours.chain(behind.neighbours()).collect(),
        }))
    }

    async fn delete_stack(
        &self,
        request: tonic::Request<v1::DeleteStackRequest>,
    ) -> Answer<v1::DeleteStackResponse> {
        let v1::DeleteStackRequest {
            vpc_id,
            with_nics,
            wait_ms,
        } = request.into_inner();
        let vpc = id(&vpc_id, "vpc_id")?;
        self.ask(|reply| Request::DeleteStack {
            vpc,
            with_nics,
            reply,
        })
        .await?;
        self.settle(wait_ms).await?;
        Ok(Response::new(v1::DeleteStackResponse {}))
    }

    type WatchStacksStream = Streamed<v1::StackEvent>;

    async fn watch_stacks(
        &self,
        _: tonic::Request<v1::WatchStacksRequest>,
    ) -> Answer<Self::WatchStacksStream> {
        let (send, receive) = mpsc::channel(16);
        let view = self.view.clone();
        tokio::spawn(watch_stacks(view, send));
        Ok(Response::new(Box::pin(ReceiverStream::new(receive))))
    }

    async fn add_nic(&self, request: tonic::Request<v1::AddNicRequest>) -> Answer<v1::NicState> {
        let request = request.into_inner();
        let vpc = id(&request.vpc_id, "vpc_id")?;
        let mut wire = request.port.ok_or_else(|| missing("port"))?;
        draw(&mut wire.nic_id, || {
            NicId::from_random(rand::random()).to_string()
        });
        draw(&mut wire.mac, || {
            MacAddr::local_from_random(rand::random()).to_string()
        });
        let mut segment = request.segment;
        if let Some(segment) = &mut segment {
            draw(&mut segment.subnet_id, || {
                SubnetId::from_random(rand::random()).to_string()
            });
            draw(&mut wire.subnet_id, || segment.subnet_id.clone());
        }
        if wire.name.is_empty() {
            wire.name = format!("local/{}", wire.nic_id);
        }
        let port = Port::try_from(wire).map_err(invalid)?;
        let segment = segment
            .map(Segment::try_from)
            .transpose()
            .map_err(invalid)?;
        let nic = port.nic;
        if let Some((stack, there)) = find_nic(&self.now(), nic)
            && stack.vpc == vpc
            && *there == port
        {
            return Ok(Response::new(nic_state(&self.now(), stack, there)));
        }
        self.ask(|reply| Request::AddNic {
            vpc,
            port,
            segment: segment.map(Box::new),
            reply,
        })
        .await?;
        self.settle(request.wait_ms).await?;
        let view = self.now();
        let (stack, port) = find_nic(&view, nic).ok_or_else(|| gone("nic", &nic.to_string()))?;
        Ok(Response::new(nic_state(&view, stack, port)))
    }

    async fn get_nic(&self, request: tonic::Request<v1::GetNicRequest>) -> Answer<v1::NicState> {
        let view = self.now();
        let (stack, port) = nic_by_id(&view, &request.into_inner().nic_id)?;
        Ok(Response::new(nic_state(&view, stack, port)))
    }

    async fn list_nics(
        &self,
        request: tonic::Request<v1::ListHostNicsRequest>,
    ) -> Answer<v1::ListHostNicsResponse> {
        let request = request.into_inner();
        let only = match request.vpc_id.as_str() {
            "" => None,
            text => Some(id::<VpcId>(text, "vpc_id")?),
        };
        let view = self.now();
        let stacks = view
            .stacks
            .iter()
            .filter(|stack| only.is_none_or(|vpc| vpc == stack.vpc));
        let nics = stacks.flat_map(|stack| stack.ports.iter().map(move |port| (stack, port)));
        let nics = nics.map(|(stack, port)| nic_state(&view, stack, port));
        let nics = nics
            .filter(|nic| matches_origin(request.origin, nic.origin))
            .collect();
        Ok(Response::new(v1::ListHostNicsResponse { nics }))
    }

    async fn nic_status(
        &self,
        request: tonic::Request<v1::NicStatusRequest>,
    ) -> Answer<v1::NicStatusResponse> {
        let view = self.now();
        let (stack, port) = nic_by_id(&view, &request.into_inner().nic_id)?;
        let state = nic_state(&view, stack, port);
        let empty = HostState::default();
        let observed = view.observed.as_deref().unwrap_or(&empty);
        let name = port_link(port);
        // The host's end sends what the workload receives.
        let counter = |file: &str| -> u64 {
            let path = format!("/sys/class/net/{name}/statistics/{file}");
            fs::read_to_string(path)
                .ok()
                .and_then(|text| text.trim().parse().ok())
                .unwrap_or(0)
        };
        Ok(Response::new(v1::NicStatusResponse {
            nic_id: port.nic.to_string(),
            origin: state.origin,
            ready: state.ready,
            conditions: state.conditions,
            links: kernel_link(observed, &name).into_iter().collect(),
            vlans: kernel_vlans(observed, &name).collect(),
            rx_bytes: counter("tx_bytes"),
            tx_bytes: counter("rx_bytes"),
            rx_packets: counter("tx_packets"),
            tx_packets: counter("rx_packets"),
            dropped_packets: counter("rx_dropped") + counter("tx_dropped"),
        }))
    }

    async fn delete_nic(
        &self,
        request: tonic::Request<v1::DeleteNicRequest>,
    ) -> Answer<v1::DeleteNicResponse> {
        let v1::DeleteNicRequest { nic_id, wait_ms } = request.into_inner();
        let nic = id(&nic_id, "nic_id")?;
        self.ask(|reply| Request::DeleteNic(nic, reply)).await?;
        self.settle(wait_ms).await?;
        Ok(Response::new(v1::DeleteNicResponse {}))
    }
}

#[tonic::async_trait]
impl v1::agent_control_server::AgentControl for Local {
    async fn leases(&self, _: tonic::Request<v1::LeasesRequest>) -> Answer<v1::LeasesResponse> {
        let (book, view) = (self.dhcp.book(), self.now());
        let of_nic = |(nic, leases): (&NicId, &BTreeMap<IpAddr, Lease>)| {
            let port = find_nic(&view, *nic).map(|(_, port)| port);
            let lease = |(address, lease): (&IpAddr, &Lease)| v1::Lease {
                nic_id: nic.to_string(),
                nic_name: port.map(|port| port.name.clone()).unwrap_or_default(),
                address: address.to_string(),
                since_unix_ms: lease.since.0,
                renewed_unix_ms: lease.renewed.0,
                until_unix_ms: lease.until.0,
                released_unix_ms: lease.released.map_or(0, |at| at.0),
                declined_unix_ms: lease.declined.map_or(0, |at| at.0),
            };
            leases.iter().map(lease).collect::<Vec<_>>()
        };
        Ok(Response::new(v1::LeasesResponse {
            leases: book.leases.iter().flat_map(of_nic).collect(),
            events: (book.events.iter())
                .map(|(event, count)| ((*event).to_owned(), *count))
                .collect(),
            trouble: book.trouble.unwrap_or_default(),
        }))
    }

    async fn status(&self, _: tonic::Request<v1::AgentStatusRequest>) -> Answer<v1::AgentStatus> {
        let view = self.now();
        let certificate_not_after_unix_ms = view.server.certificate_until_ms;
        Ok(Response::new(v1::AgentStatus {
            host_id: view
                .managed
                .as_ref()
                .map(|c| c.host.to_string())
                .unwrap_or_default(),
            host_name: self.identity.name.clone(),
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            kernel_version: linux::kernel_version(),
            roles: self
                .identity
                .roles
                .iter()
                .map(|role| v1::Role::from(*role).into())
                .collect(),
            capabilities: self
                .identity
                .capabilities
                .iter()
                .map(|capability| v1::Capability::from(*capability).into())
                .collect(),
            underlay_address: view.underlay.address.to_string(),
            underlay_mtu: view.underlay.mtu.get().into(),
            desired_generation: view.desired().0,
            applied_generation: view.applied.0,
            converged: view.settled == view.asked,
            server_connected: view.server.connected.is_some(),
            server: view.server.connected.clone().unwrap_or_default(),
            certificate_not_after_unix_ms,
            server_trouble: view.server.trouble.clone().unwrap_or_default(),
            clock_ahead_ms: view.server.clock_ahead_ms,
            peers: self.bgp.all_peers().await,
            counters: Some(v1::Counters {
                drift_repairs: view.counters.drift_repairs,
                resyncs: view.counters.resyncs,
                whole_readings: view.counters.whole_looks,
                actions: view.counters.actions,
                failed_actions: view.counters.failed_actions,
                configs_received: view.counters.configs,
                reconnects: view.counters.connects.saturating_sub(1),
            }),
            conditions: view.conditions.values().map(Into::into).collect(),
            started_unix_ms: view.started.0,
            stacks: view.stacks.len() as u32,
            nics: view
                .stacks
                .iter()
                .map(|stack| stack.ports.len() as u32)
                .sum(),
            questions: self.names.counts().questions(),
            standby_for: self.standbys.kept(),
            transport: v1::Transport::from(view.transport).into(),
        }))
    }

    async fn stop(&self, request: tonic::Request<v1::StopRequest>) -> Answer<v1::StopResponse> {
        let withdraw = request.into_inner().withdraw;
        let (done, ended) = oneshot::channel();
        let stop = Event::Stop {
            withdraw,
            done: Some(done),
        };
        self.events
            .send(stop)
            .await
            .map_err(|_| Status::unavailable("already stopping"))?;
        ended
            .await
            .map_err(|_| Status::unavailable("already stopping"))?;
        Ok(Response::new(v1::StopResponse {}))
    }
}

async fn watch_stacks(
    mut view: watch::Receiver<Arc<View>>,
    send: mpsc::Sender<Result<v1::StackEvent, Status>>,
) {
    let mut told: BTreeMap<VpcId, v1::StackState> = BTreeMap::new();
    let mut first = true;
    loop {
        let now = Arc::clone(&view.borrow_and_update());
        let states: BTreeMap<VpcId, v1::StackState> = now
            .stacks
            .iter()
            .map(|stack| (stack.vpc, stack_state(&now, stack)))
            .collect();
        let event = |stack: &v1::StackState, deleted| v1::StackEvent {
            stack: Some(stack.clone()),
            deleted,
            snapshot_complete: false,
        };
        let changed = states
            .iter()
            .filter(|(id, state)| told.get(id) != Some(state));
        let mut events: Vec<_> = changed.map(|(_, state)| event(state, false)).collect();
        let gone = told.iter().filter(|(id, _)| !states.contains_key(id));
        events.extend(gone.map(|(_, state)| event(state, true)));
        if std::mem::take(&mut first) {
            match events.last_mut() {
                Some(last) => last.snapshot_complete = true,
                None => events.push(v1::StackEvent {
                    stack: None,
                    deleted: false,
                    snapshot_complete: true,
                }),
            }
        }
        for event in events {
            if send.send(Ok(event)).await.is_err() {
                return;
            }
        }
        told = states;
        tokio::select! {
            changed = view.changed() => if changed.is_err() { return },
            () = send.closed() => return,
        }
    }
}

pub(crate) fn draw(text: &mut String, make: impl FnOnce() -> String) {
    if text.is_empty() {
        *text = make();
    }
}

pub(crate) fn missing(field: &str) -> Status {
    Status::invalid_argument(format!("{field}: it is missing"))
}

pub(crate) fn invalid(bad: api::BadRequest) -> Status {
    Status::invalid_argument(bad.to_string())
}

pub(crate) fn gone(kind: &str, id: &str) -> Status {
    Status::aborted(format!("{kind} {id} was deleted meanwhile"))
}

pub(crate) fn id<T: std::str::FromStr<Err: std::fmt::Display>>(
    text: &str,
    field: &str,
) -> Result<T, Status> {
    text.parse()
        .map_err(|error| Status::invalid_argument(format!("{field}: {error}")))
}

fn find_stack(view: &View, vpc: VpcId) -> Option<&Stack> {
    let mut stacks = view.stacks.iter().map(Arc::as_ref);
    stacks.find(|stack| stack.vpc == vpc)
}

fn stack_by_id<'a>(view: &'a View, text: &str) -> Result<&'a Stack, Status> {
    find_stack(view, id(text, "vpc_id")?)
        .ok_or_else(|| Status::not_found(format!("there is no stack {text} on this host")))
}

fn find_nic(view: &View, nic: NicId) -> Option<(&Stack, &Port)> {
    let nics = view
        .stacks
        .iter()
        .flat_map(|stack| stack.ports.iter().map(move |p| (stack.as_ref(), p)));
    nics.into_iter().find(|(_, port)| port.nic == nic)
}

fn nic_by_id<'a>(view: &'a View, text: &str) -> Result<(&'a Stack, &'a Port), Status> {
    find_nic(view, id(text, "nic_id")?)
        .ok_or_else(|| Status::not_found(format!("there is no nic {text} on this host")))
}

/// A stack as `AddStack` gives it: without its NICs.
fn bare(stack: &Stack, asked: &Stack) -> Stack {
    let mut stack = Stack {
        ports: Vec::new(),
        ..stack.clone()
    };
    without_gateways_of(&mut stack, asked);
    stack
}

fn origin(view: &View, vpc: VpcId) -> v1::Origin {
    match view.managed_vpcs.contains(&vpc) {
        true => v1::Origin::Managed,
        false => v1::Origin::Local,
    }
}

pub(crate) fn matches_origin(wanted: i32, has: i32) -> bool {
    wanted == v1::Origin::Unspecified as i32 || wanted == has
}

fn stack_state(view: &View, stack: &Stack) -> v1::StackState {
    let objects = [ObjectId::Vpc(stack.vpc)]
        .into_iter()
        .chain(
            stack
                .segments
                .iter()
                .map(|segment| ObjectId::Subnet(segment.subnet)),
        )
        .chain(stack.ports.iter().map(|port| ObjectId::Nic(port.nic)));
    v1::StackState {
        stack: Some(stack.into()),
        origin: origin(view, stack.vpc).into(),
        ready: view.stack_ready(stack),
        conditions: view
            .conditions_of(objects)
            .into_iter()
            .map(Into::into)
            .collect(),
    }
}

fn nic_state(view: &View, stack: &Stack, port: &Port) -> v1::NicState {
    let objects = [
        ObjectId::Nic(port.nic),
        ObjectId::Subnet(port.subnet),
        ObjectId::Vpc(stack.vpc),
    ];
    v1::NicState {
        vpc_id: stack.vpc.to_string(),
        port: Some(port.into()),
        origin: origin(view, stack.vpc).into(),
        ready: view.ready.nics.contains(&port.nic),
        conditions: view
            .conditions_of(objects)
            .into_iter()
            .map(Into::into)
            .collect(),
    }
}

fn port_link(port: &Port) -> IfName {
    match &port.attachment {
        Attachment::Existing { ifname } => ifname.clone(),
        Attachment::Tap | Attachment::Netns { .. } => OwnedName::port(port.nic),
    }
}

fn links_of(stack: &Stack) -> BTreeSet<IfName> {
    let of_segment = |segment: &Segment| {
        [
            OwnedName::subnet_bridge(segment.subnet),
            OwnedName::tunnel(segment.vni),
            OwnedName::vlan_device(segment.subnet),
            OwnedName::trunk_inner(segment.subnet),
            OwnedName::trunk_outer(segment.subnet),
        ]
    };
    let of_all = [
        OwnedName::vpc_bridge(stack.vpc),
        OwnedName::vpc_uplink(stack.vpc),
    ];
    of_all
        .into_iter()
        .chain(stack.segments.iter().flat_map(of_segment))
        .chain(stack.ports.iter().map(port_link))
        .collect()
}

fn kernel_link(observed: &HostState, name: &IfName) -> Option<v1::KernelLink> {
    let link: &Link = observed.links.get(name)?;
    let (kind, vni, local, learning) = match &link.kind {
        LinkKind::Bridge { .. } => ("bridge", None, None, false),
        LinkKind::Vxlan {
            vni,
            local,
            learning,
            ..
        } => ("vxlan", *vni, *local, *learning),
        LinkKind::Vlan { .. } => ("vlan", None, None, false),
        LinkKind::Veth { .. } => ("veth", None, None, false),
        LinkKind::Tap { .. } => match Tunnel::of(observed, name) {
            Some(tunnel) => ("tap", tunnel.vni, tunnel.local, false),
            None => ("tun", None, None, false),
        },
        LinkKind::Other(kind) => (kind.as_str(), None, None, false),
    };
    let port = link.port.as_ref();
    Some(v1::KernelLink {
        name: name.to_string(),
        kind: kind.to_owned(),
        ifindex: link.index,
        mac: link.mac.to_string(),
        mtu: link.mtu,
        up: link.up,
        master: port.map(|port| port.bridge.to_string()).unwrap_or_default(),
        vni: vni.map_or(0, model::Vni::get),
        local: local.map(|local| local.to_string()).unwrap_or_default(),
        learning: learning || port.is_some_and(|port| port.learning),
    })
}

fn kernel_vlans<'a>(
    observed: &'a HostState,
    name: &'a IfName,
) -> impl Iterator<Item = v1::KernelVlan> + 'a {
    let port = observed.links.get(name).and_then(|link| link.port.as_ref());
    port.into_iter()
        .flat_map(|port| &port.vlans)
        .map(|(vlan, membership)| {
            let access = *membership == VlanMembership::Access;
            v1::KernelVlan {
                link: name.to_string(),
                vlan: vlan.get().into(),
                pvid: access,
                untagged: access,
            }
        })
}

fn kernel_row(observed: &HostState, row: &host_plan::FdbRow) -> v1::KernelFdbRow {
    let (destination, vlan) = match row.target {
        FdbTarget::Bridge(vlan) => (String::new(), vlan.map_or(0, |vlan| vlan.get().into())),
        FdbTarget::Vtep(vtep) => (vtep.to_string(), 0),
    };
    let vni = match observed.links.get(&row.dev).map(|link| &link.kind) {
        Some(LinkKind::Vxlan { vni: Some(vni), .. }) => vni.get(),
        _ => 0,
    };
    v1::KernelFdbRow {
        link: row.dev.to_string(),
        mac: row.mac.to_string(),
        destination,
        vlan,
        vni,
        protocol: stamp(row.state == host_plan::FdbState::ExternLearned),
    }
}

/// A TAP whose other side is the datapath.
struct Tunnel {
    /// Of its domains, if they have one.
    vni: Option<model::Vni>,
    local: Option<IpAddr>,
}

impl Tunnel {
    fn of(observed: &HostState, name: &IfName) -> Option<Self> {
        let tables = observed.datapath.as_ref()?;
        let places = tables.bindings.iter();
        let vnis = places.filter(|(place, _)| place.tap == *name);
        let vnis: BTreeSet<model::Vni> = vnis.map(|(_, binding)| binding.domain.vni).collect();
        let vni = vnis.first().copied()?;
        Some(Self {
            vni: (vnis.len() == 1).then_some(vni),
            local: tables.local,
        })
    }
}

/// What the datapath was told of domains, as rows of the TAPs that they are at.
struct BehindTaps<'a> {
    tables: Option<&'a Tables>,
    places: BTreeMap<Domain, &'a Place>,
}

impl<'a> BehindTaps<'a> {
    fn of(observed: &'a HostState, names: &BTreeSet<IfName>) -> Self {
        let tables = observed.datapath.as_ref();
        let places = tables.into_iter().flat_map(|tables| &tables.bindings);
        let places = places.filter(|(place, _)| names.contains(&place.tap));
        Self {
            tables,
            places: places.map(|(place, b)| (b.domain, place)).collect(),
        }
    }

    fn fdb(&self) -> impl Iterator<Item = v1::KernelFdbRow> {
        let tables = self.tables.into_iter();
        let flood = tables.clone().flat_map(|tables| &tables.flood);
        let flood = flood.map(|(domain, vtep)| (*domain, MacAddr::ZERO, *vtep));
        let macs = tables.flat_map(|tables| &tables.macs);
        let macs = macs.map(|((domain, mac), vtep)| (*domain, *mac, *vtep));
        flood.chain(macs).filter_map(|(domain, mac, vtep)| {
            let place = self.places.get(&domain)?;
            Some(v1::KernelFdbRow {
                link: place.tap.to_string(),
                mac: mac.to_string(),
                destination: vtep.to_string(),
                vlan: place.vlan.map_or(0, |vlan| vlan.get().into()),
                vni: domain.vni.get(),
                protocol: stamp(true),
            })
        })
    }

    fn neighbours(&self) -> impl Iterator<Item = v1::KernelNeighbour> {
        let tables = self.tables.into_iter();
        let all = tables.flat_map(|tables| &tables.neighbours);
        all.filter_map(|((domain, ip), neighbour)| {
            let place = self.places.get(domain)?;
            Some(v1::KernelNeighbour {
                link: place.tap.to_string(),
                address: ip.to_string(),
                mac: neighbour.mac.to_string(),
                protocol: stamp(true),
            })
        })
    }
}

fn stamp(ours: bool) -> String {
    if ours {
        "vpc".to_owned()
    } else {
        String::new()
    }
}
