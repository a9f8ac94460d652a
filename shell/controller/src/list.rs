//! Lists and filters: what a client asks for, and the tokens between pages.

use crate::request::{Reference, labels};
use crate::state::State;
use api::tonic::Status;
use api::{BadRequest, Field, bounded, v1};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use fleet_plan::{Filter, Intent, Refusal};
use model::{Kind, Object, ObjectId};

const DEFAULT_PAGE: usize = 500;
const LARGEST_PAGE: usize = 1000;

/// A checked filter whose references are still to be looked up.
#[derive(Debug, Clone, Default)]
pub(crate) struct Query {
    parent: Option<Reference>,
    host: Option<Reference>,
    labels: model::Labels,
    name_prefix: String,
}

/// A filter with everything looked up.
pub(crate) struct Matcher {
    filter: Filter,
    name_prefix: String,
}

/// A checked request for a page.
pub(crate) struct PageQuery {
    kind: Kind,
    query: Query,
    after: Option<ObjectId>,
    size: usize,
    fingerprint: u64,
}

/// Views of a page's objects.
pub(crate) struct PageView {
    pub(crate) items: Vec<v1::change::Object>,
    pub(crate) next_page_token: String,
    pub(crate) revision: u64,
}

impl Query {
    pub(crate) fn new(wire: Option<v1::Filter>) -> Result<Self, BadRequest> {
        let Some(wire) = wire else {
            return Ok(Self::default());
        };
        let field = Field::root("filter");
        let parent = match wire.parent {
            None => None,
            parent => {
                let kind = field
                    .of("parent_kind")
                    .enumeration::<v1::Kind, Kind>(wire.parent_kind)?;
                if !matches!(kind, Kind::Account | Kind::Vpc | Kind::Subnet) {
                    return Err(field
                        .of("parent_kind")
                        .bad("objects are inside accounts, VPCs and subnets; for NICs and routers on a host set `host`"));
                }
                Some(Reference::new(field.of("parent"), kind, parent)?)
            }
        };
        let host = match wire.host {
            None => None,
            host => Some(Reference::new(field.of("host"), Kind::Host, host)?),
        };
        Ok(Self {
            parent,
            host,
            labels: labels(field.of("labels"), wire.labels)?,
            name_prefix: bounded(field.of("name_prefix"), &wire.name_prefix, 63)?,
        })
    }

    pub(crate) fn resolve(&self, intent: &Intent) -> Result<Matcher, Refusal> {
        let mut filter = Filter {
            labels: self.labels.clone(),
            ..Filter::default()
        };
        if let Some(parent) = &self.parent {
            match parent.resolve(intent)? {
                ObjectId::Account(id) => filter.account = Some(id),
                ObjectId::Vpc(id) => filter.vpc = Some(id),
                ObjectId::Subnet(id) => filter.subnet = Some(id),
                _ => {}
            }
        }
        if let Some(host) = &self.host {
            filter.host = Some(host.host(intent)?);
        }
        Ok(Matcher {
            filter,
            name_prefix: self.name_prefix.clone(),
        })
    }
}

impl Matcher {
    pub(crate) fn matches(&self, intent: &Intent, object: &Object) -> bool {
        self.named(object) && intent.matches(&self.filter, object)
    }

    /// As [`Matcher::matches`]; but a deleted object whose parents are gone as well, so that
    /// nobody knows any more whose it was, gets through: better one delete too many.
    pub(crate) fn matches_deleted(&self, intent: &Intent, object: &Object) -> bool {
        let orphan = match object {
            Object::Account(_)
            | Object::Host(_)
            | Object::Vpc(_)
            | Object::External(_)
            | Object::PublicIp(_)
            | Object::Volume(_) => false,
            Object::Router(router) => intent.vpc(router.vpc).is_none(),
            Object::Subnet(subnet) => intent.vpc(subnet.vpc).is_none(),
            Object::Nic(nic) => intent
                .subnet(nic.subnet)
                .is_none_or(|subnet| intent.vpc(subnet.vpc).is_none()),
        };
        if !orphan {
            return self.matches(intent, object);
        }
        let parentless = Filter {
            account: None,
            vpc: None,
            subnet: None,
            ..self.filter.clone()
        };
        self.named(object) && intent.matches(&parentless, object)
    }

    fn named(&self, object: &Object) -> bool {
        object.name().as_str().starts_with(&self.name_prefix)
    }

    /// All objects of a kind that match, in order of id, `size` at most.
    pub(crate) fn page(
        &self,
        intent: &Intent,
        kind: Kind,
        mut after: Option<ObjectId>,
        size: usize,
    ) -> (Vec<Object>, Option<ObjectId>) {
        let mut items: Vec<Object> = Vec::new();
        loop {
            let page = intent.list(kind, &self.filter, after, LARGEST_PAGE);
            for object in page.items {
                if !self.named(&object) {
                    continue;
                }
                if items.len() == size {
                    let last = items.last().map(Object::id);
                    return (items, last);
                }
                items.push(object);
            }
            match page.next {
                Some(next) => after = Some(next),
                None => return (items, None),
            }
        }
    }
}

impl PageQuery {
    pub(crate) fn new(kind: Kind, wire: v1::ListRequest) -> Result<Self, BadRequest> {
        let fingerprint = fingerprint(kind, wire.filter.as_ref());
        let after = match wire.page_token.as_str() {
            "" => None,
            token => Some(parse_token(kind, fingerprint, token)?),
        };
        Ok(Self {
            kind,
            query: Query::new(wire.filter)?,
            after,
            size: match wire.page_size {
                0 => DEFAULT_PAGE,
                size => usize::try_from(size)
                    .unwrap_or(LARGEST_PAGE)
                    .min(LARGEST_PAGE),
            },
            fingerprint,
        })
    }

    pub(crate) fn run(&self, state: &State) -> Result<PageView, Status> {
        let intent = &state.intent;
        let matcher = self.query.resolve(intent).map_err(crate::owner::refused)?;
        let (items, next) = matcher.page(intent, self.kind, self.after, self.size);
        Ok(PageView {
            items: items.iter().map(|o| state.view_with_status(o)).collect(),
            next_page_token: next.map_or_else(String::new, |id| token(self.fingerprint, id)),
            revision: intent.revision().0,
        })
    }
}

fn token(fingerprint: u64, last: ObjectId) -> String {
    let id = last.id_text();
    URL_SAFE_NO_PAD.encode(format!("1.{fingerprint:016x}.{id}"))
}

fn parse_token(kind: Kind, fingerprint: u64, token: &str) -> Result<ObjectId, BadRequest> {
    let field = Field::root("page_token");
    let bad = || field.bad("it is not one that this server made: list from the start");
    let text = URL_SAFE_NO_PAD.decode(token).map_err(|_| bad())?;
    let text = String::from_utf8(text).map_err(|_| bad())?;
    let mut parts = text.split('.');
    let (Some("1"), Some(print), Some(id), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(bad());
    };
    if print != format!("{fingerprint:016x}") {
        return Err(field.bad("it belongs to a list with another filter: list from the start"));
    }
    field
        .object_id(v1::Kind::from(kind).into(), id)
        .map_err(|_| bad())
}

/// FNV-1a of what a list asks for, so that a token is not continued with another filter.
fn fingerprint(kind: Kind, filter: Option<&v1::Filter>) -> u64 {
    let mut text = kind.to_string();
    if let Some(filter) = filter {
        let mut labels: Vec<_> = filter.labels.iter().collect();
        labels.sort();
        text += &format!(
            "{:?} {:?} {:?} {labels:?} {:?}",
            filter.parent_kind, filter.parent, filter.host, filter.name_prefix
        );
    }
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::NicId;

    #[test]
    fn a_token_goes_on_with_its_own_list_only() {
        let id = ObjectId::Nic(NicId::from_random(7));
        let text = token(5, id);
        assert_eq!(parse_token(Kind::Nic, 5, &text), Ok(id));
        assert!(parse_token(Kind::Nic, 6, &text).is_err());
        for garbage in ["", "x", "////", "MS4", &"A".repeat(5000)] {
            assert!(parse_token(Kind::Nic, 5, garbage).is_err(), "{garbage:?}");
        }
    }
}
