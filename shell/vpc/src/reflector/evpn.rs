//! What our own reflector knows, for `vpc evpn --reflector`.

use super::Shared;
use agent::{EvpnApi, EvpnSource};
use model::Reflector;
use speaker::SpeakerHandle;
use std::sync::Arc;
use tokio::net::UnixListener;
use tokio::sync::watch;
use tracing::warn;

/// Where the server answers for its reflector, in its run directory.
pub(super) const SOCKET_FILE: &str = "reflector-evpn.sock";
/// The same, unless the server's settings say otherwise.
pub(crate) const SOCKET: &str = "/run/vpc/reflector-evpn.sock";

/// Answers until it is aborted.
pub(super) async fn tell(listener: UnixListener, handle: SpeakerHandle, shared: Arc<Shared>) {
    let source = |shared: &Shared| EvpnSource {
        handle: Some(handle.clone()),
        frr: None,
        peers: clients(shared),
        asn: shared.asn.map_or(0, |asn| asn.get()),
        router_id: None,
    };
    let (now, watched) = watch::channel(source(&shared));
    let mut hosts = shared.hosts.clone();
    let follow = async {
        while hosts.changed().await.is_ok() {
            now.send_replace(source(&shared));
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        served = EvpnApi::new(watched).serve(listener) => {
            if let Err(error) = served {
                warn!(%error, "Answering for the reflector ended");
            }
        }
        () = follow => {}
    }
}

fn clients(shared: &Shared) -> Vec<Reflector> {
    let hosts = shared.hosts.borrow();
    let client = |address: &std::net::IpAddr| Reflector {
        address: *address,
        port: 179,
        password: shared.secret.clone(),
    };
    hosts.iter().map(client).collect()
}
