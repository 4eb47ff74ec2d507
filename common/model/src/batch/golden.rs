//! Golden tests: later releases read what an earlier one left in broker and store. The files hold the exact bytes of
//! version 1.
//!
//! Another program wrote them from the descriptions of the formats, not this code. They never change: a new version
//! adds its own files.

use jiff::Timestamp;

use super::{
    BatchOptions, DecodedMessage, Message, MessageTarget, PlanChunk, Priority, RepositoryLocator, RuleOptions,
    SigningKey, TagLocator, TaskSpec, decode_chunk, encode_chunk,
};
use imgsync_oci::secret::Secret;
use imgsync_oci::{Algorithm, Digest, DigestTagHints};

const MESSAGE: &[u8] = include_bytes!("golden/1-message.json");
const MESSAGE_SIGNATURE: &str = include_str!("golden/1-message.signature");
const REQUEUED: &[u8] = include_bytes!("golden/1-requeued.json");
const REQUEUED_SIGNATURE: &str = include_str!("golden/1-requeued.signature");
const CHUNK: &[u8] = include_bytes!("golden/1-chunk.bin");
const OPTIONS: &[u8] = include_bytes!("golden/1-options.json");

fn place(registry: &str, path: &str, tag: &str) -> TagLocator {
    let home = RepositoryLocator::new(registry.parse().unwrap(), path).unwrap();
    TagLocator { repository: home.into(), tag: tag.parse().unwrap() }
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn message() -> Message {
    Message {
        batch: "01890a5d-ac96-774b-bcce-b302099a8057".parse().unwrap(),
        run: 0,
        rule: 3,
        source: place("gcr.io", "distroless/static", "nonroot"),
        digest: Some(Digest::sha256(b"{}")),
        listed_at: at(1_767_225_600),
        digest_tags: DigestTagHints::default(),
        priority: Priority::Normal,
        chunk: None,
        targets: vec![MessageTarget {
            index: 17,
            locator: place("docker.io", "gcrxio/gcr.io_distroless_static", "nonroot"),
        }],
    }
}

fn requeued() -> Message {
    let target = |index, path, tag| MessageTarget { index, locator: place("registry.example.com", path, tag) };
    Message {
        run: 2,
        rule: 0,
        source: place("localhost:5000", "a/b", "v1.0_x-y"),
        digest: None,
        listed_at: at(1_767_225_601),
        targets: vec![target(0, "mirror/a/b", "v1.0_x-y"), target(u32::MAX, "second/a/b", "1")],
        ..message()
    }
}

#[test]
fn messages_of_version_1_are_read_and_written_and_their_signatures_hold() {
    let key = SigningKey::new(&Secret::new("golden key"));
    for (bytes, signature, message) in
        [(MESSAGE, MESSAGE_SIGNATURE, message()), (REQUEUED, REQUEUED_SIGNATURE, requeued())]
    {
        assert_eq!(Message::decode(bytes), DecodedMessage::Message(message.clone()));
        // A worker of the previous release may read what is written now.
        assert_eq!(String::from_utf8_lossy(&message.encode()), String::from_utf8_lossy(bytes));
        assert_eq!(key.sign(bytes), signature);
        assert!(key.verify(bytes, signature));
    }
}

#[test]
fn a_plan_of_version_1_is_read() {
    let task = |rule, source_tag, digest, target_tag| TaskSpec {
        rule,
        source: place("gcr.io", "distroless/static", source_tag),
        digest,
        target: place("docker.io", "gcrxio/gcr.io_distroless_static", target_tag),
        digest_tags: DigestTagHints::default(),
    };
    let tasks = vec![
        task(3, "nonroot", Some(Digest::sha256(b"{}")), "nonroot"),
        task(3, "latest", Some(Digest::from_bytes(Algorithm::Sha512, b"{}")), "other"),
        task(300, "debug", None, "debug"),
    ];
    let listed_at = at(1_767_225_600);
    assert_eq!(decode_chunk(CHUNK).unwrap(), PlanChunk { listed_at, tasks: tasks.clone() });
    // Another deflate may pack it differently; the first byte tells the version.
    assert_eq!(encode_chunk(listed_at, &tasks, |_| true)[0], 1);
    let mut newer = CHUNK.to_vec();
    newer[0] = 2;
    assert!(decode_chunk(&newer).unwrap_err().to_string().contains("unknown version"));
}

#[test]
#[allow(clippy::needless_update, reason = "options that come later were not there")]
fn options_of_version_1_are_read() {
    let platforms = vec!["linux/amd64".parse().unwrap(), "linux/arm64/v8".parse().unwrap()];
    let wanted = BatchOptions {
        title: "gcr.io/distroless/**".into(),
        rules: vec![
            RuleOptions { platforms, verify_every_seconds: 604_800, ..RuleOptions::default() },
            RuleOptions { verify_every_seconds: 60, ..RuleOptions::default() },
        ],
        force: true,
        timeout_seconds: 600,
        timeout_is_exact: true,
        accounts: [("docker.io".to_owned(), "gcrxio".to_owned())].into(),
        ..BatchOptions::default()
    };
    assert_eq!(BatchOptions::decode(std::str::from_utf8(OPTIONS).unwrap(), "it").unwrap(), wanted);
}
