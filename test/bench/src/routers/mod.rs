//! Virtual routers: translated traffic beside a namespace made by hand, how soon a new one forwards,
//! what hundreds of them cost.

mod create;
mod nat;
mod scale;

use crate::Effort;
use crate::figures::Table;

/// One router.
pub(crate) fn measure(effort: Effort, table: &mut Table) {
    nat::measure(effort, table);
    create::measure(effort, table);
}

/// Hundreds of them.
pub(crate) fn measure_many(effort: Effort, table: &mut Table) {
    scale::measure(effort, table);
}
