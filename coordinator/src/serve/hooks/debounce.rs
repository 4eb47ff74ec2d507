//! When pushes are copied. The first one of a repository that was quiet is due at once; further ones are due once the
//! repository is quiet again, or after a maximum time.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use imgsync_model::batch::PushedReference;
use imgsync_oci::DigestTag;
use imgsync_store::PendingPush;

/// Time without notifications after which a repository is quiet.
pub(crate) const QUIET_TIME: Duration = Duration::from_secs(5);
/// Time after which the pushes of a repository that never gets quiet are due.
pub(crate) const MAX_DELAY: Duration = Duration::from_secs(30);

/// A repository of a rule; without a name, the whole rule.
type Key = (String, String);

/// Tracks the notifications of repositories by this process's clock, which those of other processes need not agree with.
#[derive(Debug, Default)]
pub(super) struct Debounce {
    groups: HashMap<Key, Group>,
    /// When tags were last pushed to repositories that may not be quiet yet.
    last_tags: HashMap<Key, Instant>,
}

/// Pending pushes of a repository.
#[derive(Debug)]
struct Group {
    notifications: u64,
    tag_notifications: u64,
    first_seen: Instant,
    last_change: Instant,
    is_due: bool,
}

impl Debounce {
    /// Returns which of the pending pushes are due.
    pub(super) fn find_due<'p>(&mut self, pending: &'p [PendingPush], now: Instant) -> Vec<&'p PendingPush> {
        let mut counts: HashMap<Key, (u64, u64)> = HashMap::new();
        for push in pending {
            let (all, tags) = counts.entry(key(push)).or_default();
            *all += push.notifications;
            *tags += if begins_at_once(push) { push.notifications } else { 0 };
        }
        self.groups.retain(|key, _| counts.contains_key(key));
        self.last_tags.retain(|_, at| now.duration_since(*at) < QUIET_TIME);
        let mut due: HashSet<Key> = HashSet::new();
        for (key, (all, tags)) in counts {
            let was_quiet = !self.last_tags.contains_key(&key);
            let group = self.groups.entry(key.clone()).or_insert(Group {
                notifications: 0,
                tag_notifications: 0,
                first_seen: now,
                last_change: now,
                is_due: false,
            });
            if group.notifications != all {
                (group.notifications, group.last_change) = (all, now);
            }
            if group.tag_notifications != tags {
                group.is_due |= was_quiet;
                group.tag_notifications = tags;
                self.last_tags.insert(key.clone(), now);
            }
            let is_quiet = now.duration_since(group.last_change) >= QUIET_TIME;
            group.is_due |= is_quiet || now.duration_since(group.first_seen) >= MAX_DELAY;
            if group.is_due {
                due.insert(key);
            }
        }
        pending.iter().filter(|push| due.contains(&key(push))).collect()
    }

    /// Forgets pushes that are being copied.
    pub(super) fn remove(&mut self, pushes: &[PendingPush]) {
        for push in pushes {
            self.groups.remove(&key(push));
        }
    }
}

fn key(push: &PendingPush) -> Key {
    let pushed = push.pushed.as_ref();
    (push.rule.clone(), pushed.map_or(String::new(), |(registry, repository, _)| format!("{registry}/{repository}")))
}

/// Whether a push may begin a batch at once. What belongs to an image comes before or after its tag.
fn begins_at_once(push: &PendingPush) -> bool {
    match &push.pushed {
        Some((_, _, PushedReference::Tag(tag, _))) => DigestTag::parse_tag(tag.as_str()).is_none(),
        Some((_, _, PushedReference::Unknown)) => true,
        Some((_, _, PushedReference::Manifest(_) | PushedReference::Deletion)) | None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use imgsync_oci::Digest;
    use imgsync_store::Postponed;
    use jiff::Timestamp;

    fn push(repository: &str, tag: &str, notifications: u64) -> PendingPush {
        let reference = match tag.strip_prefix('@') {
            Some(content) => PushedReference::Manifest(Digest::sha256(content.as_bytes())),
            None => PushedReference::Tag(tag.parse().unwrap(), None),
        };
        PendingPush {
            rule: "rule".to_owned(),
            rule_name: String::new(),
            pushed: Some(("r.example".parse().unwrap(), repository.parse().unwrap(), reference)),
            first_at: Timestamp::UNIX_EPOCH,
            last_at: Timestamp::UNIX_EPOCH,
            notifications,
            not_before: None,
            postponed: Postponed::default(),
        }
    }

    #[test]
    fn the_first_tag_is_due_at_once_and_further_ones_when_the_repository_is_quiet() {
        let (mut debounce, began) = (Debounce::default(), Instant::now());
        let at = |millis: u64| began + Duration::from_millis(millis);
        let mut due = |pending: &[PendingPush], millis: u64| -> Vec<PendingPush> {
            let due: Vec<_> = debounce.find_due(pending, at(millis)).into_iter().cloned().collect();
            debounce.remove(&due);
            due
        };
        let first = [push("a", "1", 1)];
        assert_eq!(due(&first, 0), first);
        let second = [push("a", "2", 1)];
        assert_eq!(due(&second, 1_000), []);
        assert_eq!(due(&second, 5_900), []);
        let other = [push("a", "2", 1), push("b", "1", 1)];
        assert_eq!(due(&other, 5_950), [push("b", "1", 1)], "repositories do not wait for each other");
        assert_eq!(due(&second, 6_000), second);
        let third = [push("a", "3", 1)];
        assert_eq!(due(&third, 6_100), third, "it was quiet for 5 s");
        // Never quiet.
        let mut busy = 6_500;
        while busy < 36_500 {
            assert_eq!(due(&[push("a", "4", busy)], busy), []);
            busy += 2_000;
        }
        assert_eq!(due(&[push("a", "4", busy)], busy).len(), 1);
    }

    #[test]
    fn the_parts_of_an_image_do_not_delay_its_tag() {
        let (mut debounce, now) = (Debounce::default(), Instant::now());
        let parts = [push("a", "@x", 1), push("a", "@y", 1)];
        assert!(debounce.find_due(&parts, now).is_empty());
        let whole = [push("a", "@x", 1), push("a", "@y", 1), push("a", "1", 1)];
        assert_eq!(debounce.find_due(&whole, now).len(), 3, "the tag takes them with it");
        debounce.remove(&whole);
        let tag = format!("sha256-{}.sig", "0".repeat(64));
        let signature = [push("a", &tag, 1)];
        assert!(debounce.find_due(&signature, now + QUIET_TIME).is_empty());
        assert_eq!(debounce.find_due(&signature, now + 2 * QUIET_TIME).len(), 1);
    }

    #[test]
    fn a_whole_rule_waits_for_the_end_of_a_storm() {
        let (mut debounce, began) = (Debounce::default(), Instant::now());
        let whole = |notifications: u64| [PendingPush { pushed: None, ..push("a", "1", notifications) }];
        let mut due = |notifications: u64, seconds: u64| {
            !debounce.find_due(&whole(notifications), began + Duration::from_secs(seconds)).is_empty()
        };
        assert!(!due(1, 0) && !due(500, 4) && !due(900, 8) && !due(900, 12));
        assert!(due(900, 13));
    }

    #[test]
    fn what_is_due_stays_due_until_its_batch_begins() {
        let (mut debounce, now) = (Debounce::default(), Instant::now());
        assert_eq!(debounce.find_due(&[push("a", "1", 1)], now).len(), 1);
        assert_eq!(debounce.find_due(&[push("a", "1", 1)], now).len(), 1, "another batch was running");
        let more = [push("a", "1", 2), push("a", "2", 1)];
        assert_eq!(debounce.find_due(&more, now).len(), 2);
    }
}
