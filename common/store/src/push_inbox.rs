//! Pushes that hooks told of, until they are copied. See [`PushInbox`].

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;

use imgsync_model::batch::PushedReference;
use imgsync_oci::error::Result;
use imgsync_oci::humanize::pluralize;
use imgsync_oci::sanitize::sanitize_within;
use imgsync_oci::{Digest, RegistryName, RepositoryName};

use crate::log_throttle;

/// Maximum pending pushes of a rule that are not postponed. Beyond it, the whole rule is due.
pub const MAX_PENDING_PUSHES: usize = 1_000;
/// Maximum pending pushes of a rule, with those that are postponed.
pub const MAX_ALL_PUSHES: usize = 5_000;
/// How long the ids of notifications are remembered.
pub const PUSH_ID_TTL: Duration = Duration::from_secs(60 * 60);
/// Maximum number of ids of notifications that are remembered.
pub const MAX_PUSH_IDS: usize = 20_000;
/// Hex digits of the hash that stands for an id.
const ID_LENGTH: usize = 32;
/// Characters of a push that cannot be read, in messages.
const MAX_NAME_LENGTH: usize = 200;

/// A push as a hook tells it, for the rules that want it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReceivedPush {
    /// Identifies the notification of this push ([`hash_push_id`]); `None` if the sender gives it no id.
    pub id: Option<String>,
    /// The registry.
    pub registry: RegistryName,
    /// The repository.
    pub repository: RepositoryName,
    /// What was pushed.
    pub reference: PushedReference,
    /// The rules; at least one.
    pub rules: Vec<PushRule>,
}

/// A rule that wants a push.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct PushRule {
    /// Its id, which changes when the rule is edited.
    pub id: String,
    /// Its name, by which a pending run of the whole rule finds the edited rule.
    pub name: String,
}

/// A pending push of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PendingPush {
    /// Id of the rule.
    pub rule: String,
    /// Name of the rule, if the whole rule is due; else empty.
    pub rule_name: String,
    /// What was pushed; `None` if there were too many pushes, and the whole rule is due.
    pub pushed: Option<(RegistryName, RepositoryName, PushedReference)>,
    /// When the first notification of it arrived, to the millisecond.
    pub first_at: Timestamp,
    /// When the last one arrived.
    pub last_at: Timestamp,
    /// How many there were.
    pub notifications: u64,
    /// When it is looked at again, to the millisecond; `None`: now.
    pub not_before: Option<Timestamp>,
    /// Why and how often it was postponed since the last notification.
    pub postponed: Postponed,
}

/// How often a push was postponed since its last notification, by reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Postponed {
    /// Because its batch had begun: a check of what the policy of the rule refused follows.
    pub checks: u8,
    /// Because its tag did not show what was pushed.
    pub lags: u8,
    /// Because it could not be read.
    pub failures: u8,
}

impl Postponed {
    /// Returns the number that stores keep.
    pub(crate) fn to_number(self) -> u32 {
        u32::from_le_bytes([self.checks, self.lags, self.failures, 0])
    }

    /// Returns the numbers of times of a stored number.
    pub(crate) fn from_number(number: u32) -> Postponed {
        let [checks, lags, failures, _] = number.to_le_bytes();
        Postponed { checks, lags, failures }
    }
}

/// Result of adding pushes. Each push is counted once, however many rules want it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AddedPushes {
    /// Pushes that are pending now and were not before.
    pub added: u64,
    /// Pushes that were pending already.
    pub coalesced: u64,
    /// Notifications that had arrived before, by their id.
    pub repeated: u64,
}

/// Returns the id under which a notification of a hook is remembered: bounded, whatever the sender writes. Senders may
/// give the same id to notifications of different pushes.
pub fn hash_push_id(hook: &str, id: &str, repository: &RepositoryName, reference: &PushedReference) -> String {
    let what = match reference {
        PushedReference::Tag(tag, digest) => {
            format!(":{tag}@{}", digest.as_ref().map_or(String::new(), Digest::to_string))
        }
        PushedReference::Manifest(digest) => format!("@{digest}"),
        PushedReference::Unknown => String::new(),
        PushedReference::Deletion => " deletion".to_owned(),
    };
    Digest::sha256(format!("{hook}\n{repository}{what}\n{id}").as_bytes()).hex()[..ID_LENGTH].to_owned()
}

/// Pending pushes of rules.
///
/// # Contract
/// What [`PushInbox::add_pushes`] confirms survives the process. A push is pending once per rule, repository and
/// reference; the digest of the last notification counts. A rule with [`MAX_PENDING_PUSHES`] that are not postponed, or
/// [`MAX_ALL_PUSHES`], gets an entry for the whole rule instead of more. A notification whose id is remembered changes
/// nothing. Removing keeps what has arrived since it was read. A stored push that cannot be read, as one of another version,
/// stays and does not hold up the others.
#[async_trait]
pub trait PushInbox: Send + Sync {
    /// Adds pushes, all in one step.
    async fn add_pushes(&self, pushes: Vec<ReceivedPush>) -> Result<AddedPushes>;

    /// Makes whole rules due.
    async fn add_whole_runs(&self, rules: Vec<PushRule>) -> Result<()>;

    /// Returns the pending pushes of all rules.
    async fn pending_pushes(&self) -> Result<Vec<PendingPush>>;

    /// Returns how many stored pushes the last call of [`PushInbox::pending_pushes`] could not read.
    fn unreadable_pushes(&self) -> u64;

    /// Postpones pushes that have had no notification since they were read, and keeps their `postponed` as it is here. The next
    /// notification makes them due again.
    async fn postpone_pushes(&self, pushes: &[PendingPush], until: Timestamp) -> Result<()>;

    /// Removes pushes that have had no notification since they were read.
    async fn remove_pushes(&self, pushes: &[PendingPush]) -> Result<()>;
}

/// Counts the stored pushes that cannot be read.
#[derive(Debug, Default)]
pub(crate) struct UnreadablePushes(AtomicU64);

impl UnreadablePushes {
    /// Sets their number, and logs one of them.
    pub(crate) fn set(&self, number: u64, example: Option<&str>) {
        self.0.store(number, Ordering::Relaxed);
        if let Some(example) = example {
            let (pushes, example) =
                (pluralize(number, "pending push", "pending pushes"), sanitize_within(example, MAX_NAME_LENGTH));
            let line =
                format!("left {pushes} in the store that this version of imgsync cannot read, such as {example}");
            log_throttle::warn("unreadable pushes", &line);
        }
    }

    pub(crate) fn number(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Returns the key of a pending push in its rule: repository and reference; empty for the whole rule.
pub(crate) fn pending_key(pending: &PendingPush) -> String {
    match &pending.pushed {
        Some((registry, repository, reference)) => reference.name_in(registry, repository),
        None => String::new(),
    }
}

/// Returns the name of the rule that is stored in place of a digest, if the key is that of a whole rule; else "".
pub(crate) fn stored_rule_name(key: &str, digest: &str) -> String {
    if key.is_empty() { digest.to_owned() } else { String::new() }
}

/// Returns the digest of a pushed tag, as it is stored: empty if it is unknown.
pub(crate) fn tag_digest(reference: &PushedReference) -> String {
    match reference {
        PushedReference::Tag(_, Some(digest)) => digest.to_string(),
        _ => String::new(),
    }
}

/// What a key means. `None` for the whole rule; an error for a key that is none.
#[allow(clippy::type_complexity, reason = "that of `PendingPush::pushed`")]
pub(crate) fn parse_push_key(
    key: &str,
    digest: &str,
) -> std::result::Result<Option<(RegistryName, RepositoryName, PushedReference)>, ()> {
    if key.is_empty() {
        return Ok(None);
    }
    if let Some(name) = PushedReference::strip_deletion(key) {
        let (registry, repository) = name.split_once('/').ok_or(())?;
        let place = (registry.parse().map_err(drop)?, repository.parse().map_err(drop)?);
        return Ok(Some((place.0, place.1, PushedReference::Deletion)));
    }
    let (registry, rest) = key.split_once('/').ok_or(())?;
    let (repository, reference) = match (rest.split_once('@'), rest.split_once(':')) {
        (Some((repository, digest)), _) => (repository, PushedReference::Manifest(digest.parse().map_err(drop)?)),
        (None, Some((repository, tag))) => {
            let digest = match digest {
                "" => None,
                digest => Some(digest.parse().map_err(drop)?),
            };
            (repository, PushedReference::Tag(tag.parse().map_err(drop)?, digest))
        }
        (None, None) => (rest, PushedReference::Unknown),
    };
    Ok(Some((registry.parse().map_err(drop)?, repository.parse().map_err(drop)?, reference)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_that_of_one_push() {
        let reference = |tag: &str| PushedReference::Tag(tag.parse().unwrap(), None);
        let hash = |hook: &str, id: &str, repository: &str, tag: &str| {
            hash_push_id(hook, id, &repository.parse().unwrap(), &reference(tag))
        };
        let first = hash("hook", "7", "a", "1");
        assert_eq!(hash("hook", "7", "a", "1"), first);
        for other in [
            hash("other", "7", "a", "1"),
            hash("hook", "8", "a", "1"),
            hash("hook", "7", "b", "1"),
            hash("hook", "7", "a", "2"),
        ] {
            assert_ne!(other, first);
        }
        let unknown = hash_push_id("hook", "7", &"a".parse().unwrap(), &PushedReference::Unknown);
        let deletion = hash_push_id("hook", "7", &"a".parse().unwrap(), &PushedReference::Deletion);
        assert!(unknown != first && unknown != deletion);
    }

    #[test]
    fn a_key_says_what_was_pushed() {
        let (registry, repository) = ("r.example:5000".parse().unwrap(), "a/b".parse().unwrap());
        let digest = Digest::sha256(b"x");
        for reference in [
            PushedReference::Tag("1.0".parse().unwrap(), Some(digest.clone())),
            PushedReference::Tag("1.0".parse().unwrap(), None),
            PushedReference::Manifest(digest),
            PushedReference::Unknown,
            PushedReference::Deletion,
        ] {
            let key = reference.name_in(&registry, &repository);
            let again = parse_push_key(&key, &tag_digest(&reference)).unwrap();
            assert_eq!(again, Some((registry.clone(), repository.clone(), reference)), "{key}");
        }
        assert_eq!(parse_push_key("", ""), Ok(None));
        assert!(parse_push_key("no-slash", "").is_err() && parse_push_key("r.example/A:1", "").is_err());
    }
}
