//! The manifests of a highly available cluster in Kubernetes: they replace the servers of `deploy/kubernetes`, spread each
//! part over several nodes, and their URLs are accepted. They are not applied to a cluster here.

use std::fs;
use std::process::Command;

use imgsync_tests::program::Imgsync;
use serde_json::Value;

use super::{assert_success, deploy, tool};

/// Builds the kustomization, and returns all documents.
fn documents() -> Option<Vec<Value>> {
    let folder = tempfile::tempdir().unwrap();
    for part in ["kubernetes", "kubernetes-ha"] {
        fs::create_dir(folder.path().join(part)).unwrap();
        for file in fs::read_dir(deploy(part)).unwrap() {
            let file = file.unwrap();
            fs::copy(file.path(), folder.path().join(part).join(file.file_name())).unwrap();
        }
    }
    let base = folder.path().join("kubernetes");
    fs::copy(base.join("secret.env.example"), base.join("secret.env")).unwrap();
    let folder = folder.path().join("kubernetes-ha");
    let built = tool(Command::new("kubectl").arg("kustomize").arg(folder), "kubernetes-client")?;
    assert_success(&built);
    let text = String::from_utf8(built.stdout).unwrap();
    Some(text.split("\n---\n").map(|part| serde_saphyr::from_str(part).unwrap()).collect())
}

fn find<'d>(documents: &'d [Value], kind: &str, name: &str) -> &'d Value {
    let found = documents.iter().find(|one| one["kind"] == kind && one["metadata"]["name"] == name);
    found.unwrap_or_else(|| panic!("there is no {kind} {name}"))
}

/// Returns the value of an environment variable of the first container.
fn variable<'d>(pod: &'d Value, name: &str) -> &'d Value {
    let variables = pod["containers"][0]["env"].as_array().unwrap();
    variables.iter().find(|variable| variable["name"] == name).unwrap_or_else(|| panic!("{name} is not set: {pod}"))
}

#[test]
fn one_server_of_each_kind_is_replaced_by_three_on_different_nodes() {
    let Some(documents) = documents() else { return };
    for (kind, name) in
        [("StatefulSet", "rabbitmq"), ("Service", "rabbitmq"), ("StatefulSet", "redis"), ("Service", "redis")]
    {
        let found = documents.iter().any(|one| one["kind"] == kind && one["metadata"]["name"] == name);
        assert!(!found, "{kind} {name} is replaced");
    }
    let broker = &find(&documents, "RabbitmqCluster", "rabbitmq")["spec"];
    assert_eq!(broker["replicas"], 3);
    let settings = broker["rabbitmq"]["additionalConfig"].as_str().unwrap();
    assert!(settings.contains("cluster_partition_handling = pause_minority"), "{settings}");
    let store = &find(&documents, "StatefulSet", "redis-ha")["spec"];
    assert_eq!(store["replicas"], 3);
    let pod = &store["template"]["spec"];
    let redis = pod["containers"][0]["command"][2].as_str().unwrap();
    assert!(redis.contains("min-replicas-to-write 1"), "{redis}");
    let sentinel = pod["containers"][1]["command"][2].as_str().unwrap();
    assert!(sentinel.contains("sentinel monitor imgsync redis-ha-0.redis-ha 6379 2"), "{sentinel}");
    let coordinator = &find(&documents, "Deployment", "coordinator")["spec"];
    assert_eq!(coordinator["replicas"], 2);
    for (name, affinity) in [
        ("rabbitmq", &broker["affinity"]),
        ("redis-ha", &pod["affinity"]),
        ("coordinator", &coordinator["template"]["spec"]["affinity"]),
    ] {
        let rule = &affinity["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][0];
        assert_eq!(rule["topologyKey"], "kubernetes.io/hostname", "{name}");
        assert_eq!(rule["labelSelector"]["matchLabels"]["app.kubernetes.io/name"], name);
    }
    for name in ["rabbitmq", "redis-ha", "coordinator", "worker"] {
        let budget = &find(&documents, "PodDisruptionBudget", name)["spec"];
        assert_eq!(budget["maxUnavailable"], 1);
        assert_eq!(budget["selector"]["matchLabels"]["app.kubernetes.io/name"], name);
    }
    for container in pod["containers"].as_array().unwrap() {
        assert_eq!(container["securityContext"]["readOnlyRootFilesystem"], true);
        assert_eq!(container["securityContext"]["capabilities"]["drop"][0], "ALL");
        assert!(container["resources"]["limits"]["memory"].is_string());
    }
    assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
}

#[tokio::test]
async fn all_programs_get_the_same_urls_and_accept_them() {
    let Some(documents) = documents() else { return };
    let pods = [("Deployment", "coordinator"), ("Deployment", "worker"), ("CronJob", "run")].map(|(kind, name)| {
        let pointer = if kind == "CronJob" { "/spec/jobTemplate/spec/template/spec" } else { "/spec/template/spec" };
        find(&documents, kind, name).pointer(pointer).unwrap()
    });
    let secret = documents.iter().find(|one| one["kind"] == "Secret").unwrap();
    for pod in pods {
        for name in ["IMGSYNC_BROKER", "IMGSYNC_STORE", "IMGSYNC_SENTINEL_PASSWORD", "RABBITMQ_PASSWORD"] {
            assert_eq!(variable(pod, name), variable(pods[0], name));
        }
        let names: Vec<&str> =
            pod["containers"][0]["env"].as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap()).collect();
        // Kubernetes replaces $(NAME) only by variables that come before.
        let place = |name: &str| names.iter().position(|other| *other == name).unwrap();
        assert!(
            place("RABBITMQ_PASSWORD") < place("IMGSYNC_BROKER") && place("RABBITMQ_USER") < place("IMGSYNC_BROKER")
        );
        assert!(place("IMGSYNC_SENTINEL_PASSWORD") < place("IMGSYNC_STORE"));
        let key = &variable(pod, "IMGSYNC_SENTINEL_PASSWORD")["valueFrom"]["secretKeyRef"];
        assert_eq!(key["name"], secret["metadata"]["name"]);
        assert!(secret["data"][key["key"].as_str().unwrap()].is_string(), "{key}");
    }
    let fill = |name: &str| {
        let text = variable(pods[0], name)["value"].as_str().unwrap();
        let text = text.replace("$(RABBITMQ_USER)", "u").replace("$(RABBITMQ_PASSWORD)", "p");
        text.replace("$(IMGSYNC_SENTINEL_PASSWORD)", "s")
    };
    let (broker, store) = (fill("IMGSYNC_BROKER"), fill("IMGSYNC_STORE"));
    assert_eq!(broker.split(',').count(), 3, "{broker}");
    assert!(!broker.contains(' ') && !broker.contains('$') && !store.contains('$'), "{broker} {store}");
    // The hosts do not exist here: the URLs are accepted, and nothing responds.
    let program = Imgsync::new().env("IMGSYNC_BROKER", broker).env("IMGSYNC_STORE", store);
    let ended = program.env("IMGSYNC_SENTINEL_PASSWORD", "s").args(["batch", "list"]).run().await.assert_code(3);
    assert!(ended.stderr.contains("redis-ha-"), "{}", ended.stderr);
}
