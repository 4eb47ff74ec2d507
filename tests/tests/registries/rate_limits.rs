//! Several processes, here clients with a shared store, at registries that limit requests.

use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use futures_util::future::join_all;
use imgsync_oci::error::ErrorKind;
use imgsync_oci::retry::RetryPolicy;
use imgsync_oci::secret::Secret;
use imgsync_oci::{Descriptor, MediaType};
use imgsync_registry::credentials::{Credential, CredentialEnvironment};
use imgsync_registry::{Access, Client, ClientSettings, ManifestRef, QuotaReserve, RegistrySettings, SharedRateLimit};
use imgsync_store::{SqliteStore, SystemClock};
use imgsync_tests::fault::{AuthMode, FaultAction, FaultRegistry, RequestType};
use imgsync_tests::images;

use crate::client::{client, repository};

/// Creates clients, each like a process of its own, that share rate limits through a store.
async fn clients(registry: &FaultRegistry, number: usize, one: RegistrySettings) -> Vec<Client> {
    let store = Arc::new(SqliteStore::in_memory(Arc::new(SystemClock)).await.unwrap());
    let settings = ClientSettings {
        registries: [(registry.host().parse().unwrap(), one)].into(),
        shared_rate_limit: Some(SharedRateLimit { store, slow_start: true, exclusive: false }),
        retry: RetryPolicy { attempts: 20, max_retry_after: Duration::from_secs(30), ..RetryPolicy::default() },
        ..ClientSettings::default()
    };
    (0..number).map(|_| client(settings.clone())).collect()
}

/// Each client requests the tag this often, two requests at a time.
async fn ask(clients: &[Client], registry: &FaultRegistry, times: usize) {
    let asking = clients.iter().flat_map(|client| [client, client]).map(|client| async move {
        let repository = repository(client, registry, "a", Access::Pull);
        for _ in 0..times.div_ceil(2) {
            repository.head_manifest(&ManifestRef::Tag("1".parse().unwrap())).await.unwrap().unwrap();
        }
    });
    join_all(asking).await;
}

/// Requests that a client may send before it hears from the store that another was refused. It pauses a millisecond
/// between them.
const MAX_REQUESTS_UNTIL_HEARD: u32 = 500;

fn refused(registry: &FaultRegistry) -> u64 {
    registry.count_where(|request| request.status == Some(429))
}

#[tokio::test]
async fn a_configured_rate_limit_is_shared_by_all_clients() {
    let registry = FaultRegistry::builder().rate((20.0, 20.0)).start().await;
    registry.push("a", "1", &images::single("pace"));
    let one = RegistrySettings { requests_per_second: Some(20.0), ..RegistrySettings::default() };
    let clients = clients(&registry, 8, one).await;
    ask(&clients, &registry, 20).await;
    let (total, refused) = (registry.total_with_pings_and_tokens(), refused(&registry));
    assert!(refused * 100 <= total, "{refused} of {total} were refused");
}

#[tokio::test]
async fn an_unknown_rate_limit_refuses_many_processes_no_more_than_one() {
    let mut refusals = Vec::new();
    for number in [1, 8] {
        let registry = FaultRegistry::builder().rate((20.0, 20.0)).start().await;
        registry.push("a", "1", &images::single("pace"));
        let clients = clients(&registry, number, RegistrySettings::default()).await;
        ask(&clients, &registry, 160 / number).await;
        assert!(refused(&registry) > 0, "the limit was met");
        refusals.push(refused(&registry));
    }
    // When the limit is met first, each of the eight clients may have two requests open. Clients that share nothing are
    // refused about 30 times.
    assert!(refusals[1] <= refusals[0] + 16, "{refusals:?}");
}

#[tokio::test]
async fn a_rate_limit_seen_by_one_client_holds_for_all_and_a_long_wait_is_reported_at_once() {
    let registry = FaultRegistry::start().await;
    registry.push("a", "1", &images::single("pace"));
    let clients = clients(&registry, 2, RegistrySettings::default()).await;
    let head = async |client: &Client| {
        repository(client, &registry, "a", Access::Pull).head_manifest(&ManifestRef::Tag("1".parse().unwrap())).await
    };
    head(&clients[1]).await.unwrap();
    registry.on(RequestType::ManifestHead).act(FaultAction::too_many_requests("2"));
    let started = Instant::now();
    head(&clients[0]).await.unwrap();
    assert!(started.elapsed() >= Duration::from_secs(2));

    registry.on(RequestType::ManifestHead).act(FaultAction::too_many_requests("2"));
    let (first, ()) = tokio::join!(head(&clients[0]), async {
        registry.wait_until(|registry| refused(registry) == 2, Duration::from_secs(10)).await;
        for sent in 0.. {
            let asked = Instant::now();
            head(&clients[1]).await.unwrap();
            if asked.elapsed() > Duration::from_secs(1) {
                break;
            }
            assert!(sent < MAX_REQUESTS_UNTIL_HEARD, "the other has not heard of it");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    first.unwrap();

    registry.on(RequestType::ManifestHead).act(FaultAction::too_many_requests("120"));
    let first = head(&clients[0]).await.unwrap_err();
    assert_eq!((first.kind(), first.registry().unwrap().to_string()), (ErrorKind::RateLimited, registry.host()));
    registry.clear_requests();
    for client in &clients {
        let mut sent = 0;
        let error = loop {
            match head(client).await {
                Err(error) => break error,
                Ok(_) => sent += 1,
            }
            assert!(sent < MAX_REQUESTS_UNTIL_HEARD, "the other has not heard of it");
            tokio::time::sleep(Duration::from_millis(1)).await;
        };
        assert_eq!(error.kind(), ErrorKind::RateLimited);
        assert!(error.retry_after().unwrap() > Duration::from_secs(110), "{:?}", error.retry_after());
    }
}

#[tokio::test]
async fn a_client_without_a_shared_store_obeys_a_rate_limit() {
    let registry = FaultRegistry::builder().rate((20.0, 20.0)).start().await;
    registry.push("a", "1", &images::single("pace"));
    let one = RegistrySettings { requests_per_second: Some(20.0), ..RegistrySettings::default() };
    let settings =
        ClientSettings { registries: [(registry.host().parse().unwrap(), one)].into(), ..ClientSettings::default() };
    let alone = Client::new(settings, CredentialEnvironment::default());
    ask(&[alone.clone(), alone], &registry, 30).await;
    assert_eq!(refused(&registry), 0);
}

#[tokio::test]
async fn no_more_requests_are_open_than_the_concurrency_limit() {
    let registry = FaultRegistry::builder().latency(Duration::from_millis(20)).start().await;
    let image = images::single("pace");
    registry.push("a", "1", &image);
    let one = RegistrySettings { concurrency: Some(3), ..RegistrySettings::default() };
    let settings =
        ClientSettings { registries: [(registry.host().parse().unwrap(), one)].into(), ..ClientSettings::default() };
    let alone = [client(settings)];
    let heads = join_all((0..10).map(|_| ask(&alone, &registry, 4)));
    heads.await;
    assert_eq!(registry.peak_in_flight(), 3);
}

#[tokio::test]
async fn all_processes_together_stay_within_the_concurrency_limit() {
    let registry = FaultRegistry::builder().latency(Duration::from_millis(20)).start().await;
    registry.push("a", "1", &images::single("pace"));
    let one = RegistrySettings { concurrency: Some(3), ..RegistrySettings::default() };
    let clients = clients(&registry, 4, one).await;
    // More than there are permits, and all complete.
    join_all((0..5).map(|_| ask(&clients, &registry, 6))).await;
    assert_eq!(registry.peak_in_flight(), 3);
    for client in &clients {
        client.release_shared().await;
    }
    // Released permits are available to a single client.
    registry.clear_requests();
    ask(&clients[..1], &registry, 10).await;
    assert_eq!(registry.total(), 10);
}

/// Creates a client of a registry with a pull quota and several users.
fn client_with_quota(registry: &FaultRegistry, users: &[&str], reserve: QuotaReserve) -> Client {
    let user = |name: &&str| Credential::Basic { username: (*name).to_owned(), password: Secret::new("secret") };
    let one = RegistrySettings {
        pull_credentials: users.iter().map(user).collect(),
        pull_reserve: reserve,
        ..RegistrySettings::default()
    };
    client(ClientSettings { registries: [(registry.host().parse().unwrap(), one)].into(), ..ClientSettings::default() })
}

/// Pulls one manifest by GET, as each task does.
async fn pull(client: &Client, registry: &FaultRegistry) -> imgsync_oci::error::Result<()> {
    let repository = repository(client, registry, "a", Access::Pull);
    repository.get_manifest(&ManifestRef::Tag("1".parse().unwrap())).await.map(drop)
}

#[tokio::test]
async fn a_quota_is_waited_for_before_it_is_met() {
    let registry = FaultRegistry::builder().pulls((5, Duration::from_secs(2))).start().await;
    registry.push("a", "1", &images::single("pace"));
    let client = client_with_quota(&registry, &[], QuotaReserve::Count(2));
    let host = registry.host().parse().unwrap();
    for _ in 0..3 {
        assert_eq!(client.rate_limit_hold(&host, true), None);
        pull(&client, &registry).await.unwrap();
    }
    let hold = client.rate_limit_hold(&host, true).unwrap();
    assert_eq!(hold.reason, "has 2 of 5 pulls left");
    assert!(hold.wait <= Duration::from_secs(2), "{hold:?}");
    assert_eq!(client.rate_limit_hold(&host, false), None, "it can be pushed to");
    // Started work continues with the reserve, and then waits.
    for _ in 0..9 {
        pull(&client, &registry).await.unwrap();
    }
    assert_eq!((registry.total(), refused(&registry)), (12, 0));
}

#[tokio::test]
async fn credentials_take_turns_and_one_whose_quota_is_used_up_is_skipped() {
    let registry = FaultRegistry::builder().auth(AuthMode::AnyUser).pulls((4, Duration::from_secs(600))).start().await;
    registry.push("a", "1", &images::single("pace"));
    let client = client_with_quota(&registry, &["one", "two", "three"], QuotaReserve::default());
    for _ in 0..12 {
        pull(&client, &registry).await.unwrap();
    }
    let by = |user: &str| {
        let header = format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(format!("{user}:secret")));
        registry.count_where(|request| request.status == Some(200) && request.header("authorization") == Some(&header))
    };
    assert_eq!([by("one"), by("two"), by("three")], [4, 4, 4]);
    assert_eq!(refused(&registry), 0);
    let error = pull(&client, &registry).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::RateLimited);
    assert!(error.retry_after().unwrap() > Duration::from_secs(590), "{error}");
    assert!(error.to_string().contains("has 0 of 4 pulls left"), "{error}");
    assert_eq!(refused(&registry), 0, "it is not asked in vain");
}

#[tokio::test]
async fn anonymous_quotas_are_kept_by_the_address_that_asks() {
    let registry = FaultRegistry::builder().pulls((4, Duration::from_secs(600))).start().await;
    registry.push("a", "1", &images::single("pace"));
    let store = Arc::new(SqliteStore::in_memory(Arc::new(SystemClock)).await.unwrap());
    let behind = |egress: &str| {
        let one = RegistrySettings { egress: Some(egress.into()), ..RegistrySettings::default() };
        client(ClientSettings {
            registries: [(registry.host().parse().unwrap(), one)].into(),
            shared_rate_limit: Some(SharedRateLimit { store: store.clone(), slow_start: false, exclusive: false }),
            ..ClientSettings::default()
        })
    };
    let first_client = behind("office");
    for _ in 0..4 {
        pull(&first_client, &registry).await.unwrap();
    }
    // A later client behind the same address has heard of it; one behind another address has its own quota.
    let asked = registry.total();
    assert_eq!(pull(&behind("office"), &registry).await.unwrap_err().kind(), ErrorKind::RateLimited);
    assert_eq!(registry.total(), asked, "it is not asked in vain");
    let host = registry.host().parse().unwrap();
    let home = behind("home");
    assert_ne!(home.accounts(&host, true).await, first_client.accounts(&host, true).await);
    let refused_there = pull(&home, &registry).await.unwrap_err();
    assert_eq!(refused_there.kind(), ErrorKind::RateLimited);
    assert_eq!(registry.total(), asked + 1, "it asks for itself: this registry counts both as one");
}

#[tokio::test]
async fn blobs_are_read_no_faster_than_the_bandwidth_limit() {
    let registry = FaultRegistry::start().await;
    let image = imgsync_tests::images::TestImage::single("slow")
        .layer(imgsync_tests::images::Layer::Synthetic(1 << 20))
        .build();
    registry.push("a", "1", &image);
    let one = RegistrySettings { bandwidth: Some(512 << 10), ..RegistrySettings::default() };
    let client = client(ClientSettings {
        registries: [(registry.host().parse().unwrap(), one)].into(),
        ..ClientSettings::default()
    });
    let digest: imgsync_oci::Digest = image.largest_blob().parse().unwrap();
    let blob = Descriptor::new(MediaType::new("application/octet-stream"), digest, 1 << 20);
    let started = Instant::now();
    let mut opened = repository(&client, &registry, "a", Access::Pull).open_blob(&blob, 0).await.unwrap();
    let mut bytes = 0;
    while let Some(chunk) = opened.stream.next_chunk().await.unwrap() {
        bytes += chunk.len();
    }
    assert_eq!((bytes, client.bytes_moved()), (1 << 20, 1 << 20));
    assert!(started.elapsed() > Duration::from_millis(1500), "{:?}", started.elapsed());
}
