//! Serves a file over NBD until it is ended: `serve_file FILE SOCKET`. For measurements; not a product.

#[expect(dead_code, reason = "the tests use more of it")]
#[path = "../tests/it/file_device.rs"]
mod file_device;

use file_device::FileDevice;
use nbd::Listed;
use nbd_io::{Exports, Listener, Opened, Peer, Settings, serve};
use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use tokio::net::UnixListener;

struct One(Arc<FileDevice>);

impl Exports for One {
    type Device = FileDevice;

    async fn open(&self, name: &str, _peer: &Peer) -> Option<Opened<FileDevice>> {
        name.is_empty().then(|| Opened {
            name: String::new(),
            description: String::new(),
            device: Arc::clone(&self.0),
        })
    }

    async fn list(&self, _peer: &Peer) -> Vec<Listed> {
        Vec::new()
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(file), Some(socket)) = (args.next(), args.next()) else {
        return Err("usage: serve_file FILE SOCKET".into());
    };
    let settings = Settings::default();
    let device = FileDevice::open(Path::new(&file), settings.pool.clone())?;
    let listener = Listener::Unix(UnixListener::bind(socket)?);
    let exports = Arc::new(One(Arc::new(device)));
    Ok(serve(listener, exports, None, settings, std::future::pending()).await?)
}
