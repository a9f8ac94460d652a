//! The scenarios, by what they are about.

mod mobility;
mod reflector;
mod routes;

use crate::Row;

/// In the order of their numbers.
pub(crate) const ALL: &[Row] = &[
    routes::E02,
    routes::E03,
    routes::E04,
    mobility::E05,
    mobility::E06,
    mobility::E07,
    routes::E09,
    reflector::E18,
    reflector::E20,
];
