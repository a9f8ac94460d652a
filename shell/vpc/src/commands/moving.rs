//! `vpc nic move`: asks for the move, then follows it to its end.

use super::nic::attachment;
use super::request::{Management, get};
use crate::block_on;
use crate::connect::{reference, refused};
use crate::failure::{Failure, Outcome};
use crate::options::Global;
use crate::output::{Format, remark};
use crate::views::NicView;
use api::tonic::{Code, Status};
use api::v1;
use clap::Args;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};
use v1::nic_move::Phase;

/// After the server went away.
const RETRY: Duration = Duration::from_millis(200);

/// `vpc nic move`.
#[derive(Debug, Args)]
pub(crate) struct Move {
    /// VPC/SUBNET/NAME, ACCOUNT/VPC/SUBNET/NAME or id:ID
    nic: String,
    /// Where it goes: a name or id:ID
    #[arg(long)]
    host: String,
    /// What it is plugged into there, if not the same: tap, netns:NAME, netns:NAME:DEVICE or
    /// existing:IFNAME
    #[arg(long, visible_alias = "attachment", value_name = "ATTACHMENT", value_parser = attachment)]
    attach: Option<v1::Attachment>,
    /// Return when the move has begun
    #[arg(long)]
    no_wait: bool,
    /// How long to wait at most, in seconds; the move goes on without
    #[arg(long, value_name = "SECONDS", default_value_t = 120, conflicts_with = "no_wait",
          value_parser = clap::value_parser!(u32).range(1..=3600))]
    timeout: u32,
    /// Repeating a move with the same id returns what the first one began
    #[arg(long, value_name = "ID")]
    request_id: Option<String>,
    /// Move only if it still has this version
    #[arg(
        long,
        value_name = "VERSION",
        default_value_t = 0,
        hide_default_value = true
    )]
    resource_version: u64,
}

/// When each phase began, by the server's clock, in milliseconds.
#[derive(Debug, Default)]
struct Times {
    provision: Option<u64>,
    switch: Option<u64>,
    retire: Option<u64>,
}

/// Where a move is.
enum Stand {
    UnderWay,
    Over,
    /// With the reason.
    TakenBack(String),
}

impl Move {
    pub(crate) fn run(self, global: &Global) -> Outcome {
        let doing = format!("moving nic {} to host {}", self.nic, self.host);
        let request_id = self.request_id.clone();
        let request = v1::MoveNicRequest {
            request_id: request_id.unwrap_or_else(|| format!("{:032x}", rand::random::<u128>())),
            object: Some(reference(&self.nic)),
            resource_version: self.resource_version,
            host: Some(reference(&self.host)),
            attachment: self.attach.clone(),
        };
        block_on(async {
            let mut client = global.server.management().await?;
            let nic = client
                .move_nic(request)
                .await
                .map_err(|status| refused(&doing, &status))?
                .into_inner();
            if nic.moving.is_none() {
                self.remark(
                    global,
                    &format!("nic {} is on host {} already", self.nic, nic.host_name),
                );
                return show(global, client, &nic.id).await;
            }
            if self.no_wait {
                let view = NicView::from(nic);
                return global.output.one(&view, &view.details());
            }
            let id = nic.id.clone();
            let deadline = Instant::now() + Duration::from_secs(self.timeout.into());
            match timeout_at(deadline, self.follow(global, client, nic, &doing)).await {
                Ok(client) => show(global, client?, &id).await,
                Err(_) => Err(Failure::new(format!(
                    "{doing}: not done in {} s",
                    self.timeout
                ))
                .hint("it goes on: `vpc nic show` says how far it is; move the NIC back to end it")),
            }
        })
    }

    fn remark(&self, global: &Global, text: &str) {
        if global.output == Format::Table {
            remark(text);
        }
    }

    /// Follows the NIC through the changes that the move makes.
    async fn follow(
        &self,
        global: &Global,
        mut client: Management,
        mut nic: v1::Nic,
        doing: &str,
    ) -> Outcome<Management> {
        let mut times = Times::default();
        let mut from = nic.meta.as_ref().map_or(0, |meta| meta.resource_version);
        loop {
            match self.stand(global, &nic, &mut times) {
                Stand::Over => return Ok(client),
                Stand::TakenBack(why) => {
                    return Err(Failure::new(format!("{doing}: {why}"))
                        .hint("the NIC is where it was, and worked there all the while"));
                }
                Stand::UnderWay => {}
            }
            match next(&mut client, &nic.id, &mut from).await {
                Ok(Some(changed)) => nic = changed,
                Ok(None) => {
                    return Err(Failure::new(format!(
                        "{doing}: the NIC was deleted meanwhile"
                    )));
                }
                Err(status) if is_away(&status) => {
                    tokio::time::sleep(RETRY).await;
                    if let Ok(again) = global.server.management().await {
                        client = again;
                    }
                }
                Err(status) => return Err(refused(doing, &status)),
            }
        }
    }

    fn stand(&self, global: &Global, nic: &v1::Nic, times: &mut Times) -> Stand {
        let here = &nic.host_name;
        let Some(moving) = &nic.moving else {
            let wanted = [here, &format!("id:{}", nic.host_id)].contains(&&self.host);
            if let (Some(provision), Some(switch), Some(retire)) =
                (times.provision, times.switch, times.retire)
            {
                self.remark(
                    global,
                    &format!(
                        "provisioned in {} ms, announced and taken over in {} ms more",
                        switch.saturating_sub(provision),
                        retire.saturating_sub(switch)
                    ),
                );
            }
            return match wanted {
                true => Stand::Over,
                false => Stand::TakenBack("the NIC went back to where it was".to_owned()),
            };
        };
        if !moving.taken_back.is_empty() && self.host != *here {
            return Stand::TakenBack(moving.taken_back.clone());
        }
        let (since, other) = (moving.since_unix_ms, &moving.other_host_name);
        let (place, text) = match moving.phase() {
            Phase::Provision => (&mut times.provision, format!("host {other} makes the port")),
            Phase::Switch => (&mut times.switch, format!("host {here} announces the NIC")),
            Phase::Retire => (&mut times.retire, format!("host {other} removes its port")),
            Phase::Unspecified => return Stand::UnderWay,
        };
        if place.replace(since).is_none() {
            self.remark(global, &text);
        }
        Stand::UnderWay
    }
}

/// The NIC's next change; none if it was deleted.
async fn next(
    client: &mut Management,
    nic: &str,
    from: &mut u64,
) -> Result<Option<v1::Nic>, Status> {
    use v1::change::Object;
    use v1::watch_event::Event;
    let request = v1::WatchRequest {
        from_revision: *from,
        kinds: vec![v1::Kind::Nic.into()],
        filter: None,
    };
    let mut stream = client.watch(request).await?.into_inner();
    while let Some(event) = stream.message().await? {
        match event.event {
            Some(Event::Change(change)) => {
                *from = (*from).max(change.revision);
                match change.object {
                    Some(Object::Nic(changed)) if changed.id == nic => {
                        return Ok((!change.deleted).then_some(changed));
                    }
                    _ => {}
                }
            }
            Some(Event::Progress(progress)) => *from = (*from).max(progress.revision),
            Some(Event::HostLiveness(_)) | None => {}
        }
    }
    Err(Status::unavailable("the server ended the watch"))
}

fn is_away(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::Unavailable | Code::Unknown | Code::Cancelled
    )
}

async fn show(global: &Global, mut client: Management, id: &str) -> Outcome {
    let found = client
        .get_nic(get(&format!("id:{id}")))
        .await
        .map_err(|status| refused("showing the nic", &status))?;
    let view = NicView::from(found.into_inner());
    global.output.one(&view, &view.details())
}
