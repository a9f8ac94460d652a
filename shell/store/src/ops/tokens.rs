//! Join tokens.

use super::{Done, Fail};
use crate::checksum::checksum;
use crate::engine::{Row, Tx};
use crate::rows::{body, checked};
use fleet_plan::{JoinToken, TokenRefusal, TokenSecret, TokenUse};
use model::{HostId, TokenId, UnixMillis};

pub(crate) async fn create_token(mut tx: Tx, token: &JoinToken) -> Done<()> {
    let (id, text) = (token.id.to_string(), body(token));
    let sum = checksum(&["token", &id, &text]);
    tx.execute(
        "INSERT INTO tokens (id, used, expires, body, checksum) VALUES ($1, $2, $3, $4, $5)",
        vec![
            id.into(),
            i64::from(token.used.is_some()).into(),
            token.expires.0.into(),
            text.into(),
            sum.into(),
        ],
    )
    .await?;
    Ok((tx, ()))
}

pub(crate) async fn token(mut tx: Tx, id: TokenId) -> Done<Option<JoinToken>> {
    let token = find_token(&mut tx, id).await?;
    Ok((tx, token))
}

pub(crate) async fn tokens(mut tx: Tx) -> Done<Vec<JoinToken>> {
    let tokens = tx
        .query(
            "SELECT id, body, checksum, used FROM tokens ORDER BY id",
            vec![],
        )
        .await?
        .iter()
        .map(token_row)
        .collect::<Result<_, _>>()?;
    Ok((tx, tokens))
}

pub(crate) async fn delete_token(mut tx: Tx, id: TokenId) -> Done<bool> {
    let deleted = tx
        .execute(
            "DELETE FROM tokens WHERE id = $1",
            vec![id.to_string().into()],
        )
        .await?;
    Ok((tx, deleted > 0))
}

pub(crate) async fn consume_token(
    mut tx: Tx,
    token: &TokenSecret,
    host: HostId,
    now: UnixMillis,
) -> Done<JoinToken> {
    let token = spend(&mut tx, token, host, now).await?;
    Ok((tx, token))
}

pub(crate) async fn purge_tokens(mut tx: Tx, now: UnixMillis) -> Done<u64> {
    let purged = tx
        .execute("DELETE FROM tokens WHERE expires < $1", vec![now.0.into()])
        .await?;
    Ok((tx, purged))
}

async fn find_token(tx: &mut Tx, id: TokenId) -> Result<Option<JoinToken>, Fail> {
    let rows = tx
        .query(
            "SELECT id, body, checksum, used FROM tokens WHERE id = $1",
            vec![id.to_string().into()],
        )
        .await?;
    rows.first().map(token_row).transpose()
}

/// Marks a token used if it is good. The update names what it expects, so that of two servers
/// that read it unused one changes nothing.
pub(super) async fn spend(
    tx: &mut Tx,
    secret: &TokenSecret,
    host: HostId,
    now: UnixMillis,
) -> Result<JoinToken, Fail> {
    let token = find_token(tx, secret.id)
        .await?
        .ok_or(Fail::Token(TokenRefusal::Unknown))?;
    token.check(secret, now).map_err(Fail::Token)?;
    let spent = JoinToken {
        used: Some(TokenUse { host, at: now }),
        ..token
    };
    let (id, text) = (secret.id.to_string(), body(&spent));
    let sum = checksum(&["token", &id, &text]);
    let marked = tx
        .execute(
            "UPDATE tokens SET used = 1, body = $2, checksum = $3 WHERE id = $1 AND used = 0",
            vec![id.into(), text.into(), sum.into()],
        )
        .await?;
    if marked == 0 {
        return Err(Fail::Token(TokenRefusal::Used { id: secret.id }));
    }
    Ok(spent)
}

/// Whoever repeats an enrolment must hold the token that it was done with.
pub(super) async fn check_spent(
    tx: &mut Tx,
    secret: &TokenSecret,
    host: HostId,
    now: UnixMillis,
) -> Result<(), Fail> {
    let token = find_token(tx, secret.id)
        .await?
        .ok_or(Fail::Token(TokenRefusal::Unknown))?;
    match token.check(secret, now) {
        Err(TokenRefusal::Used { .. }) if token.used.is_some_and(|used| used.host == host) => {
            Ok(())
        }
        Err(refusal) => Err(Fail::Token(refusal)),
        Ok(()) => Err(Fail::Token(TokenRefusal::Unknown)),
    }
}

fn token_row(row: &Row) -> Result<JoinToken, Fail> {
    let id = row.text(0)?;
    let what = format!("join token {id}");
    let token: JoinToken = checked(&what, &["token", &id], &row.text(1)?, row.int(2)?)?;
    if i64::from(token.used.is_some()) != row.int(3)? {
        return Err(Fail::Damaged(format!("{what} is used and unused")));
    }
    Ok(token)
}
