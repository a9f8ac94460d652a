//! A cluster with something in it, and the commands that put it there.

use fleet_plan::{
    AttachPublicIp, AttachmentSpec, Command, Context, CreateAccount, CreateExternal, CreateHost,
    CreateNic, CreatePublicIp, CreateRouter, CreateSubnet, CreateVpc, Decision, Expect, Intent,
    Outside, RequestId,
};
use model::{
    Asn, Cluster, Encoding, HostId, Labels, Mtu, Name, Object, ObjectId, PublicTarget, Role,
    SourcePolicy, SpeakerKind, SubnetId, SubnetOptions, UnixMillis, UserData,
};
use std::collections::BTreeSet;
use store::{Store, StoreError};

pub(crate) const NOW: UnixMillis = UnixMillis(1_000_000);

pub(crate) fn settings() -> Cluster {
    Cluster {
        id: "lab".to_owned(),
        asn: Asn::new(64512).unwrap(),
        underlay_mtu: Mtu::new(1500).unwrap(),
        hold_millis: 60_000,
    }
}

pub(crate) fn name(text: &str) -> Name {
    text.parse().unwrap()
}

pub(crate) fn context(now: UnixMillis, seed: u64) -> Context {
    Context {
        now,
        seed,
        request: None,
        down: BTreeSet::new(),
        disks: Default::default(),
        replicas: Default::default(),
        actor: "admin".to_owned(),
    }
}

pub(crate) fn account(text: &str) -> Command {
    Command::CreateAccount(CreateAccount {
        name: name(text),
        labels: Labels::new(),
    })
}

pub(crate) fn host(text: &str, number: u8) -> Command {
    Command::CreateHost(CreateHost {
        name: name(text),
        roles: BTreeSet::from([Role::Compute, Role::Route]),
        underlay: [192, 0, 2, number].into(),
        zone: None,
        speaker: SpeakerKind::Builtin,
        labels: Labels::new(),
    })
}

pub(crate) fn nic(subnet: SubnetId, host: HostId, text: &str) -> Command {
    Command::CreateNic(CreateNic {
        subnet,
        name: name(text),
        host,
        attachment: AttachmentSpec::Tap,
        mac: None,
        addresses: vec![],
        user_data: UserData::new(format!("#!/bin/sh\n# {text}\n").into_bytes()).ok(),
        labels: Labels::new(),
    })
}

pub(crate) fn delete(object: ObjectId) -> Command {
    Command::Delete {
        object,
        expect: Expect::Any,
    }
}

/// A server: the store and the intent it keeps in memory.
pub(crate) struct Server<'a> {
    pub(crate) store: &'a Store,
    pub(crate) intent: Intent,
    pub(crate) now: UnixMillis,
    seed: u64,
}

impl<'a> Server<'a> {
    pub(crate) async fn start(store: &'a Store, seed: u64) -> Self {
        Self {
            store,
            intent: store.load().await.unwrap(),
            now: NOW,
            seed,
        }
    }

    /// Decides, commits and applies, catching up as often as another server was faster.
    pub(crate) async fn run(&mut self, command: Command) -> Result<Object, StoreError> {
        self.run_as(command, None).await
    }

    pub(crate) async fn run_as(
        &mut self,
        command: Command,
        request: Option<&str>,
    ) -> Result<Object, StoreError> {
        self.seed += 1;
        let context = Context {
            request: request.map(|id| RequestId::new(id).unwrap()),
            ..context(self.now, self.seed)
        };
        loop {
            let decision = self.intent.decide(command.clone(), &context).unwrap();
            match self.store.commit(&decision).await {
                Ok(()) => {
                    self.intent.apply(&decision);
                    return Ok(decision.object);
                }
                Err(StoreError::Conflict { .. }) => {
                    self.store.catch_up(&mut self.intent).await.unwrap();
                }
                Err(error) => return Err(error),
            }
        }
    }

    pub(crate) fn decide(&mut self, command: Command) -> Decision {
        self.seed += 1;
        self.intent
            .decide(command, &context(self.now, self.seed))
            .unwrap()
    }

    /// An account, a VPC, a subnet, and a host to put NICs on.
    pub(crate) async fn furnish(&mut self) -> (SubnetId, HostId) {
        let Object::Account(owner) = self.run(account("default")).await.unwrap() else {
            panic!("no account")
        };
        let vpc = Command::CreateVpc(CreateVpc {
            account: owner.id,
            name: name("blue"),
            cidrs: vec![
                "10.4.0.0/16".parse().unwrap(),
                "fd00:4::/48".parse().unwrap(),
            ],
            vni: None,
            encoding: Encoding::VlanBased,
            routing: Default::default(),
            unknown_neighbours: Default::default(),
            labels: Labels::new(),
        });
        let Object::Vpc(vpc) = self.run(vpc).await.unwrap() else {
            panic!("no VPC")
        };
        let subnet = Command::CreateSubnet(CreateSubnet {
            vpc: vpc.id,
            name: name("web"),
            cidrs: vec![
                "10.4.0.0/17".parse().unwrap(),
                "fd00:4::/64".parse().unwrap(),
            ],
            vlan: None,
            vni: None,
            mtu: None,
            options: SubnetOptions {
                dns: vec!["10.4.0.2".parse().unwrap()],
                custom: [(66, vec![1, 2, 3])].into(),
                ..SubnetOptions::default()
            },
            labels: Labels::new(),
        });
        let Object::Subnet(subnet) = self.run(subnet).await.unwrap() else {
            panic!("no subnet")
        };
        let Object::Host(host) = self.run(host("c1", 11)).await.unwrap() else {
            panic!("no host")
        };
        (subnet.id, host.id)
    }

    /// A network outside, a router with a way there, and a public address that is the router's own.
    pub(crate) async fn furnish_routing(&mut self, subnet: SubnetId) {
        let account = self.intent.account_named(&name("default")).unwrap().id;
        let vpc = self.intent.subnet(subnet).unwrap().vpc;
        let external = Command::CreateExternal(CreateExternal {
            name: name("ext"),
            bridge: "br-ext".parse().unwrap(),
            cidrs: vec!["198.51.100.0/24".parse().unwrap()],
            gateways: vec!["198.51.100.1".parse().unwrap()],
            pools: vec!["198.51.100.10-198.51.100.20".parse().unwrap()],
            dhcp: false,
            mtu: None,
            labels: Labels::new(),
        });
        self.run(external).await.unwrap();
        let router = Command::CreateRouter(CreateRouter {
            vpc,
            name: name("gw"),
            subnets: vec![subnet],
            uplink: Some(Outside::Only),
            source: SourcePolicy::Masquerade,
            source_v6: false,
            host: None,
            standby: None,
            labels: Labels::new(),
        });
        let Object::Router(router) = self.run(router).await.unwrap() else {
            panic!("no router")
        };
        let public = Command::CreatePublicIp(CreatePublicIp {
            account,
            name: name("www"),
            network: Outside::Only,
            address: None,
            v6: false,
            labels: Labels::new(),
        });
        let Object::PublicIp(public) = self.run(public).await.unwrap() else {
            panic!("no public address")
        };
        let attach = Command::AttachPublicIp(AttachPublicIp {
            public: public.id,
            expect: Expect::Any,
            target: Some(PublicTarget::Router(router.id)),
        });
        self.run(attach).await.unwrap();
    }
}
