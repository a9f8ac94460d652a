//! `vpc account`.

use super::request::{Creation, Deletion, Selection, get, pages};
use crate::block_on;
use crate::connect::refused;
use crate::failure::Outcome;
use crate::options::Global;
use crate::views::AccountView;
use api::v1;
use clap::Subcommand;

/// Accounts (tenants).
#[derive(Debug, Subcommand)]
pub(crate) enum Account {
    /// Create an account
    #[command(
        after_help = "Examples:\n  vpc account create acme\n  vpc create acme/blue --cidr 10.4.0.0/16"
    )]
    Create {
        /// Its name
        name: String,
        #[command(flatten)]
        creation: Creation,
    },
    /// List accounts
    #[command(after_help = "Examples:\n  vpc account list -o json")]
    List(Selection),
    /// Show an account
    #[command(after_help = "Examples:\n  vpc account show acme")]
    Show {
        /// Name, or id:ID
        account: String,
    },
    /// Delete an account that owns nothing
    #[command(after_help = "Examples:\n  vpc account delete acme")]
    Delete {
        /// Name, or id:ID
        account: String,
        #[command(flatten)]
        deletion: Deletion,
    },
}

impl Account {
    /// Does it.
    pub(crate) fn run(self, global: &Global) -> Outcome {
        block_on(async {
            let mut client = global.server.management().await?;
            match self {
                Self::Create { name, creation } => {
                    let request = v1::CreateAccountRequest {
                        request_id: creation.request_id(),
                        name: name.clone(),
                        labels: creation.labels(),
                    };
                    let made = client
                        .create_account(request)
                        .await
                        .map_err(|status| refused(&format!("creating account {name}"), &status))?;
                    show(global, made.into_inner())
                }
                Self::List(selection) => {
                    let accounts = pages("listing accounts", selection.filter(), |request| {
                        let mut client = client.clone();
                        async move {
                            let page = client.list_accounts(request).await?.into_inner();
                            Ok((page.accounts, page.next_page_token))
                        }
                    })
                    .await?;
                    let mut views: Vec<AccountView> =
                        accounts.into_iter().map(Into::into).collect();
                    views.sort_by(|a, b| a.name.cmp(&b.name));
                    global.output.many(&views)
                }
                Self::Show { account } => {
                    let found = client.get_account(get(&account)).await.map_err(|status| {
                        refused(&format!("showing account {account}"), &status)
                    })?;
                    show(global, found.into_inner())
                }
                Self::Delete { account, deletion } => client
                    .delete_account(deletion.of(&account))
                    .await
                    .map(drop)
                    .map_err(|status| refused(&format!("deleting account {account}"), &status)),
            }
        })
    }
}

fn show(global: &Global, account: v1::Account) -> Outcome {
    let view = AccountView::from(account);
    global.output.one(&view, &view.details())
}
