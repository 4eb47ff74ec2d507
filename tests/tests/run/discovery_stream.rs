//! The stream of repositories during discovery: in order of completion, no faster than it is polled.

use std::sync::Arc;
use std::time::Duration;

use imgsync::discovery::{
    Discovery, DiscoveryItem, DiscoveryOptions, RepositoryListing, RepositoryOrder, discover, list_repository,
};
use imgsync_oci::error::ErrorKind;
use imgsync_registry::credentials::CredentialEnvironment;
use imgsync_registry::{Access, Client, ClientSettings, Context, TrafficCounters};
use imgsync_tests::FaultRegistry;
use imgsync_tests::fault::{FaultAction, RequestMatcher, RequestType};
use imgsync_tests::images;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::put_tags;

const WAIT_TIMEOUT: Duration = Duration::from_secs(20);

fn client() -> Client {
    Client::new(ClientSettings::default(), CredentialEnvironment::default())
}

fn stream(registry: &FaultRegistry, query_limit: usize, order: RepositoryOrder) -> (Discovery, Context) {
    let context = Context::default();
    let pattern = format!("{}/a/*", registry.host()).parse().unwrap();
    (discover(&client(), &pattern, DiscoveryOptions { query_limit, order }, &context, &TrafficCounters::new()), context)
}

async fn next(stream: &mut Discovery) -> RepositoryListing {
    match timeout(WAIT_TIMEOUT, stream.next()).await.expect("it comes").unwrap().expect("it is not over") {
        DiscoveryItem::Listed(listing) => listing,
        DiscoveryItem::Failed(unlisted) => panic!("{}", unlisted.error),
    }
}

async fn names(stream: &mut Discovery, count: usize) -> Vec<String> {
    let mut names = Vec::new();
    for _ in 0..count {
        names.push(next(stream).await.repository.as_str().trim_start_matches("a/").to_owned());
    }
    names
}

async fn registry_of(names: &[&str]) -> FaultRegistry {
    let registry = FaultRegistry::start().await;
    for name in names {
        put_tags(&registry, &format!("a/{name}"), ["1"]);
    }
    registry
}

#[tokio::test]
async fn a_slow_repository_keeps_no_other_back() {
    let registry = registry_of(&["a", "b", "c", "d", "e"]).await;
    let gate = Arc::new(Semaphore::new(0));
    registry.on(RequestMatcher::kind(RequestType::Tags).repository("a/b")).act(FaultAction::Gate(gate.clone()));
    let (mut stream, _) = stream(&registry, 2, RepositoryOrder::AsCompleted);
    let mut first = names(&mut stream, 4).await;
    first.sort();
    assert_eq!(first, ["a", "c", "d", "e"]);
    gate.add_permits(1);
    assert_eq!(names(&mut stream, 1).await, ["b"]);
    assert!(stream.next().await.unwrap().is_none());
    assert!(stream.next().await.unwrap().is_none(), "over is over");
}

#[tokio::test]
async fn by_name_the_slow_one_is_waited_for() {
    let registry = registry_of(&["a", "b", "c", "d", "e"]).await;
    registry
        .on(RequestMatcher::kind(RequestType::Tags).repository("a/a"))
        .act(FaultAction::Delay(Duration::from_millis(200)));
    let (mut stream, _) = stream(&registry, 2, RepositoryOrder::ByName);
    assert_eq!(names(&mut stream, 5).await, ["a", "b", "c", "d", "e"]);
}

#[tokio::test]
async fn a_stream_that_is_not_polled_stays_within_the_query_limit() {
    let all: Vec<String> = (0..50).map(|number| format!("r{number:02}")).collect();
    let registry = registry_of(&all.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let (mut stream, _) = stream(&registry, 5, RepositoryOrder::AsCompleted);
    next(&mut stream).await;
    // The parent folder, the catalog, and five repositories, one of which was taken.
    registry.wait_until(|registry| registry.total() == 7, WAIT_TIMEOUT).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(registry.total(), 7, "{}", registry.describe_requests());
}

#[tokio::test]
async fn cancelling_ends_it_and_all_requests() {
    let registry = registry_of(&["a", "b"]).await;
    registry
        .on(RequestMatcher::kind(RequestType::Tags).when(|request| request.repository.as_deref() != Some("a")))
        .always()
        .act(FaultAction::StallForever);
    let (mut stream, context) = stream(&registry, 5, RepositoryOrder::AsCompleted);
    let cancel = context.cancel.clone();
    let (ended, ()) = tokio::join!(timeout(WAIT_TIMEOUT, stream.next()), async {
        registry.wait_until(|registry| registry.total() == 4, WAIT_TIMEOUT).await;
        cancel.cancel();
    });
    assert!(ended.expect("it ends").unwrap_err().is_cancelled());
    assert!(stream.next().await.unwrap().is_none());
}

#[tokio::test]
async fn a_target_is_listed_by_the_same_function() {
    let registry = FaultRegistry::builder().google().start().await;
    let image = images::multi_platform("target");
    registry.push("mirror/app", "1.0", &image);
    let repository = |name: &str| {
        let registry = registry.host().parse().unwrap();
        client()
            .repository(&registry, &name.parse().unwrap(), Access::Push, &Context::default(), &TrafficCounters::new())
            .unwrap()
    };
    let listing = list_repository(&repository("mirror/app")).await.unwrap();
    assert_eq!(listing.digest("1.0").map(ToString::to_string), Some(image.root.clone()));
    assert_eq!((listing.digest("2.0"), listing.manifests), (None, 3));
    assert_eq!(registry.total(), 1);
    assert_eq!(list_repository(&repository("mirror/none")).await.unwrap_err().kind(), ErrorKind::NotFound);
}
