//! What requests have in common: labels, ids, versions, pages, waiting.

use crate::connect::{reference, refused};
use crate::failure::{Failure, Outcome};
use api::tonic::transport::Channel;
use api::tonic::{Code, Status};
use api::v1;
use api::v1::management_client::ManagementClient;
use clap::Args;
use std::collections::BTreeMap;
use std::time::Duration;

/// The client of all commands about the cluster.
pub(crate) type Management = ManagementClient<Channel>;

/// A page of a list; the server's largest.
pub(crate) const PAGE: u32 = 1000;

/// Labels and the id of the request.
#[derive(Debug, Args)]
pub(crate) struct Creation {
    /// A label, as in tier=front; may be given several times
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label)]
    labels: Vec<(String, String)>,
    /// Repeating a create with the same id returns what the first one made
    #[arg(long, value_name = "ID")]
    request_id: Option<String>,
}

/// Guards a delete.
#[derive(Debug, Args)]
pub(crate) struct Deletion {
    /// Delete only if it still has this version
    #[arg(
        long,
        value_name = "VERSION",
        default_value_t = 0,
        hide_default_value = true
    )]
    pub(super) resource_version: u64,
}

/// Narrows a list.
#[derive(Debug, Args)]
pub(crate) struct Selection {
    /// Only those with this label; may be given several times
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label)]
    labels: Vec<(String, String)>,
    /// Only those whose name begins like this
    #[arg(long, value_name = "TEXT")]
    prefix: Option<String>,
}

fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write KEY=VALUE".to_owned()),
    }
}

impl Creation {
    /// As the API takes them.
    pub(crate) fn labels(&self) -> std::collections::HashMap<String, String> {
        self.labels.iter().cloned().collect()
    }

    /// The caller's, or one of our own, so that a retry inside the client is recognised.
    pub(crate) fn request_id(&self) -> String {
        self.request_id
            .clone()
            .unwrap_or_else(|| format!("{:032x}", rand::random::<u128>()))
    }
}

impl Deletion {
    /// The request for this object.
    pub(crate) fn of(&self, object: &str) -> v1::DeleteRequest {
        v1::DeleteRequest {
            object: Some(reference(object)),
            resource_version: self.resource_version,
        }
    }
}

impl Selection {
    /// As the API takes it.
    pub(crate) fn filter(&self) -> v1::Filter {
        v1::Filter {
            labels: self.labels.iter().cloned().collect(),
            name_prefix: self.prefix.clone().unwrap_or_default(),
            ..v1::Filter::default()
        }
    }
}

/// The request for one object.
pub(crate) fn get(object: &str) -> v1::GetRequest {
    v1::GetRequest {
        object: Some(reference(object)),
    }
}

/// `blue/web` into what it is in and its own name.
pub(crate) fn parent_and_name<'a>(path: &'a str, example: &str) -> Outcome<(&'a str, &'a str)> {
    path.rsplit_once('/')
        .filter(|(parent, name)| !parent.is_empty() && !name.is_empty())
        .ok_or_else(|| {
            Failure::new(format!("{path:?}: this path has too few parts"))
                .hint(format!("write it as in {example}"))
        })
}

/// All pages of a list.
pub(crate) async fn pages<T, A, F>(doing: &str, filter: v1::Filter, mut ask: A) -> Outcome<Vec<T>>
where
    A: FnMut(v1::ListRequest) -> F,
    F: Future<Output = Result<(Vec<T>, String), Status>>,
{
    let mut all = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = v1::ListRequest {
            page_size: PAGE,
            page_token,
            filter: Some(filter.clone()),
        };
        let (items, next) = ask(request)
            .await
            .map_err(|status| refused(doing, &status))?;
        all.extend(items);
        if next.is_empty() {
            return Ok(all);
        }
        page_token = next;
    }
}

/// What to wait for.
pub(crate) enum Until<'a> {
    /// Hosts have what is now wanted of this object.
    Object(v1::Kind, &'a str),
    /// Hosts have what this change wanted of them.
    Revision(u64),
}

/// Blocks until the hosts concerned report the change done.
pub(crate) async fn wait_applied(
    client: &mut Management,
    what: &str,
    until: Until<'_>,
    deadline: Option<Duration>,
) -> Outcome {
    let Some(deadline) = deadline else {
        return Ok(());
    };
    let (kind, object, revision) = match until {
        Until::Object(kind, id) => (kind, Some(reference(&format!("id:{id}"))), 0),
        Until::Revision(revision) => (v1::Kind::Unspecified, None, revision),
    };
    let doing = format!("waiting for the hosts of {what}");
    let request = v1::WaitAppliedRequest {
        kind: kind.into(),
        object,
        revision,
        timeout_ms: u32::try_from(deadline.as_millis()).unwrap_or(u32::MAX),
    };
    let mut last: BTreeMap<String, v1::HostProgress> = BTreeMap::new();
    let mut stream = client
        .wait_applied(request)
        .await
        .map_err(|status| refused(&doing, &status))?
        .into_inner();
    loop {
        match stream.message().await {
            Ok(Some(progress)) => {
                last = progress
                    .hosts
                    .into_iter()
                    .map(|host| (host.host_name.clone(), host))
                    .collect();
                if progress.done {
                    return Ok(());
                }
            }
            Ok(None) => {
                return Err(
                    Failure::new(format!("{doing}: the server ended the wait early"))
                        .hint("the change is accepted; `vpc host list` shows who is behind"),
                );
            }
            Err(status) if status.code() == Code::DeadlineExceeded => {
                let wrong: Vec<String> = last.values().flat_map(behind).collect();
                let failure = refused(&doing, &status);
                return Err(match wrong.is_empty() {
                    true => failure,
                    false => Failure::new(format!("{}; {}", failure.message(), wrong.join("; ")))
                        .hint("the change is accepted and hosts go on with it"),
                });
            }
            Err(status) => return Err(refused(&doing, &status)),
        }
    }
}

fn behind(host: &v1::HostProgress) -> Vec<String> {
    host.conditions
        .iter()
        .map(|condition| format!("{}: {}", host.host_name, condition.message))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_split_at_their_end() {
        let split = |path| parent_and_name(path, "blue/web").ok();
        assert_eq!(split("blue/web"), Some(("blue", "web")));
        assert_eq!(split("acme/blue/web"), Some(("acme/blue", "web")));
        for bad in ["web", "/web", "blue/", ""] {
            assert_eq!(split(bad), None, "{bad}");
        }
    }
}
