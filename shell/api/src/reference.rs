//! How users name objects on a command line.

use crate::v1;
use model::Kind;
use v1::r#ref::By;

/// What a user typed, as a reference to an object of this kind: `id:ID` is an id; the paths of
/// subnets, routers and NICs have more than one part, so one part alone is an id there; all else is a path.
pub fn object(kind: Kind, text: &str) -> v1::Ref {
    let by = match (text.strip_prefix("id:"), kind) {
        (Some(id), _) => By::Id(id.to_owned()),
        (None, Kind::Subnet | Kind::Router | Kind::Nic) if !text.contains('/') => {
            By::Id(text.to_owned())
        }
        (None, _) => By::Path(text.to_owned()),
    };
    v1::Ref { by: Some(by) }
}

/// Splits the path of an object that is to be made into its parent's and its name; no parent if
/// it has one part only.
pub fn split(path: &str) -> (Option<v1::Ref>, &str) {
    match path.rsplit_once('/') {
        Some((parent, name)) => {
            let by = Some(By::Path(parent.to_owned()));
            (Some(v1::Ref { by }), name)
        }
        None => (None, path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vpc_may_look_like_an_id() {
        let by = |kind, text| object(kind, text).by.unwrap();
        assert_eq!(by(Kind::Vpc, "webserver1"), By::Path("webserver1".into()));
        assert_eq!(by(Kind::Vpc, "id:0123456789"), By::Id("0123456789".into()));
        assert_eq!(by(Kind::Nic, "0123456789"), By::Id("0123456789".into()));
        assert_eq!(by(Kind::Nic, "b/w/a"), By::Path("b/w/a".into()));
        assert_eq!(split("blue").0, None);
        assert_eq!(split("blue/web/a1").1, "a1");
    }
}
