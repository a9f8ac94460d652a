//! The management API from inside a lab, without a process for each call.

use crate::Lab;
use api::Credential;
use api::tonic::transport::Channel;
use api::v1;
use api::v1::management_client::ManagementClient;
use nix::sched::{CloneFlags, setns};
use std::fs::File;
use std::future::Future;

/// A client of the management API.
pub type Client = ManagementClient<Channel>;

impl Lab {
    /// The pid of a host's process 1, as this machine numbers it.
    ///
    /// # Panics
    /// If the lab's state cannot be read or has no such host.
    pub fn holder(&self, host: &str) -> u32 {
        let path = format!("/run/vpc-lab/{}/lab.json", self.name());
        let text = std::fs::read_to_string(&path).expect("the lab is up");
        let state: serde_json::Value = serde_json::from_str(&text).expect("lab.json is JSON");
        let mut hosts = state["hosts"].as_array().into_iter().flatten();
        hosts
            .find(|other| other["name"] == host)
            .and_then(|host| host["holder"]["pid"].as_u64())
            .and_then(|pid| u32::try_from(pid).ok())
            .unwrap_or_else(|| panic!("{path}: no holder of {host}"))
    }

    /// Runs something on a thread that is in a host's network namespace; sockets that are made
    /// there are that host's.
    ///
    /// # Panics
    /// If `work` does.
    pub fn in_network_of<T: Send>(&self, host: &str, work: impl FnOnce() -> T + Send) -> T {
        let path = format!("/proc/{}/ns/net", self.holder(host));
        let result = std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    let namespace = File::open(&path).expect("the host lives");
                    setns(namespace, CloneFlags::CLONE_NEWNET).expect("tests run as root");
                    work()
                })
                .join()
        });
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Runs something that awaits, on a thread in a host's network namespace.
    pub fn block_on<T: Send, F: Future<Output = T>>(
        &self,
        host: &str,
        work: impl FnOnce() -> F + Send,
    ) -> T {
        self.in_network_of(host, || {
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("an event loop")
                .block_on(work())
        })
    }

    /// The administrator's credential.
    ///
    /// # Panics
    /// If it cannot be read.
    pub fn credential(&self) -> Credential {
        self.credential_at("m1", "/etc/vpc/admin.toml")
    }

    /// A credential file on a host.
    ///
    /// # Panics
    /// If it cannot be read.
    pub fn credential_at(&self, host: &str, path: &str) -> Credential {
        let through = format!("/proc/{}/root{path}", self.holder(host));
        Credential::load(through.as_ref()).expect("a credential")
    }

    /// Calls the management API as the administrator.
    ///
    /// # Panics
    /// If the server does not answer.
    pub fn with_admin<T: Send, F: Future<Output = T>>(
        &self,
        work: impl FnOnce(Client) -> F + Send,
    ) -> T {
        let credential = self.credential();
        self.block_on("m1", || async move {
            let channel = api::connect(&credential).await.expect("the server answers");
            work(api::management(channel)).await
        })
    }

    /// The newest revision: what was refused has not made one.
    pub fn revision(&self) -> u64 {
        self.with_admin(|mut client| async move {
            let info = client.get_server_info(v1::GetServerInfoRequest {}).await;
            info.expect("the server says what it is")
                .into_inner()
                .revision
        })
    }
}

/// What `blue/web` means in a request.
pub fn path(text: &str) -> v1::Ref {
    v1::Ref {
        by: Some(v1::r#ref::By::Path(text.to_owned())),
    }
}

/// All NICs there are, page by page.
///
/// # Panics
/// If the server refuses.
pub async fn all_nics(client: &mut Client, filter: v1::Filter, page: u32) -> Vec<v1::Nic> {
    let mut nics = Vec::new();
    let mut token = String::new();
    loop {
        let request = v1::ListRequest {
            page_size: page,
            page_token: token,
            filter: Some(filter.clone()),
        };
        let answer = client.list_nics(request).await;
        let answer = answer.expect("listing NICs").into_inner();
        nics.extend(answer.nics);
        token = answer.next_page_token;
        if token.is_empty() {
            return nics;
        }
    }
}
