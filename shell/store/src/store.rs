//! A store: everything that may be asked of it.

use crate::engine::{Engine, Tx, find_damage};
use crate::error::worth_repeating;
use crate::ops::{self, Fail};
use crate::{Location, StoreError, migrate, quiet};
use fleet_plan::{Decision, Intent, IssuedRow, JoinToken, TokenSecret};
use model::{Change, Cluster, HostId, HostStatus, Object, Revision, TokenId, UnixMillis};
use std::collections::BTreeMap;
use std::fs::{OpenOptions, Permissions};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::watch;

/// Changes kept for watches that resume; older ones are compacted away.
pub const CHANGES_KEPT: u64 = 100_000;

/// How often a transaction that lost against another one is run again.
const REPEATS: u32 = 20;

/// The management database. Cheap to share behind an `Arc`; all methods take `&self`.
#[derive(Debug)]
pub struct Store {
    engine: Engine,
    location: String,
    /// [`CHANGES_KEPT`], or less in tests.
    changes_kept: u64,
    /// How often something was written.
    writes: watch::Sender<u64>,
    /// How often it had been when the log was folded.
    folded: AtomicU64,
}

/// A stretch of history, for a watch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct History {
    /// Changes after the revision asked for, in order, without a gap; at most as many as asked
    /// for.
    pub changes: Vec<Change>,
    /// Where the store stood when they were read. There is more to read while the last change is
    /// older than this.
    pub head: Revision,
}

impl Store {
    /// Makes the store of a new cluster (`vpc server init`). A SQLite file is made with mode 0600;
    /// a store that holds a cluster is refused and left as it is.
    pub async fn init(location: &Location, cluster: &Cluster) -> Result<Self, StoreError> {
        if let Location::Sqlite(path) = location {
            create_private(path)?;
        }
        let store = Self::connect(location).await?;
        store.write("preparing the tables", ops::migrate).await?;
        let action = "setting up the cluster";
        store.write(action, |tx| ops::init(tx, cluster)).await?;
        Ok(store)
    }

    /// Opens the store of a cluster (`vpc server run`): checks that it is whole and brings its
    /// schema up to date. Never makes or overwrites one.
    pub async fn open(location: &Location) -> Result<Self, StoreError> {
        if let Location::Sqlite(path) = location {
            check_file(path)?;
            check_structure(path).await?;
        }
        let store = Self::connect(location).await?;
        let whole = store.check_schema().await;
        if whole.is_err() {
            store.close().await;
        }
        whole.map(|()| store)
    }

    /// Keeps fewer changes than [`CHANGES_KEPT`].
    #[must_use]
    pub fn with_changes_kept(self, changes_kept: u64) -> Self {
        Self {
            changes_kept,
            ..self
        }
    }

    /// Everything: the intent with all its memory.
    pub async fn load(&self) -> Result<Intent, StoreError> {
        let action = "reading the intent";
        self.read(action, ops::load).await
    }

    /// Persists exactly `decision`, durably, if the store is still at its base; otherwise
    /// [`StoreError::Conflict`].
    ///
    /// Do not drop the future half way, or nobody knows whether it was committed: run it in the
    /// task that owns the intent. After any error but a conflict the same holds for a database
    /// server that went away during the commit; [`Store::catch_up`] finds out.
    pub async fn commit(&self, decision: &Decision) -> Result<(), StoreError> {
        self.commit_all(std::slice::from_ref(decision)).await
    }

    /// Persists several decisions, each decided on the one before it, in one transaction: all or
    /// none. One sync to disk for all of them.
    pub async fn commit_all(&self, decisions: &[Decision]) -> Result<(), StoreError> {
        if decisions.iter().all(Decision::is_noop) {
            return Ok(());
        }
        let kept = self.changes_kept;
        self.write("committing a change", |tx| ops::commit(tx, decisions, kept))
            .await
    }

    /// Persists decisions and the generations that hosts get with them, in one transaction, for a server that
    /// is the only one: with others about it would have planned in vain. As [`Store::commit_all`] and
    /// [`Store::save_issued`].
    pub async fn commit_issued(
        &self,
        decisions: &[Decision],
        rows: &[IssuedRow],
    ) -> Result<Vec<IssuedRow>, StoreError> {
        if decisions.iter().all(Decision::is_noop) {
            return self.save_issued(rows).await;
        }
        let kept = self.changes_kept;
        self.write("committing a change", |tx| {
            ops::commit_issued(tx, decisions, rows, kept)
        })
        .await
    }

    /// Persists the enrolment of a host and spends its token in the same transaction: a token
    /// that was used, expired or is unknown enrols nobody, and a refused enrolment costs no
    /// token.
    pub async fn commit_join(
        &self,
        decision: &Decision,
        token: &TokenSecret,
        now: UnixMillis,
    ) -> Result<(), StoreError> {
        let kept = self.changes_kept;
        self.write("enrolling a host", |tx| {
            ops::commit_join(tx, decision, token, now, kept)
        })
        .await
    }

    /// Brings `intent` up to date with what other servers committed. Costs one small query if
    /// nothing was. On an error `intent` is as it was.
    pub async fn catch_up(&self, intent: &mut Intent) -> Result<(), StoreError> {
        let after = intent.revision();
        let action = "reading changes";
        match self.read(action, |tx| ops::delta(tx, after)).await {
            Ok(None) => return Ok(()),
            Ok(Some(delta)) => {
                let mut next = intent.clone();
                if next.apply_delta(&delta).is_ok() {
                    *intent = next;
                    return Ok(());
                }
            }
            Err(StoreError::TooOld { .. } | StoreError::Ahead { .. }) => {}
            Err(error) => return Err(error),
        }
        *intent = self.load().await?;
        Ok(())
    }

    /// The revision of the last change.
    pub async fn revision(&self) -> Result<Revision, StoreError> {
        self.read("reading the revision", ops::revision).await
    }

    /// At most `limit` changes after `after`, for a watch. [`StoreError::TooOld`] if they were
    /// compacted away.
    pub async fn changes_since(
        &self,
        after: Revision,
        limit: usize,
    ) -> Result<History, StoreError> {
        self.read("reading changes", |tx| ops::history(tx, after, limit))
            .await
    }

    /// Adds a join token.
    pub async fn create_token(&self, token: &JoinToken) -> Result<(), StoreError> {
        self.write("adding a join token", |tx| ops::create_token(tx, token))
            .await
    }

    /// A token by id, used or not.
    pub async fn token(&self, id: TokenId) -> Result<Option<JoinToken>, StoreError> {
        self.read("reading a join token", |tx| ops::token(tx, id))
            .await
    }

    /// All tokens, in order of id.
    pub async fn tokens(&self) -> Result<Vec<JoinToken>, StoreError> {
        self.read("reading the join tokens", ops::all_tokens).await
    }

    /// Withdraws a token; true if it was there.
    pub async fn delete_token(&self, id: TokenId) -> Result<bool, StoreError> {
        self.write("deleting a join token", |tx| ops::delete_token(tx, id))
            .await
    }

    /// Marks a token used by `host`. Of any number of callers at once, one succeeds.
    /// [`Store::commit_join`] does it together with the enrolment.
    pub async fn consume_token(
        &self,
        token: &TokenSecret,
        host: HostId,
        now: UnixMillis,
    ) -> Result<JoinToken, StoreError> {
        self.write("using a join token", |tx| {
            ops::consume_token(tx, token, host, now)
        })
        .await
    }

    /// Forgets tokens that expired before `now`; returns how many.
    pub async fn purge_tokens(&self, now: UnixMillis) -> Result<u64, StoreError> {
        self.write("purging join tokens", |tx| ops::purge_tokens(tx, now))
            .await
    }

    /// Keeps what hosts reported, in one transaction. A report that is older than the one kept,
    /// or of a host that is gone, is ignored.
    pub async fn save_statuses(&self, statuses: &[(HostId, HostStatus)]) -> Result<(), StoreError> {
        if statuses.is_empty() {
            return Ok(());
        }
        self.write("keeping host reports", |tx| {
            ops::save_statuses(tx, statuses)
        })
        .await
    }

    /// What hosts reported last.
    pub async fn statuses(&self) -> Result<BTreeMap<HostId, HostStatus>, StoreError> {
        self.read("reading host reports", ops::statuses).await
    }

    /// Keeps newly issued generations, in one transaction. Rows that lost against a generation
    /// that another server issued are not kept; that server's rows are returned for
    /// [`fleet_plan::Rollout::adopt`].
    pub async fn save_issued(&self, rows: &[IssuedRow]) -> Result<Vec<IssuedRow>, StoreError> {
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        self.write("keeping issued generations", |tx| {
            ops::save_issued(tx, rows)
        })
        .await
    }

    /// The newest generation of every host.
    pub async fn issued(&self) -> Result<Vec<IssuedRow>, StoreError> {
        self.read("reading issued generations", ops::issued).await
    }

    /// Writes a consistent copy to a new file of mode 0600, while the store goes on working.
    /// The copy is a store: put it in the place of a lost one. PostgreSQL has its own tools.
    pub async fn backup(&self, path: &Path) -> Result<(), StoreError> {
        let Engine::Sqlite { readers, .. } = &self.engine else {
            return Err(StoreError::BackupElsewhere {
                location: self.location.clone(),
            });
        };
        // VACUUM INTO fills an empty file, so the mode can be set before anything is in it.
        match create_private_new(path) {
            Ok(()) => {}
            Err(source) if source.kind() == std::io::ErrorKind::AlreadyExists => {
                return Err(StoreError::BackupExists {
                    path: path.to_owned(),
                });
            }
            Err(source) => {
                return Err(StoreError::File {
                    action: "making the backup",
                    path: path.to_owned(),
                    source,
                });
            }
        }
        let copied = sqlx::query("VACUUM INTO $1")
            .bind(path.to_string_lossy().into_owned())
            .execute(readers)
            .await;
        let synced = match copied {
            Ok(_) => sync_file(path),
            Err(source) => {
                // Half a backup must not be taken for one.
                remove_quietly(path);
                return Err(StoreError::engine(
                    &self.location,
                    "writing a backup of what is",
                    source,
                ));
            }
        };
        synced.map_err(|source| StoreError::File {
            action: "syncing the backup",
            path: path.to_owned(),
            source,
        })
    }

    /// Folds SQLite's log into the file, beside whoever reads and writes; to be called every so often. Costs
    /// nothing if nothing was written since. A log that nobody folds is folded by the change that finds it too
    /// long, and whoever made that waits for it.
    pub async fn fold_log(&self) -> Result<(), StoreError> {
        let writes = *self.writes.borrow();
        if self.folded.load(Ordering::Relaxed) == writes {
            return Ok(());
        }
        let folded = self.engine.fold_log().await;
        folded.map_err(|source| StoreError::engine(&self.location, "folding the log", source))?;
        self.folded.store(writes, Ordering::Relaxed);
        Ok(())
    }

    /// Waits until something was written and then nothing more for `quiet`: who changes something a few times a second
    /// will not do so again at once. At most `longest`.
    pub async fn quiet_moment(&self, quiet: Duration, longest: Duration) {
        quiet::moment(self.writes.subscribe(), quiet, longest).await;
    }

    /// Closes all connections; SQLite folds its log into the file.
    pub async fn close(&self) {
        self.engine.close().await;
    }

    async fn connect(location: &Location) -> Result<Self, StoreError> {
        let name = location.to_string();
        let engine = Engine::open(location)
            .await
            .map_err(|source| StoreError::engine(&name, "opening the connection", source))?;
        Ok(Self {
            engine,
            location: name,
            changes_kept: CHANGES_KEPT,
            writes: watch::Sender::new(0),
            folded: AtomicU64::new(0),
        })
    }

    async fn check_schema(&self) -> Result<(), StoreError> {
        let version = self
            .read("reading the schema version", ops::schema_version)
            .await?;
        if version > migrate::KNOWN {
            return Err(StoreError::NewerSchema {
                location: self.location.clone(),
                found: version,
                known: migrate::KNOWN,
            });
        }
        if version < migrate::KNOWN {
            self.write("bringing the tables up to date", ops::migrate)
                .await?;
        }
        self.revision().await.map(|_| ())
    }

    /// Runs `work` in a transaction and commits it; again if it only lost a race that the engine
    /// resolved by failing one side.
    async fn write<T, F, W>(&self, action: &'static str, work: W) -> Result<T, StoreError>
    where
        F: Future<Output = Result<(Tx, T), Fail>>,
        W: Fn(Tx) -> F,
    {
        let mut repeats = 0;
        loop {
            let outcome = match self.engine.write().await {
                Err(error) => Err(Fail::Engine(error)),
                Ok(tx) => match work(tx).await {
                    Err(fail) => Err(fail),
                    Ok((tx, answer)) => tx.commit().await.map(|()| answer).map_err(Fail::Engine),
                },
            };
            match outcome {
                Ok(answer) => {
                    self.writes.send_modify(|writes| *writes += 1);
                    return Ok(answer);
                }
                Err(Fail::Engine(error)) if repeats < REPEATS && worth_repeating(&error) => {
                    repeats += 1;
                    tokio::time::sleep(Duration::from_millis(u64::from(repeats))).await;
                }
                Err(fail) => return Err(self.explain(action, fail)),
            }
        }
    }

    /// Runs `work` on one state of the database.
    async fn read<T, F, W>(&self, action: &'static str, work: W) -> Result<T, StoreError>
    where
        F: Future<Output = Result<(Tx, T), Fail>>,
        W: FnOnce(Tx) -> F,
    {
        let outcome = match self.engine.read().await {
            Err(error) => Err(Fail::Engine(error)),
            Ok(tx) => work(tx).await,
        };
        match outcome {
            Ok((tx, answer)) => {
                tx.rollback()
                    .await
                    .map_err(|error| self.explain(action, Fail::Engine(error)))?;
                Ok(answer)
            }
            Err(fail) => Err(self.explain(action, fail)),
        }
    }

    fn explain(&self, action: &'static str, fail: Fail) -> StoreError {
        let location = self.location.clone();
        match fail {
            Fail::Engine(source) => StoreError::engine(&location, action, source),
            Fail::Damaged(what) => StoreError::Corrupt { location, what },
            Fail::NotInitialised => StoreError::NotInitialised { location },
            Fail::AlreadyInitialised(cluster) => {
                StoreError::AlreadyInitialised { location, cluster }
            }
            Fail::Conflict(base) => StoreError::Conflict { base },
            Fail::TooOld { asked, horizon } => StoreError::TooOld { asked, horizon },
            Fail::Ahead { asked, head } => StoreError::Ahead { asked, head },
            Fail::Token(refusal) => StoreError::Token(refusal),
        }
    }
}

/// The host that a decision enrols.
pub(crate) fn enrolled(decision: &Decision) -> Option<HostId> {
    match &decision.object {
        Object::Host(host) => Some(host.id),
        _ => None,
    }
}

/// That there is a file with something in it. An empty file is a store that was lost: SQLite
/// would take it for a new one.
fn check_file(path: &Path) -> Result<(), StoreError> {
    let found = match std::fs::metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(StoreError::Missing {
                location: path.display().to_string(),
            });
        }
        Err(source) => {
            return Err(StoreError::File {
                action: "looking at the store",
                path: path.to_owned(),
                source,
            });
        }
    };
    if found.len() == 0 {
        return Err(StoreError::Corrupt {
            location: path.display().to_string(),
            what: "the file is empty".to_owned(),
        });
    }
    if found.permissions().mode() & 0o077 != 0 {
        set_private(path)?;
    }
    Ok(())
}

async fn check_structure(path: &Path) -> Result<(), StoreError> {
    let location = path.display().to_string();
    let found = find_damage(path)
        .await
        .map_err(|source| StoreError::engine(&location, "checking the structure", source))?;
    if found.is_empty() {
        return Ok(());
    }
    Err(StoreError::Corrupt {
        location,
        what: found.join("; "),
    })
}

fn create_private(path: &Path) -> Result<(), StoreError> {
    match create_private_new(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => set_private(path),
        Err(source) => Err(StoreError::File {
            action: "making the store",
            path: path.to_owned(),
            source,
        }),
    }
}

fn create_private_new(path: &Path) -> std::io::Result<()> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map(|_| ())
}

fn set_private(path: &Path) -> Result<(), StoreError> {
    std::fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(|source| {
        StoreError::File {
            action: "making private",
            path: path.to_owned(),
            source,
        }
    })
}

/// The file and the directory entry that leads to it.
fn sync_file(path: &Path) -> std::io::Result<()> {
    OpenOptions::new().read(true).open(path)?.sync_all()?;
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    OpenOptions::new().read(true).open(directory)?.sync_all()
}

fn remove_quietly(path: &Path) {
    if let Err(error) = std::fs::remove_file(path) {
        tracing::warn!(path = %path.display(), %error, "Removing half a backup");
    }
}
