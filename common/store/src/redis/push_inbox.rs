//! [`PushInbox`] in Redis: a hash for each rule with pending pushes, and the ids of notifications by time.

use std::collections::HashMap;

use async_trait::async_trait;
use jiff::Timestamp;

use super::{RedisStore, ScriptCall, duration_ms, timestamp};
use crate::push_inbox::{parse_push_key, pending_key, stored_rule_name, tag_digest};
use crate::{
    AddedPushes, MAX_ALL_PUSHES, MAX_PENDING_PUSHES, MAX_PUSH_IDS, PUSH_ID_TTL, PendingPush, Postponed, PushInbox,
    PushRule, ReceivedPush,
};
use imgsync_oci::error::Result;

#[async_trait]
impl PushInbox for RedisStore {
    async fn add_pushes(&self, pushes: Vec<ReceivedPush>) -> Result<AddedPushes> {
        let mut call = self.add_pushes_call();
        for push in &pushes {
            let ReceivedPush { id, registry, repository, reference, rules } = push;
            let key = reference.name_in(registry, repository);
            call = call.arg(id.as_deref().unwrap_or_default()).arg(key).arg(tag_digest(reference)).arg(rules.len());
            for PushRule { id, name } in rules {
                call = call.arg(id).arg(name);
            }
        }
        self.run_add_pushes("storing pushes", call).await
    }

    async fn add_whole_runs(&self, rules: Vec<PushRule>) -> Result<()> {
        let mut call = self.add_pushes_call();
        for PushRule { id, name } in &rules {
            call = call.arg("").arg("").arg("").arg(1).arg(id).arg(name);
        }
        self.run_add_pushes("storing runs of whole rules", call).await.map(drop)
    }

    async fn pending_pushes(&self) -> Result<Vec<PendingPush>> {
        let operation = "reading the pending pushes";
        let mut pipe = redis::pipe();
        pipe.smembers(self.key("pushes"));
        let (mut rules,): (Vec<String>,) = self.query(operation, &pipe).await?;
        if rules.is_empty() {
            self.0.unreadable_pushes.set(0, None);
            return Ok(Vec::new());
        }
        rules.sort_unstable();
        let mut pipe = redis::pipe();
        for rule in &rules {
            pipe.hgetall(self.key(&format!("pushes:{rule}")));
        }
        let found: Vec<HashMap<String, String>> = self.query(operation, &pipe).await?;
        let (mut pending, mut unreadable) = (Vec::new(), Vec::new());
        for (rule, pushes) in rules.into_iter().zip(found) {
            for (key, value) in pushes {
                match read_pending(&rule, &key, &value) {
                    Some(push) => pending.push(push),
                    None => unreadable.push(key),
                }
            }
        }
        self.0.unreadable_pushes.set(unreadable.len() as u64, unreadable.first().map(String::as_str));
        Ok(pending)
    }

    fn unreadable_pushes(&self) -> u64 {
        self.0.unreadable_pushes.number()
    }

    async fn postpone_pushes(&self, pushes: &[PendingPush], until: Timestamp) -> Result<()> {
        let mut call = ScriptCall::new(self.key("pushes")).arg(until.as_millisecond());
        for push in pushes {
            call = call.arg(&push.rule).arg(pending_key(push)).arg(push.notifications);
            call = call.arg(push.first_at.as_millisecond()).arg(push.postponed.to_number());
        }
        self.run_script::<i64>("postponing pushes", &self.0.scripts.postpone_pushes, call).await.map(drop)
    }

    async fn remove_pushes(&self, pushes: &[PendingPush]) -> Result<()> {
        let mut call = ScriptCall::new(self.key("pushes"));
        for push in pushes {
            call = call.arg(&push.rule).arg(pending_key(push)).arg(push.notifications);
            call = call.arg(push.first_at.as_millisecond());
        }
        self.run_script::<i64>("removing pushes", &self.0.scripts.remove_pushes, call).await.map(drop)
    }
}

impl RedisStore {
    fn add_pushes_call(&self) -> ScriptCall {
        let call = ScriptCall::new(self.key("pushes")).key(self.key("push_ids"));
        call.arg(MAX_PENDING_PUSHES).arg(MAX_ALL_PUSHES).arg(MAX_PUSH_IDS).arg(duration_ms(PUSH_ID_TTL))
    }

    async fn run_add_pushes(&self, operation: &str, call: ScriptCall) -> Result<AddedPushes> {
        self.write_version(operation).await?;
        let (added, coalesced, repeated) = self.run_script(operation, &self.0.scripts.add_pushes, call).await?;
        // A store that loses what it confirmed notices that.
        self.count_write().await;
        Ok(AddedPushes { added, coalesced, repeated })
    }
}

fn read_pending(rule: &str, key: &str, value: &str) -> Option<PendingPush> {
    let mut fields = value.splitn(6, '|');
    let mut number = || fields.next()?.parse::<i64>().ok();
    let (first_at, last_at) = (timestamp(number()?), timestamp(number()?));
    let notifications = number()?.unsigned_abs();
    let not_before = Some(number()?).filter(|at| *at > 0).map(timestamp);
    let postponed = Postponed::from_number(u32::try_from(number()?).ok()?);
    let digest = fields.next()?;
    let (pushed, rule_name) = (parse_push_key(key, digest).ok()?, stored_rule_name(key, digest));
    Some(PendingPush {
        rule: rule.to_owned(),
        rule_name,
        pushed,
        first_at,
        last_at,
        notifications,
        not_before,
        postponed,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_push_of_another_version_is_none() {
        let read = |key: &str, value: &str| read_pending("rule", key, value).is_some();
        assert!(read("r.example/a:1", "1|2|3|0|0|") && read("", "1|2|3|0|0|a rule"));
        for (key, value) in [
            ("r.example/a (a later kind)", "1|2|3|0|0|"),
            ("r.example/a:1", "1|2|3|0|0|md5:later"),
            ("r.example/a:1", "{\"first_at\": 1}"),
            ("r.example/a:1", ""),
        ] {
            assert!(!read(key, value), "{key} {value}");
        }
    }
}
