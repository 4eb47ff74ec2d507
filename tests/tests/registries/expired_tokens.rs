//! Refusals that may mean an expired token, and those that do not.

use std::time::Duration;

use bytes::Bytes;
use imgsync_oci::Digest;
use imgsync_oci::error::{Error, ErrorKind};
use imgsync_registry::{Access, ClientSettings, Repository, SendProgress, StartedUpload, UploadBody};
use imgsync_tests::fault::{Bearer, FaultAction, FaultRegistry, RequestType};

use super::client::{LOGIN, client, repository, settings};

const TOKEN_AGE: Duration = Duration::from_millis(400);

async fn registry() -> (FaultRegistry, Repository) {
    let registry = FaultRegistry::builder().bearer(Bearer::user(LOGIN.0, LOGIN.1)).start().await;
    let client = client(ClientSettings { suspect_token_age: TOKEN_AGE, ..settings(&registry, None) });
    let repository = repository(&client, &registry, "a", Access::Push);
    (registry, repository)
}

/// Uploads a blob as a stream, `wait` after its session was opened.
async fn upload(repository: &Repository, wait: Duration) -> Result<(), Error> {
    let bytes = Bytes::from_static(b"a layer");
    let digest = Digest::sha256(&bytes);
    let StartedUpload::Session(mut session) = repository.start_upload(&digest, None).await? else {
        panic!("no session")
    };
    tokio::time::sleep(wait).await;
    let end = bytes.len() as u64;
    let progress = Box::new(move || SendProgress { bytes: end, is_complete: true, is_locally_stalled: false });
    let part = UploadBody::Stream { body: bytes.into(), progress, offset: 0, end, last: true };
    repository.send_upload(&mut session, part).await
}

#[tokio::test]
async fn a_refusal_at_the_end_of_a_long_upload_is_the_registrys_last_word() {
    for (status, kind) in [(403, ErrorKind::Denied), (400, ErrorKind::Refused)] {
        let (registry, repository) = registry().await;
        let refusal = FaultAction::error(status, "QUOTA");
        registry.on(RequestType::UploadPut).always().act_all([FaultAction::Delay(TOKEN_AGE * 2), refusal]);
        let error = upload(&repository, Duration::ZERO).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains("as the test asked for"), "{error}");
        assert_eq!(registry.count(RequestType::Token), 1, "the token was young when it was sent");
    }
}

#[tokio::test]
async fn a_stream_with_an_old_token_keeps_the_refusal_and_the_next_request_has_a_fresh_one() {
    let (registry, repository) = registry().await;
    registry.on(RequestType::UploadPut).act(FaultAction::error(403, "QUOTA"));
    let error = upload(&repository, TOKEN_AGE * 2).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
    upload(&repository, Duration::ZERO).await.unwrap();
    assert_eq!(registry.count(RequestType::Token), 2);
}

#[tokio::test]
async fn what_can_be_sent_again_is_tried_once_more_with_a_fresh_token() {
    let (registry, repository) = registry().await;
    let digest = Digest::sha256(b"absent");
    repository.head_blob(&digest).await.unwrap();
    tokio::time::sleep(TOKEN_AGE * 2).await;
    let rule = registry.on(RequestType::UploadStart).always().act(FaultAction::error(403, "QUOTA"));
    let error = repository.start_upload(&digest, None).await.unwrap_err();
    assert_eq!((error.kind(), rule.hits(), registry.count(RequestType::Token)), (ErrorKind::Denied, 2, 2), "{error}");
}
