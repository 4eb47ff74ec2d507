//! Refusals that may mean an expired token, and those that do not.

use std::time::Duration;

use bytes::Bytes;
use imgsync_common::error::{Class, Error};
use imgsync_common::image::Digest;
use imgsync_common::registry::{Access, ClientSettings, Part, Repository, Sent, Started};
use imgsync_tests::fault::{Action, Bearer, FaultRegistry, Kind};

use super::client::{LOGIN, client, repository, settings};

const AGE: Duration = Duration::from_millis(400);

async fn registry() -> (FaultRegistry, Repository) {
    let registry = FaultRegistry::builder().bearer(Bearer::user(LOGIN.0, LOGIN.1)).start().await;
    let client = client(ClientSettings { doubtful_age: AGE, ..settings(&registry, None) });
    let repository = repository(&client, &registry, "a", Access::Push);
    (registry, repository)
}

/// Uploads a blob as a stream, `wait` after its session was opened.
async fn upload(repository: &Repository, wait: Duration) -> Result<(), Error> {
    let bytes = Bytes::from_static(b"a layer");
    let digest = Digest::sha256(&bytes);
    let Started::Session(mut session) = repository.upload_start(&digest, None).await? else { panic!("no session") };
    tokio::time::sleep(wait).await;
    let end = bytes.len() as u64;
    let sent = Box::new(move || Sent { bytes: end, is_all: true, is_held_back: false });
    let part = Part::Stream { body: bytes.into(), sent, offset: 0, end, last: true };
    repository.upload_send(&mut session, part).await
}

#[tokio::test]
async fn a_refusal_at_the_end_of_a_long_upload_is_the_registrys_last_word() {
    for (status, class) in [(403, Class::Denied), (400, Class::Refused)] {
        let (registry, repository) = registry().await;
        let refusal = Action::error(status, "QUOTA");
        registry.on(Kind::UploadPut).always().act_all([Action::Delay(AGE * 2), refusal]);
        let error = upload(&repository, Duration::ZERO).await.unwrap_err();
        assert_eq!(error.class(), class, "{error}");
        assert!(error.to_string().contains("as the test asked for"), "{error}");
        assert_eq!(registry.count(Kind::Token), 1, "the token was young when it was sent");
    }
}

#[tokio::test]
async fn a_stream_with_an_old_token_keeps_the_refusal_and_the_next_request_has_a_fresh_one() {
    let (registry, repository) = registry().await;
    registry.on(Kind::UploadPut).act(Action::error(403, "QUOTA"));
    let error = upload(&repository, AGE * 2).await.unwrap_err();
    assert_eq!(error.class(), Class::Denied, "{error}");
    upload(&repository, Duration::ZERO).await.unwrap();
    assert_eq!(registry.count(Kind::Token), 2);
}

#[tokio::test]
async fn what_can_be_sent_again_is_tried_once_more_with_a_fresh_token() {
    let (registry, repository) = registry().await;
    let digest = Digest::sha256(b"absent");
    repository.blob_head(&digest).await.unwrap();
    tokio::time::sleep(AGE * 2).await;
    let rule = registry.on(Kind::UploadStart).always().act(Action::error(403, "QUOTA"));
    let error = repository.upload_start(&digest, None).await.unwrap_err();
    assert_eq!((error.class(), rule.hits(), registry.count(Kind::Token)), (Class::Denied, 2, 2), "{error}");
}
