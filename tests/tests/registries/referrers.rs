//! Referrers by the API and by the fallback tag, at registries that have the one or only the other.

use imgsync_common::image::Digest;
use imgsync_common::registry::credentials::Environment;
use imgsync_common::registry::{Access, Client, ClientSettings, Context, Repository, Tally};
use imgsync_tests::fault::{FaultRegistry, Kind};
use imgsync_tests::images;
use imgsync_tests::program::Imgsync;
use imgsync_tests::servers::{Auth, DockerRegistry};
use serde_json::Value;

fn repository(host: &str, name: &str) -> Repository {
    let client = Client::new(ClientSettings::default(), Environment::default());
    let (host, name) = (host.parse().unwrap(), name.parse().unwrap());
    client.repository(&host, &name, Access::Pull, &Context::default(), &Tally::new()).unwrap()
}

#[tokio::test]
async fn an_artifact_that_refers_to_an_image_is_listed_under_it_at_the_target() {
    let image = images::single("subject");
    let signature = images::referrer("signature", &image);
    let other = images::referrer("other-signature", &image);
    let source = FaultRegistry::start().await;
    source.push("a", "1", &image);
    source.push("a", "sig", &signature);
    source.push("a", "sig2", &other);
    let subject: Digest = image.root.parse().unwrap();

    // docker-registry 2.8 has no such API: the index under the fallback tag is ours to keep.
    let old = DockerRegistry::start(Auth::None).await;
    let modern = FaultRegistry::start().await;
    for tag in ["1", "sig", "sig2", "sig"] {
        for host in [old.host(), modern.host()] {
            let (from, to) = (format!("{}/a:{tag}", source.host()), format!("{host}/b:{tag}"));
            Imgsync::new().args(["sync", &from, &to, "--force"]).run().await.assert_code(0);
        }
    }
    let fallback = image.root.replace(':', "-");
    let index = old.fetch_tree("b", &fallback).await.expect("the fallback index is there");
    let index: Value = serde_json::from_slice(&index.manifests[&index.root].bytes).unwrap();
    assert_eq!(images::children(&index), [signature.root.clone(), other.root.clone()], "each once, in order");
    assert!(modern.tags("b").iter().all(|tag| *tag != fallback), "where the registry keeps them, we do not");

    for host in [old.host(), modern.host()] {
        let found = repository(&host, "b").referrers(&subject).await.unwrap();
        let mut found: Vec<String> = found.into_iter().map(|found| found.digest.to_string()).collect();
        found.sort();
        let mut wanted = [signature.root.clone(), other.root.clone()];
        wanted.sort();
        assert_eq!(found, wanted, "{host}");
    }
}

#[tokio::test]
async fn many_referrers_come_by_pages_and_none_is_an_empty_list() {
    let registry = FaultRegistry::builder().page(2).start().await;
    let image = images::single("popular");
    registry.push("a", "1", &image);
    let lonely = images::single("lonely");
    registry.push("a", "2", &lonely);
    for n in 0..5 {
        registry.push_untagged("a", &images::referrer(&format!("r{n}"), &image));
    }
    let repository = repository(&registry.host(), "a");
    assert_eq!(repository.referrers(&image.root.parse().unwrap()).await.unwrap().len(), 5);
    assert_eq!(registry.count(Kind::Referrers), 3);
    assert!(repository.referrers(&lonely.root.parse().unwrap()).await.unwrap().is_empty());
    // They are counted apart from what a copy asks.
    let traffic = repository.tally().read();
    assert_eq!((traffic.requests, traffic.referrers), (0, 4));
}
