//! [`PushInbox`] in SQLite.

use async_trait::async_trait;
use jiff::Timestamp;
use rusqlite::Connection;

use super::SqliteStore;
use super::error::SqliteError;
use super::rows::{duration_ms, timestamp};
use crate::push_inbox::{parse_push_key, pending_key, stored_rule_name, tag_digest};
use crate::{
    AddedPushes, MAX_ALL_PUSHES, MAX_PENDING_PUSHES, MAX_PUSH_IDS, PUSH_ID_TTL, PendingPush, Postponed, PushInbox,
    PushRule, ReceivedPush,
};
use imgsync_oci::error::Result;

#[async_trait]
impl PushInbox for SqliteStore {
    async fn add_pushes(&self, pushes: Vec<ReceivedPush>) -> Result<AddedPushes> {
        let now = self.now();
        self.write("storing pushes", move |connection| {
            forget_expired_ids(connection, now)?;
            let mut added = AddedPushes::default();
            for push in &pushes {
                add_push(connection, push, now, &mut added)?;
            }
            forget_oldest_ids(connection)?;
            Ok(added)
        })
        .await
    }

    async fn add_whole_runs(&self, rules: Vec<PushRule>) -> Result<()> {
        let now = self.now();
        self.write("storing runs of whole rules", move |connection| {
            rules.iter().try_for_each(|rule| insert_push(connection, rule, "", "", now))
        })
        .await
    }

    async fn pending_pushes(&self) -> Result<Vec<PendingPush>> {
        let read = self.read("reading the pending pushes", |connection| {
            let mut statement = connection.prepare_cached(
                "SELECT rule, key, digest, first_at, last_at, notifications, not_before, postponed
                 FROM pending_push ORDER BY rule, key",
            )?;
            let mut rows = statement.query([])?;
            let (mut pending, mut unreadable) = (Vec::new(), Vec::new());
            while let Some(row) = rows.next()? {
                let (key, digest): (String, String) = (row.get(1)?, row.get(2)?);
                let Ok(pushed) = parse_push_key(&key, &digest) else {
                    unreadable.push(key);
                    continue;
                };
                pending.push(PendingPush {
                    rule: row.get(0)?,
                    rule_name: stored_rule_name(&key, &digest),
                    pushed,
                    first_at: timestamp(row.get(3)?),
                    last_at: timestamp(row.get(4)?),
                    notifications: u64::try_from(row.get::<_, i64>(5)?).unwrap_or_default(),
                    not_before: row.get::<_, Option<i64>>(6)?.map(timestamp),
                    postponed: Postponed::from_number(row.get(7)?),
                });
            }
            Ok((pending, unreadable))
        });
        let (pending, unreadable) = read.await?;
        self.0.unreadable_pushes.set(unreadable.len() as u64, unreadable.first().map(String::as_str));
        Ok(pending)
    }

    fn unreadable_pushes(&self) -> u64 {
        self.0.unreadable_pushes.number()
    }

    async fn postpone_pushes(&self, pushes: &[PendingPush], until: Timestamp) -> Result<()> {
        let (pushes, until) = (pushes.to_vec(), until.as_millisecond());
        self.write("postponing pushes", move |connection| {
            let mut statement = connection.prepare_cached(
                "UPDATE pending_push SET not_before = ?4, postponed = ?5
                 WHERE rule = ?1 AND key = ?2 AND notifications = ?3 AND first_at = ?6",
            )?;
            for push in &pushes {
                let notifications = i64::try_from(push.notifications).unwrap_or(i64::MAX);
                let postponed = push.postponed.to_number();
                let first_at = push.first_at.as_millisecond();
                statement.execute((&push.rule, pending_key(push), notifications, until, postponed, first_at))?;
            }
            Ok(())
        })
        .await
    }

    async fn remove_pushes(&self, pushes: &[PendingPush]) -> Result<()> {
        let pushes = pushes.to_vec();
        self.write("removing pushes", move |connection| {
            let mut statement = connection.prepare_cached(
                "DELETE FROM pending_push WHERE rule = ?1 AND key = ?2 AND notifications = ?3 AND first_at = ?4",
            )?;
            for push in &pushes {
                let notifications = i64::try_from(push.notifications).unwrap_or(i64::MAX);
                let first_at = push.first_at.as_millisecond();
                statement.execute((&push.rule, pending_key(push), notifications, first_at))?;
            }
            Ok(())
        })
        .await
    }
}

/// Forgets the ids of notifications that are older than their time to live.
fn forget_expired_ids(connection: &Connection, now: i64) -> Result<(), SqliteError> {
    let before = now.saturating_sub(duration_ms(PUSH_ID_TTL));
    connection.prepare_cached("DELETE FROM push_id WHERE at < ?1")?.execute([before])?;
    Ok(())
}

/// Forgets the oldest ids beyond the limit.
fn forget_oldest_ids(connection: &Connection) -> Result<(), SqliteError> {
    connection
        .prepare_cached("DELETE FROM push_id WHERE id IN (SELECT id FROM push_id ORDER BY at DESC LIMIT -1 OFFSET ?1)")?
        .execute([i64::try_from(MAX_PUSH_IDS).unwrap_or(i64::MAX)])?;
    Ok(())
}

fn add_push(
    connection: &Connection,
    push: &ReceivedPush,
    now: i64,
    added: &mut AddedPushes,
) -> Result<(), SqliteError> {
    if let Some(id) = &push.id {
        let new = connection
            .prepare_cached("INSERT INTO push_id (id, at) VALUES (?1, ?2) ON CONFLICT DO NOTHING")?
            .execute((id, now))?;
        if new == 0 {
            added.repeated += 1;
            return Ok(());
        }
    }
    let mut is_new = false;
    let (key, digest) = (push.reference.name_in(&push.registry, &push.repository), tag_digest(&push.reference));
    let mut update = connection.prepare_cached(
        "UPDATE pending_push
         SET digest = ?3, last_at = ?4, notifications = notifications + 1, not_before = NULL, postponed = 0
         WHERE rule = ?1 AND key = ?2",
    )?;
    for rule in &push.rules {
        if update.execute((&rule.id, &key, &digest, now))? > 0 {
            continue;
        }
        is_new = true;
        let (all, due): (i64, i64) = connection
            .prepare_cached("SELECT count(*), count(*) - count(not_before) FROM pending_push WHERE rule = ?1")?
            .query_row([&rule.id], |row| Ok((row.get(0)?, row.get(1)?)))?;
        let is_beyond = |number: i64, most: usize| usize::try_from(number).unwrap_or_default() >= most;
        let is_full = is_beyond(due, MAX_PENDING_PUSHES) || is_beyond(all, MAX_ALL_PUSHES);
        let (key, digest) = if is_full { ("", "") } else { (key.as_str(), digest.as_str()) };
        insert_push(connection, rule, key, digest, now)?;
    }
    if is_new {
        added.added += 1
    } else {
        added.coalesced += 1
    }
    Ok(())
}

/// Adds a push, or a run of the whole rule (without a key), which may be pending.
fn insert_push(connection: &Connection, rule: &PushRule, key: &str, digest: &str, now: i64) -> Result<(), SqliteError> {
    let digest = if key.is_empty() { &rule.name } else { digest };
    connection
        .prepare_cached(
            "INSERT INTO pending_push (rule, key, digest, first_at, last_at, notifications)
             VALUES (?1, ?2, ?3, ?4, ?4, 1)
             ON CONFLICT DO UPDATE SET digest = excluded.digest, last_at = excluded.last_at,
                notifications = notifications + 1, not_before = NULL, postponed = 0",
        )?
        .execute((&rule.id, key, digest, now))?;
    Ok(())
}
