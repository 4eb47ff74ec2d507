//! The store on a real Redis: the contract of all stores, and server-specific behaviour: restarts, data loss, full
//! memory.
//!
//! `IMGSYNC_TEST_STORE=redis://…` runs the contract against that server instead of a new one.

use std::sync::Arc;

use imgsync_config::{STORE_SCHEMES, SecretUrl, StoreUrl};
use imgsync_model::batch::{BatchId, SigningKey};
use imgsync_oci::secret::Secret;
use imgsync_store::contract::StoreUnderTest;
use imgsync_store::{Clock as _, ManualClock, RedisOptions, RedisStore};
use imgsync_tests::RedisServer;

pub(crate) fn secret(url: &str) -> SecretUrl {
    SecretUrl::new(url.parse().unwrap())
}

pub(crate) fn store_url(url: &str) -> StoreUrl {
    StoreUrl::parse(url, &STORE_SCHEMES).unwrap()
}

async fn make() -> StoreUnderTest {
    let (url, server) = match std::env::var("IMGSYNC_TEST_STORE") {
        Ok(url) => (url, None),
        Err(_) => {
            let server = RedisServer::start();
            (server.url(), Some(server))
        }
    };
    let clock = Arc::new(ManualClock::starting_at(jiff::Timestamp::now()));
    let prefix = format!("{}:", BatchId::generate());
    // With a key, since less is done without one.
    let key = Some(SigningKey::new(&Secret::new("the key of this cluster")));
    let options = RedisOptions { prefix, key, clock: Some(clock.clone()), ..RedisOptions::default() };
    let store = RedisStore::connect(&store_url(&url), options).await.unwrap();
    let (moved, put_back) = (clock.clone(), clock.clone());
    StoreUnderTest {
        store: Arc::new(store),
        advance: Box::new(move |time| moved.advance(time)),
        set_back: Box::new(move |time| put_back.set_back(time)),
        now: Box::new(move || clock.now()),
        guard: Box::new(server),
    }
}

imgsync_store::store_contract_tests!(make);
