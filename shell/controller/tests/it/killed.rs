//! A server that is killed.

use crate::cluster::{Place, account, admin, eventually};
use api::v1;
use controller::{RunOptions, run};
use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tokio::task::JoinSet;

/// Tells a child process, which is this test program again, to serve this directory.
const SERVE: &str = "CONTROLLER_TEST_SERVE";
const AT: &str = "CONTROLLER_TEST_AT";

pub(crate) fn is_child() -> bool {
    std::env::var_os(SERVE).is_some()
}

/// Not a test of its own: what the child process does.
#[test]
fn serve_until_killed() {
    let (Some(dir), Ok(at)) = (std::env::var_os(SERVE), std::env::var(AT)) else {
        return;
    };
    let options = RunOptions::new(PathBuf::from(dir), at.parse().unwrap());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime
        .block_on(run(options, std::future::pending()))
        .unwrap();
}

struct Killed(Child);

impl Killed {
    fn serve(dir: &Path, at: SocketAddr) -> Self {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["killed::serve_until_killed", "--exact", "--nocapture"])
            .env(SERVE, dir)
            .env(AT, at.to_string())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self(child)
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        // It may have ended by itself, which the test finds out in another way.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Killed in the middle of many writes, three times: everything that was answered is there, each
/// request was carried out once, and the history has no hole.
pub(crate) async fn a_killed_server_keeps_what_it_answered(place: Place) {
    place.init().await;
    let at = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let credential = place.credential(at);
    let connect = || {
        let credential = credential.clone();
        async move {
            eventually("the server serves", Duration::from_secs(30), || async {
                match api::connect(&credential).await {
                    Ok(channel) => Ok(api::management(channel)),
                    Err(error) => Err(error.to_string()),
                }
            })
            .await
        }
    };
    let mut answered = BTreeSet::from(["default".to_owned()]);
    for round in 0..3 {
        let child = Killed::serve(&place.data(), at);
        let client = connect().await;
        let mut writers = JoinSet::new();
        for writer in 0..8 {
            let mut client = client.clone();
            writers.spawn(async move {
                let mut made = Vec::new();
                for number in 0.. {
                    let name = format!("r{round}-w{writer}-{number}");
                    match client.create_account(account(&name)).await {
                        Ok(_) => made.push(name),
                        Err(_) => break,
                    }
                }
                made
            });
        }
        eventually("some were made", Duration::from_secs(30), || {
            let mut client = client.clone();
            async move {
                let info = client.get_server_info(v1::GetServerInfoRequest {}).await;
                match info {
                    Ok(info) if info.get_ref().revision > (round + 1) * 60 => Ok(()),
                    other => Err(format!("{other:?}")),
                }
            }
        })
        .await;
        drop(child);
        while let Some(made) = writers.join_next().await {
            answered.extend(made.unwrap());
        }
    }
    let _child = Killed::serve(&place.data(), at);
    connect().await;
    let mut client = admin(&credential).await;
    let mut there = BTreeSet::new();
    let mut token = String::new();
    loop {
        let request = v1::ListRequest {
            page_token: token,
            ..Default::default()
        };
        let page = client.list_accounts(request).await.unwrap().into_inner();
        there.extend(page.accounts.into_iter().map(|account| account.name));
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    let lost: Vec<_> = answered.difference(&there).collect();
    assert!(lost.is_empty(), "answered and lost: {lost:?}");
    // At most one unanswered request per writer and kill got through.
    assert!(
        there.len() <= answered.len() + 24,
        "{} of {}",
        there.len(),
        answered.len()
    );
    let info = client
        .get_server_info(v1::GetServerInfoRequest {})
        .await
        .unwrap();
    assert_eq!(info.into_inner().revision, there.len() as u64);
}
