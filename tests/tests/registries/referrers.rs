//! Referrers by the API and by the fallback tag, at registries that support one or the other.

use imgsync_oci::{Digest, MediaType};
use imgsync_registry::credentials::CredentialEnvironment;
use imgsync_registry::{Access, Client, ClientSettings, Context, Repository, TrafficCounters};
use imgsync_tests::fault::{FaultAction, FaultRegistry, RequestType};
use imgsync_tests::images;
use imgsync_tests::program::Imgsync;
use imgsync_tests::servers::{DockerRegistry, DockerRegistryAuth};
use serde_json::Value;

fn repository(host: &str, name: &str) -> Repository {
    let client = Client::new(ClientSettings::default(), CredentialEnvironment::default());
    let (host, name) = (host.parse().unwrap(), name.parse().unwrap());
    client.repository(&host, &name, Access::Pull, &Context::default(), &TrafficCounters::new()).unwrap()
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

    // docker-registry 2.8 has no referrers API: the client maintains the index under the fallback tag.
    let old = DockerRegistry::start(DockerRegistryAuth::None).await;
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
    let mut listed = images::children(&index);
    listed.sort();
    let mut both = [signature.root.clone(), other.root.clone()];
    both.sort();
    assert_eq!(listed, both, "each once");
    assert!(modern.tags("b").iter().all(|tag| *tag != fallback), "where the registry keeps them, we do not");

    for host in [old.host(), modern.host()] {
        let found = repository(&host, "b").list_referrers(&subject).await.unwrap();
        let mut found: Vec<String> = found.into_iter().map(|found| found.digest.to_string()).collect();
        found.sort();
        let mut wanted = [signature.root.clone(), other.root.clone()];
        wanted.sort();
        assert_eq!(found, wanted, "{host}");
    }
}

#[tokio::test]
async fn several_at_once_are_all_kept_and_so_is_what_others_wrote_into_the_index() {
    let registry =
        FaultRegistry::builder().without_referrers().latency(std::time::Duration::from_millis(20)).start().await;
    let image = images::single("signed-often");
    registry.push("a", "1", &image);
    let subject: Digest = image.root.parse().unwrap();
    let earlier = images::referrer("earlier", &image);
    registry.push_untagged("a", &earlier);
    let mut descriptor = earlier.descriptor();
    descriptor["x-ours"] = "kept".into();
    let index = serde_json::json!({
        "schemaVersion": 2, "mediaType": images::media::OCI_INDEX, "manifests": [descriptor],
        "annotations": {"who": "somebody"}, "x-more": {"a": [1, 2]},
    });
    let bytes = index.to_string();
    let digest = images::sha256(bytes.as_bytes());
    let manifest = images::TestManifest { media_type: images::media::OCI_INDEX.to_owned(), bytes: bytes.into() };
    registry.push_manifest("a", &digest, manifest);
    let fallback = image.root.replace(':', "-");
    registry.move_tag("a", &fallback, &digest);

    let client = Client::new(ClientSettings::default(), CredentialEnvironment::default());
    let (host, name) = (registry.host().parse().unwrap(), "a".parse().unwrap());
    let open = || client.repository(&host, &name, Access::Push, &Context::default(), &TrafficCounters::new()).unwrap();
    let signatures: Vec<_> = (0..8).map(|n| images::referrer(&format!("at-once-{n}"), &image)).collect();
    for signature in &signatures {
        registry.push_untagged("a", signature);
    }
    let added = signatures.iter().map(|signature| {
        let (repository, subject, root) = (open(), subject.clone(), signature.root_manifest().clone());
        async move {
            let manifest = imgsync_oci::Manifest::parse(root.bytes, &MediaType::new(&root.media_type));
            repository.add_to_fallback_index(&subject, &[manifest.unwrap()]).await
        }
    });
    for result in futures_util::future::join_all(added).await {
        result.unwrap();
    }
    let index = registry.manifest("a", &fallback).unwrap().json();
    let mut wanted: Vec<_> = signatures.iter().map(|signature| signature.root.clone()).chain([earlier.root]).collect();
    let mut found = images::children(&index);
    wanted.sort();
    found.sort();
    assert_eq!(found, wanted);
    assert_eq!(index["annotations"]["who"], "somebody");
    assert_eq!(index["x-more"]["a"][1], 2);
    assert_eq!(index["manifests"][0]["x-ours"], "kept");
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
    assert_eq!(repository.list_referrers(&image.root.parse().unwrap()).await.unwrap().len(), 5);
    assert_eq!(registry.count(RequestType::Referrers), 3);
    assert!(repository.list_referrers(&lonely.root.parse().unwrap()).await.unwrap().is_empty());
    // They are counted apart from the requests of a copy.
    let traffic = repository.counters().snapshot();
    assert_eq!((traffic.requests, traffic.referrers), (0, 4));
}

#[tokio::test]
async fn a_repository_without_the_api_is_asked_once_although_many_images_are_copied_at_the_same_time() {
    let open = |client: &Client, registry: &FaultRegistry, name: &str| {
        let (host, name) = (registry.host().parse().unwrap(), name.parse().unwrap());
        client.repository(&host, &name, Access::Pull, &Context::default(), &TrafficCounters::new()).unwrap()
    };
    let latency = std::time::Duration::from_millis(50);
    let images: Vec<_> = (0..20).map(|n| images::single(&format!("asked-once-{n}"))).collect();
    let list_all = async |registry: &FaultRegistry| {
        let client = Client::new(ClientSettings::default(), CredentialEnvironment::default());
        let lists = ["a", "b"].into_iter().flat_map(|name| images.iter().map(move |image| (name, image)));
        let lists = lists.map(|(name, image)| {
            let repository = open(&client, registry, name);
            async move { repository.list_referrers(&image.root.parse().unwrap()).await }
        });
        futures_util::future::join_all(lists).await
    };
    let push_all = |registry: &FaultRegistry| {
        for (n, image) in images.iter().enumerate() {
            registry.push("a", &n.to_string(), image);
            registry.push("b", &n.to_string(), image);
        }
    };

    let old = FaultRegistry::builder().without_referrers().latency(latency).start().await;
    push_all(&old);
    for listed in list_all(&old).await {
        assert!(listed.unwrap().is_empty());
    }
    assert_eq!(old.count(RequestType::Referrers), 2, "once for each repository");

    // An error shows nothing of the API: it fails one image, and the others ask without waiting for each other.
    let failing = FaultRegistry::builder().without_referrers().latency(latency).start().await;
    push_all(&failing);
    failing.on(RequestType::Referrers).times(1).act(FaultAction::status(418));
    let failed = list_all(&failing).await.into_iter().filter(Result::is_err).count();
    assert_eq!((failed, failing.count(RequestType::Referrers)), (1, 21));

    // Where there is an API, nobody waits for others after the first answer.
    let modern = FaultRegistry::builder().latency(latency).start().await;
    push_all(&modern);
    for listed in list_all(&modern).await {
        assert!(listed.unwrap().is_empty());
    }
    assert_eq!(modern.count(RequestType::Referrers), 40);
}
