//! The message that carries a task to a worker, version 1.
//!
//! A message names one source tag and all its target tags on one route, so that the source is read once for all. It
//! contains no secrets and no options: the batch has the options, by rule number.

use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{BatchId, ChunkMark, Endpoint, Priority, RepositoryLocator, Route, TagLocator, Task, TaskRef, TaskSpec};
use imgsync_oci::{Digest, DigestTagHints, Tag};

/// Version that is written.
pub const VERSION: u32 = 1;

/// Maximum size of a message in bytes; a typical one has about 400.
pub const MAX_MESSAGE_BYTES: usize = 256 * 1024;

/// The copies of one source tag on one route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// The batch.
    pub batch: BatchId,
    /// Number of times that its tasks were requeued.
    pub run: u32,
    /// Index of the rule in the batch's rules.
    pub rule: u32,
    /// The tag to copy.
    pub source: TagLocator,
    /// The digest of the source tag when it was listed, if the listing contained it.
    pub digest: Option<Digest>,
    /// Time of the listing, to the second.
    pub listed_at: Timestamp,
    /// What the listing showed of digest tags.
    pub digest_tags: DigestTagHints,
    /// The priority.
    pub priority: Priority,
    /// The chunk of the plan that has its tasks, if the store tells chunks apart.
    pub chunk: Option<ChunkMark>,
    /// The target tags: at least one.
    pub targets: Vec<MessageTarget>,
}

impl Message {
    /// Returns the digest by which the source is read, if it was named by digest; see [`TaskSpec::pinned_digest`].
    pub fn pinned_digest(&self) -> Option<&Digest> {
        self.digest.as_ref().filter(|digest| digest.is_pinned_by(&self.source.tag))
    }
}

/// A task of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MessageTarget {
    /// Index of the task in the batch.
    pub index: u32,
    /// The target tag.
    pub locator: TagLocator,
}

/// Result of decoding a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DecodedMessage {
    /// A message.
    Message(Message),
    /// A message of this version, which needs a newer worker.
    NewerVersion(u64),
    /// Not a message, with the reason.
    Invalid(String),
}

#[derive(Serialize, Deserialize)]
struct MessageV1 {
    version: u32,
    batch: BatchId,
    run: u32,
    rule: u32,
    registry: Endpoint,
    repository: String,
    tag: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    digest: Option<Digest>,
    listed: i64,
    #[serde(default, skip_serializing_if = "is_zero")]
    digest_tags: u8,
    #[serde(default, skip_serializing_if = "Priority::is_normal")]
    priority: Priority,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    chunk: Option<ChunkMark>,
    targets: Vec<TargetV1>,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde gives it so")]
fn is_zero(bits: &u8) -> bool {
    *bits == 0
}

#[derive(Serialize, Deserialize)]
struct TargetV1 {
    index: u32,
    registry: Endpoint,
    repository: String,
    tag: String,
}

#[derive(Deserialize)]
struct VersionProbe {
    version: u64,
}

impl Message {
    /// Groups tasks of one batch, each with its run, from a listing of this time into messages of normal priority:
    /// neighbours with the same source tag, rule, run and route share a message.
    pub fn for_tasks(
        batch: BatchId,
        listed_at: Timestamp,
        tasks: impl IntoIterator<Item = (u32, Task)>,
        route_of: impl Fn(&Task) -> Route,
    ) -> Vec<(Route, Message)> {
        let mut messages: Vec<(Route, Message)> = Vec::new();
        // Neighbours alternate between routes where a rule has several targets: look back over this source tag's own.
        let mut of_this_source = 0;
        for (run, task) in tasks {
            let route = route_of(&task);
            let Task { index, spec } = task;
            let target = MessageTarget { index, locator: spec.target.clone() };
            let same_source = messages.last().is_some_and(|(_, last)| {
                (&last.source, last.rule, &last.digest, last.digest_tags)
                    == (&spec.source, spec.rule, &spec.digest, spec.digest_tags)
            });
            if !same_source {
                of_this_source = messages.len();
            }
            let same = messages[of_this_source..].iter_mut().find(|(its, message)| *its == route && message.run == run);
            match same {
                Some((_, message)) => message.targets.push(target),
                None => {
                    let TaskSpec { rule, source, digest, digest_tags, .. } = spec;
                    let targets = vec![target];
                    let priority = Priority::default();
                    let chunk = None;
                    let message =
                        Message { batch, run, rule, source, digest, listed_at, digest_tags, priority, chunk, targets };
                    messages.push((route, message));
                }
            }
        }
        messages
    }

    /// Iterates over the tasks of the message.
    pub fn task_refs(&self) -> impl Iterator<Item = TaskRef> + '_ {
        self.targets.iter().map(|target| TaskRef { batch: self.batch, run: self.run, index: target.index })
    }

    /// Encodes the message in the current version.
    pub fn encode(&self) -> Vec<u8> {
        let target = |target: &MessageTarget| TargetV1 {
            index: target.index,
            registry: target.locator.repository.endpoint().clone(),
            repository: target.locator.repository.path().to_owned(),
            tag: target.locator.tag.as_str().to_owned(),
        };
        let message = MessageV1 {
            version: VERSION,
            batch: self.batch,
            run: self.run,
            rule: self.rule,
            registry: self.source.repository.endpoint().clone(),
            repository: self.source.repository.path().to_owned(),
            tag: self.source.tag.as_str().to_owned(),
            digest: self.digest.clone(),
            listed: self.listed_at.as_second(),
            digest_tags: self.digest_tags.bits(),
            priority: self.priority,
            chunk: self.chunk,
            targets: self.targets.iter().map(target).collect(),
        };
        // Writing texts and numbers to memory does not fail.
        #[allow(clippy::expect_used)]
        serde_json::to_vec(&message).expect("a message is plain JSON")
    }

    /// Decodes external bytes.
    pub fn decode(body: &[u8]) -> DecodedMessage {
        if body.len() > MAX_MESSAGE_BYTES {
            return DecodedMessage::Invalid(format!("{} bytes, {MAX_MESSAGE_BYTES} are allowed", body.len()));
        }
        match serde_json::from_slice::<VersionProbe>(body) {
            Ok(VersionProbe { version: 1 }) => {}
            Ok(VersionProbe { version: 0 }) => return DecodedMessage::Invalid("invalid version 0".into()),
            Ok(VersionProbe { version }) => return DecodedMessage::NewerVersion(version),
            Err(error) => return DecodedMessage::Invalid(format!("invalid message: {error}")),
        }
        match serde_json::from_slice::<MessageV1>(body) {
            Ok(message) => message.into_message().map_or_else(DecodedMessage::Invalid, DecodedMessage::Message),
            Err(error) => DecodedMessage::Invalid(format!("invalid message of version 1: {error}")),
        }
    }
}

impl MessageV1 {
    fn into_message(self) -> Result<Message, String> {
        if self.targets.is_empty() {
            return Err("no targets".into());
        }
        let targets = self.targets.into_iter().map(|target| {
            Ok(MessageTarget {
                index: target.index,
                locator: tag_locator(target.registry, &target.repository, &target.tag)?,
            })
        });
        Ok(Message {
            batch: self.batch,
            run: self.run,
            rule: self.rule,
            source: tag_locator(self.registry, &self.repository, &self.tag)?,
            digest: self.digest,
            listed_at: Timestamp::from_second(self.listed).map_err(|error| error.to_string())?,
            digest_tags: DigestTagHints::from_bits(self.digest_tags),
            priority: self.priority,
            chunk: self.chunk,
            targets: targets.collect::<Result<_, String>>()?,
        })
    }
}

fn tag_locator(end: Endpoint, path: &str, tag: &str) -> Result<TagLocator, String> {
    let home = RepositoryLocator::new(end, path).map_err(|error| error.to_string())?;
    let tag: Tag = tag.parse().map_err(|error| format!("{error}"))?;
    Ok(TagLocator { repository: Arc::new(home), tag })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn somewhere(end: &str, path: &str, tag: &str) -> TagLocator {
        tag_locator(end.parse().unwrap(), path, tag).unwrap()
    }

    fn message() -> Message {
        Message {
            batch: "01890a5d-ac96-774b-bcce-b302099a8057".parse().unwrap(),
            run: 0,
            rule: 3,
            source: somewhere("gcr.io", "distroless/static", "nonroot"),
            digest: Some(Digest::sha256(b"{}")),
            listed_at: Timestamp::from_second(1_767_225_600).unwrap(),
            digest_tags: DigestTagHints::default(),
            priority: Priority::Normal,
            chunk: None,
            targets: vec![MessageTarget {
                index: 17,
                locator: somewhere("docker.io", "gcrxio/gcr.io_distroless_static", "nonroot"),
            }],
        }
    }

    const GOLDEN: &str = concat!(
        r#"{"version":1,"batch":"01890a5d-ac96-774b-bcce-b302099a8057","run":0,"rule":3,"registry":"gcr.io","#,
        r#""repository":"distroless/static","tag":"nonroot","#,
        r#""digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","listed":1767225600,"#,
        r#""targets":[{"index":17,"registry":"docker.io","repository":"gcrxio/gcr.io_distroless_static","tag":"nonroot"}]}"#
    );

    #[test]
    fn version_1_is_these_bytes_for_ever() {
        assert_eq!(String::from_utf8(message().encode()).unwrap(), GOLDEN);
        assert!(GOLDEN.len() < 450);
        assert_eq!(Message::decode(GOLDEN.as_bytes()), DecodedMessage::Message(message()));
    }

    #[test]
    fn a_message_that_is_not_of_normal_priority_says_so() {
        for priority in [Priority::High, Priority::Low] {
            let message = Message { priority, ..message() };
            let body = String::from_utf8(message.encode()).unwrap();
            assert!(body.contains(&format!("\"priority\":\"{priority}\"")), "{body}");
            assert_eq!(Message::decode(body.as_bytes()), DecodedMessage::Message(message));
        }
    }

    #[test]
    fn a_message_names_the_chunk_of_its_tasks() {
        let message = Message { chunk: Some(ChunkMark::new(3, 1_500, u32::MAX)), ..message() };
        let body = String::from_utf8(message.encode()).unwrap();
        assert!(body.contains(r#""chunk":[3,1499]"#), "{body}");
        assert_eq!(Message::decode(body.as_bytes()), DecodedMessage::Message(message));
    }

    #[test]
    fn a_newer_version_is_told_from_garbage() {
        assert_eq!(Message::decode(br#"{"version":2,"all":"else","differs":[]}"#), DecodedMessage::NewerVersion(2));
        assert_eq!(Message::decode(br#"{"version":18446744073709551615}"#), DecodedMessage::NewerVersion(u64::MAX));
        let mut added = GOLDEN.replace("\"run\":0", "\"run\":0,\"added\":{\"later\":1}");
        assert_eq!(Message::decode(added.as_bytes()), DecodedMessage::Message(message()), "what is added does no harm");
        added.truncate(added.len() - 1);
        for (body, reason) in [
            ("", "invalid message"),
            ("hello", "invalid message"),
            ("{}", "version"),
            (r#"{"version":"1"}"#, "invalid message"),
            (r#"{"version":0}"#, "version 0"),
            (r#"{"version":1}"#, "version 1"),
            (&added, "invalid message"),
            (&GOLDEN.replace("\"nonroot\"", "\"no tag\""), "tag"),
            (&GOLDEN.replace("distroless/static", "../etc"), "repository"),
            (&GOLDEN.replace("sha256:4", "md5:4"), "digest"),
            (&format!("{}[]}}", GOLDEN.split_once('[').unwrap().0), "no targets"),
            (&" ".repeat(MAX_MESSAGE_BYTES + 1), "bytes"),
        ] {
            match Message::decode(body.as_bytes()) {
                DecodedMessage::Invalid(why) => assert!(why.contains(reason), "{why}"),
                other => panic!("{body}: {other:?}"),
            }
        }
    }

    #[test]
    fn one_source_tag_is_one_message_on_each_route() {
        let task = |index, tag: &str, end: &str, path: &str| {
            let (source, target) = (somewhere("gcr.io", "a", tag), somewhere(end, path, tag));
            (
                0,
                Task {
                    index,
                    spec: TaskSpec { rule: 0, source, digest: None, target, digest_tags: DigestTagHints::default() },
                },
            )
        };
        let tasks = [
            task(0, "1", "docker.io", "x/a"),
            task(1, "1", "quay.io", "x/a"),
            task(2, "1", "docker.io", "y/a"),
            task(3, "2", "docker.io", "x/a"),
        ];
        let route = |task: &Task| {
            Route::anonymous(
                task.spec.source.repository.endpoint().clone(),
                task.spec.target.repository.endpoint().clone(),
            )
        };
        let messages = Message::for_tasks(BatchId::generate(), Timestamp::UNIX_EPOCH, tasks, route);
        let indexes: Vec<(String, Vec<u32>)> = messages
            .iter()
            .map(|(route, message)| (route.to_string(), message.targets.iter().map(|target| target.index).collect()))
            .collect();
        let expected = [("gcr.io>docker.io", vec![0, 2]), ("gcr.io>quay.io", vec![1]), ("gcr.io>docker.io", vec![3])];
        assert_eq!(indexes, expected.map(|(route, indexes)| (route.to_owned(), indexes)));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_decoder_panic(body: Vec<u8>, cut in 0..GOLDEN.len(), with: u8) {
            Message::decode(&body);
            let mut near = GOLDEN.as_bytes().to_vec();
            near[cut] = with;
            Message::decode(&near);
        }
    }
}
