//! A new cluster.

use crate::files::{DataDir, DataDirError};
use crate::owner::now;
use crate::request::DEFAULT_ACCOUNT;
use api::pki::{Authority, Lifetimes};
use api::{Credential, chain_pem};
use fleet_plan::{Command, Context, CreateAccount};
use model::{Asn, Cluster, Labels, Mtu, Name, Secret};
use std::path::PathBuf;
use store::{BadLocation, Location, Store, StoreError};

/// What a new cluster is to be.
#[derive(Debug, Clone)]
pub struct InitOptions {
    /// Keys, and the store if it is SQLite. Made if it is not there; must be empty.
    pub data_dir: PathBuf,
    /// `postgres://USER:PASSWORD@HOST/DATABASE`; none for SQLite in the data directory.
    pub database: Option<String>,
    /// `host:port` by which administrators reach the server: written into the credential.
    pub servers: Vec<String>,
    /// AS of the fabric.
    pub asn: Asn,
    /// What the underlay carries between any two hosts.
    pub underlay_mtu: Mtu,
    /// How long a freed address, MAC, VNI or VLAN stays unused, in milliseconds.
    pub hold_millis: u64,
    /// How long the administrator's certificate is good.
    pub lifetimes: Lifetimes,
}

/// A new cluster.
#[derive(Debug, Clone)]
pub struct Initialised {
    /// Random; names the cluster in certificates.
    pub cluster: String,
    /// The administrator's credential.
    pub admin_credential: PathBuf,
    /// SHA-256 of the CA's certificate.
    pub ca_fingerprint: String,
}

/// A cluster that was not made.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// The directory.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// Where the database is.
    #[error(transparent)]
    Location(#[from] BadLocation),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A certificate.
    #[error(transparent)]
    Issue(#[from] api::pki::IssueError),
    /// The credential file.
    #[error(transparent)]
    Credential(#[from] api::CredentialError),
    /// The first account.
    #[error("making account {DEFAULT_ACCOUNT}")]
    Account(#[source] fleet_plan::Refusal),
}

impl InitOptions {
    /// A cluster with an underlay of 1500 bytes, in this directory.
    pub fn new(data_dir: impl Into<PathBuf>, servers: Vec<String>) -> Self {
        Self {
            data_dir: data_dir.into(),
            database: None,
            servers,
            asn: Asn::new(65000).expect("it is not 0"),
            underlay_mtu: Mtu::new(1500).expect("1500 is in range"),
            hold_millis: 60_000,
            lifetimes: Lifetimes::default(),
        }
    }
}

/// Makes a new cluster: CA, secrets, store, account `default`, and the credential of an
/// administrator. There is no password.
pub async fn init(options: InitOptions) -> Result<Initialised, InitError> {
    let dir = DataDir::create(&options.data_dir)?;
    let id = format!("{:016x}", rand::random::<u64>());
    let authority = Authority::create(&id)?;
    let bgp = Secret(format!("{:032x}", rand::random::<u128>()));
    dir.write_keys(&authority, &bgp)?;

    let location = match &options.database {
        None => Location::Sqlite(dir.database_path()),
        Some(database) => database.parse()?,
    };
    let cluster = Cluster {
        id: id.clone(),
        asn: options.asn,
        underlay_mtu: options.underlay_mtu,
        hold_millis: options.hold_millis,
    };
    let store = Store::init(&location, &cluster).await?;
    let made = default_account(&store).await;
    store.close().await;
    made?;

    let (issued, key) = authority.issue_admin("root", options.lifetimes.admin)?;
    let credential = Credential::new(
        options.servers,
        authority.certificate_pem().to_owned(),
        chain_pem(&issued.chain),
        key,
    );
    credential.save(&dir.admin_path())?;
    dir.write_cluster(&id, options.database)?;
    Ok(Initialised {
        cluster: id,
        admin_credential: dir.admin_path(),
        ca_fingerprint: authority.fingerprint().to_string(),
    })
}

async fn default_account(store: &Store) -> Result<(), InitError> {
    let intent = store.load().await?;
    let command = Command::CreateAccount(CreateAccount {
        name: Name::new(DEFAULT_ACCOUNT).expect("it is a name"),
        labels: Labels::new(),
    });
    let context = Context {
        now: now(),
        seed: rand::random(),
        request: None,
        down: Default::default(),
        disks: Default::default(),
        replicas: Default::default(),
        actor: "init".to_owned(),
    };
    let decision = intent
        .decide(command, &context)
        .map_err(InitError::Account)?;
    store.commit(&decision).await?;
    Ok(())
}
