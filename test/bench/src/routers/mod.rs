//! Virtual routers: translated traffic beside a namespace made by hand, how soon a new one forwards,
//! what hundreds of them cost.

mod create;
mod nat;
mod scale;

use crate::Effort;
use crate::figures::Table;

/// All of it.
pub(crate) fn measure(effort: Effort, table: &mut Table) {
    nat::measure(effort, table);
    create::measure(effort, table);
    scale::measure(effort, table);
}
