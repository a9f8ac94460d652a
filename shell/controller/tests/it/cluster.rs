//! A cluster on loopback: a server, an administrator, and agents that are not.

use api::tonic::Streaming;
use api::tonic::transport::Channel;
use api::v1::management_client::ManagementClient;
use api::v1::r#ref::By;
use api::{Credential, Enrollment, v1};
use controller::{InitOptions, RunOptions, Server, init};
use model::{HostChange, HostConfig};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;

/// Where a case may make its store.
pub(crate) struct Place {
    pub(crate) dir: TempDir,
    pub(crate) database: Option<String>,
}

/// A server that was initialised for the case, and what it was started with.
pub(crate) struct Cluster {
    pub(crate) place: Place,
    pub(crate) options: RunOptions,
    pub(crate) server: Server,
    pub(crate) admin: ManagementClient<Channel>,
}

/// A host that does what it is told, by us.
pub(crate) struct Agent {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) credential: Credential,
}

/// An agent's stream.
pub(crate) struct Stream {
    pub(crate) reports: mpsc::Sender<v1::HostReport>,
    pub(crate) updates: Streaming<v1::HostUpdate>,
    applied: u64,
    /// Says that it can be told of what changed; it takes whatever comes.
    pub(crate) takes_changes: bool,
    held: Option<HostConfig>,
}

impl Place {
    pub(crate) fn sqlite() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            database: None,
        }
    }

    pub(crate) fn postgres(database: String) -> Self {
        Self {
            database: Some(database),
            ..Self::sqlite()
        }
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    pub(crate) async fn init(&self) -> controller::Initialised {
        init(InitOptions {
            database: self.database.clone(),
            hold_millis: 1,
            ..InitOptions::new(self.data(), vec![])
        })
        .await
        .unwrap()
    }

    pub(crate) fn options(&self) -> RunOptions {
        RunOptions::new(self.data(), "127.0.0.1:0".parse().unwrap())
    }

    pub(crate) fn credential(&self, address: SocketAddr) -> Credential {
        let mut credential = Credential::load(&self.data().join("admin.toml")).unwrap();
        credential.servers = vec![address.to_string()];
        credential
    }
}

impl Cluster {
    pub(crate) async fn start(place: Place) -> Self {
        let options = place.options();
        Self::start_with(place, options).await
    }

    pub(crate) async fn start_with(place: Place, options: RunOptions) -> Self {
        place.init().await;
        let server = Server::start(options.clone()).await.unwrap();
        let admin = admin(&place.credential(server.address())).await;
        Self {
            place,
            options,
            server,
            admin,
        }
    }

    pub(crate) fn credential(&self) -> Credential {
        self.place.credential(self.server.address())
    }

    /// Stops the server and starts it on the same port.
    pub(crate) async fn restart(self) -> Self {
        let options = RunOptions {
            listen: self.server.address(),
            ..self.options
        };
        self.server.stop().await.unwrap();
        let server = Server::start(options.clone()).await.unwrap();
        let admin = admin(&self.place.credential(server.address())).await;
        Self {
            place: self.place,
            options,
            server,
            admin,
        }
    }

    pub(crate) async fn token(&self) -> api::JoinToken {
        self.token_with(v1::CreateJoinTokenRequest::default())
            .await
            .1
    }

    pub(crate) async fn token_with(
        &self,
        request: v1::CreateJoinTokenRequest,
    ) -> (v1::JoinToken, api::JoinToken) {
        let made = self.admin.clone().create_join_token(request).await;
        let made = made.unwrap().into_inner();
        (made.token.unwrap(), made.text.parse().unwrap())
    }

    pub(crate) fn enrollment(&self, token: api::JoinToken, name: &str, number: u8) -> Enrollment {
        Enrollment {
            servers: vec![self.server.address().to_string()],
            token,
            host_name: name.parse().unwrap(),
            underlay: [192, 0, 2, number].into(),
            roles: BTreeSet::new(),
            zone: None,
            speaker: model::SpeakerKind::Builtin,
            agent_version: "test".to_owned(),
            kernel_version: "6.1".to_owned(),
        }
    }

    pub(crate) async fn join(&self, name: &str, number: u8) -> Agent {
        let enrollment = self.enrollment(self.token().await, name, number);
        let enrolled = api::enroll(&enrollment).await.unwrap();
        Agent {
            id: enrolled.host.to_string(),
            name: name.to_owned(),
            credential: enrolled.credential,
        }
    }

    /// VPC blue with subnet web.
    pub(crate) async fn furnish(&self) {
        let mut admin = self.admin.clone();
        admin.create_vpc(vpc("blue", "10.4.0.0/16")).await.unwrap();
        admin
            .create_subnet(subnet("blue", "web", "10.4.0.0/20"))
            .await
            .unwrap();
    }

    pub(crate) async fn route_host(&self, name: &str, number: u8) -> Agent {
        let agent = self.join(name, number).await;
        let request = v1::UpdateHostRequest {
            object: path(name),
            roles: Some(v1::update_host_request::Roles {
                roles: vec![v1::Role::Route.into()],
            }),
            ..Default::default()
        };
        self.admin.clone().update_host(request).await.unwrap();
        agent
    }

    /// Network ext, router blue/gw in subnet blue/web with a way there, public address www.
    pub(crate) async fn furnish_routing(&self) -> v1::Router {
        let mut admin = self.admin.clone();
        let network = v1::CreateExternalNetworkRequest {
            name: "ext".to_owned(),
            bridge: "br-ext".to_owned(),
            cidrs: vec!["198.51.100.0/24".to_owned()],
            gateways: vec!["198.51.100.1".to_owned()],
            pools: vec!["198.51.100.10-198.51.100.20".to_owned()],
            ..Default::default()
        };
        admin.create_external_network(network).await.unwrap();
        let router = v1::CreateRouterRequest {
            vpc: path("blue"),
            name: "gw".to_owned(),
            subnets: path("blue/web").into_iter().collect(),
            uplink: Some(v1::Outside::default()),
            source: v1::SourcePolicy::Masquerade.into(),
            ..Default::default()
        };
        let router = admin.create_router(router).await.unwrap().into_inner();
        let public = v1::CreatePublicIpRequest {
            name: "www".to_owned(),
            ..Default::default()
        };
        admin.create_public_ip(public).await.unwrap();
        router
    }

    pub(crate) async fn nic(&self, name: &str, host: &str) -> v1::Nic {
        let made = self
            .admin
            .clone()
            .create_nic(nic("blue/web", name, host))
            .await;
        made.unwrap().into_inner()
    }

    pub(crate) async fn get_nic(&self, name: &str) -> v1::Nic {
        let got = self
            .admin
            .clone()
            .get_nic(get(&format!("blue/web/{name}")))
            .await;
        got.unwrap().into_inner()
    }

    pub(crate) async fn get_host(&self, name: &str) -> v1::Host {
        self.admin
            .clone()
            .get_host(get(name))
            .await
            .unwrap()
            .into_inner()
    }
}

impl Agent {
    pub(crate) async fn connect(&self) -> Stream {
        self.try_connect().await.unwrap()
    }

    pub(crate) async fn try_connect(&self) -> Result<Stream, api::tonic::Status> {
        let mut client = api::connect_host(&self.credential)
            .await
            .map_err(|error| api::tonic::Status::unknown(error.to_string()))?;
        let (reports, taken) = mpsc::channel(16);
        let updates = client.sync(ReceiverStream::new(taken)).await?.into_inner();
        Ok(Stream {
            reports,
            updates,
            applied: 0,
            takes_changes: true,
            held: None,
        })
    }

    /// Takes every configuration and reports it as done, until the stream ends.
    pub(crate) async fn obey(&self) -> tokio::task::JoinHandle<()> {
        let mut stream = self.connect().await;
        stream.report(0, 0).await;
        tokio::spawn(async move {
            while let Ok(Some(update)) = stream.updates.message().await {
                let generation = stream.take(update).generation;
                stream.report(generation, generation).await;
            }
        })
    }
}

impl Stream {
    pub(crate) async fn report(&mut self, received: u64, applied: u64) {
        self.applied = applied;
        let report = v1::HostReport {
            agent_version: "test".to_owned(),
            received_generation: received,
            applied_generation: applied,
            takes_changes: self.takes_changes,
            ..v1::HostReport::default()
        };
        // The server may have ended the stream.
        drop(self.reports.send(report).await);
    }

    pub(crate) async fn config(&mut self) -> v1::HostConfig {
        let update = self.updates.message().await.unwrap();
        self.take(update.expect("the stream goes on"))
    }

    /// The configuration that an update comes to.
    pub(crate) fn take(&mut self, update: v1::HostUpdate) -> v1::HostConfig {
        let held = match (update.config, update.change) {
            (Some(config), None) => HostConfig::try_from(config).unwrap(),
            (None, Some(change)) => {
                let change = HostChange::try_from(change).unwrap();
                change.apply(self.held.as_ref()).unwrap()
            }
            other => panic!("neither a configuration nor a change: {other:?}"),
        };
        v1::HostConfig::from(&*self.held.insert(held))
    }

    /// Configurations until one has this many NICs.
    pub(crate) async fn until_nics(&mut self, count: usize) -> v1::HostConfig {
        loop {
            let config = self.config().await;
            self.report(config.generation, self.applied).await;
            if nics(&config) == count {
                return config;
            }
        }
    }
}

pub(crate) fn nics(config: &v1::HostConfig) -> usize {
    config.stacks.iter().map(|stack| stack.ports.len()).sum()
}

pub(crate) async fn admin(credential: &Credential) -> ManagementClient<Channel> {
    api::management(api::connect(credential).await.unwrap())
}

pub(crate) fn path(path: &str) -> Option<v1::Ref> {
    let by = Some(By::Path(path.to_owned()));
    Some(v1::Ref { by })
}

pub(crate) fn by_id(id: &str) -> Option<v1::Ref> {
    let by = Some(By::Id(id.to_owned()));
    Some(v1::Ref { by })
}

pub(crate) fn get(object: &str) -> v1::GetRequest {
    v1::GetRequest {
        object: path(object),
    }
}

pub(crate) fn delete(object: &str) -> v1::DeleteRequest {
    v1::DeleteRequest {
        object: path(object),
        resource_version: 0,
    }
}

pub(crate) fn account(name: &str) -> v1::CreateAccountRequest {
    v1::CreateAccountRequest {
        name: name.to_owned(),
        ..Default::default()
    }
}

pub(crate) fn vpc(name: &str, cidr: &str) -> v1::CreateVpcRequest {
    v1::CreateVpcRequest {
        name: name.to_owned(),
        cidrs: vec![cidr.to_owned()],
        ..Default::default()
    }
}

pub(crate) fn subnet(vpc: &str, name: &str, cidr: &str) -> v1::CreateSubnetRequest {
    v1::CreateSubnetRequest {
        vpc: path(vpc),
        name: name.to_owned(),
        cidrs: vec![cidr.to_owned()],
        ..Default::default()
    }
}

pub(crate) fn nic(subnet: &str, name: &str, host: &str) -> v1::CreateNicRequest {
    v1::CreateNicRequest {
        subnet: path(subnet),
        name: name.to_owned(),
        host: path(host),
        attachment: Some(tap()),
        ..Default::default()
    }
}

pub(crate) fn tap() -> v1::Attachment {
    (&model::Attachment::Tap).into()
}

/// Asks again and again until the answer is there; never waits for a time.
pub(crate) async fn eventually<T, F>(what: &str, limit: Duration, mut probe: impl FnMut() -> F) -> T
where
    F: Future<Output = Result<T, String>>,
{
    let start = Instant::now();
    let mut pulse = tokio::time::interval(Duration::from_millis(20));
    loop {
        pulse.tick().await;
        match probe().await {
            Ok(value) => return value,
            Err(seen) => assert!(
                start.elapsed() < limit,
                "{what}: not within {limit:?}; last seen: {seen}"
            ),
        }
    }
}

/// The refusal of a call that must not succeed: its code, and a part of its text.
#[track_caller]
pub(crate) fn refused<T: std::fmt::Debug>(
    outcome: Result<T, api::tonic::Status>,
    code: api::tonic::Code,
    text: &str,
) {
    let status = outcome.expect_err("it was not refused");
    assert!(
        status.code() == code && status.message().contains(text),
        "expected {code:?} with {text:?}, got {:?}: {}",
        status.code(),
        status.message()
    );
}
