//! Kubernetes manifests: they are consistent with each other and with the programs. They are not applied to a cluster
//! here.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use imgsync_tests::program::Imgsync;
use serde_json::Value;

use super::{assert_accepted, assert_success, deploy, read, tool};

/// Returns all documents of a file.
fn documents(file: &str) -> Vec<Value> {
    let text = read(&format!("kubernetes/{file}"));
    text.split("\n---\n")
        .map(|part| serde_saphyr::from_str(part).unwrap_or_else(|error| panic!("{file}: {error}")))
        .collect()
}

/// Returns the files that the kustomization names, including the optional ones.
fn resources() -> Vec<String> {
    let text = read("kubernetes/kustomization.yaml");
    let lines = text.lines().map(|line| line.trim().trim_start_matches("# "));
    lines.filter_map(|line| line.strip_prefix("- ")).filter(|name| name.ends_with(".yaml")).map(str::to_owned).collect()
}

/// Returns the version of the workspace.
fn workspace_version() -> String {
    let manifest: String = fs::read_to_string(deploy("../Cargo.toml")).unwrap();
    let line = manifest.lines().find_map(|line| line.strip_prefix("version = "));
    line.expect("the workspace has a version").trim_matches('"').to_owned()
}

#[test]
fn the_kustomization_deploys_the_version_of_the_workspace() {
    let kustomization: Value = serde_saphyr::from_str(&read("kubernetes/kustomization.yaml")).unwrap();
    assert_eq!(kustomization["images"][0]["newTag"], workspace_version());
}

fn all() -> Vec<Value> {
    resources().iter().flat_map(|file| documents(file)).collect()
}

/// Returns pod templates by name of their owner.
fn pods() -> BTreeMap<String, Value> {
    let mut pods = BTreeMap::new();
    for document in all() {
        let pointer = match document["kind"].as_str().unwrap() {
            "Deployment" | "StatefulSet" => "/spec/template/spec",
            "CronJob" => "/spec/jobTemplate/spec/template/spec",
            _ => continue,
        };
        let name = document["metadata"]["name"].as_str().unwrap().to_owned();
        pods.insert(name, document.pointer(pointer).unwrap().clone());
    }
    pods
}

#[test]
fn every_manifest_is_named_by_the_kustomization() {
    let listed = resources();
    let files =
        fs::read_dir(deploy("kubernetes")).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap());
    let mut files: Vec<String> = files.filter(|name| name.ends_with(".yaml")).collect();
    files.retain(|name| !["kustomization.yaml", "imgsync.yaml"].contains(&name.as_str()));
    files.sort();
    let mut sorted = listed.clone();
    sorted.sort();
    assert_eq!(files, sorted);
    let kinds: Vec<String> = all().iter().map(|document| document["kind"].as_str().unwrap().to_owned()).collect();
    for kind in
        ["Namespace", "Deployment", "StatefulSet", "CronJob", "Service", "NetworkPolicy", "ScaledObject", "PodMonitor"]
    {
        assert!(kinds.iter().any(|known| known == kind), "{kind} in {kinds:?}");
    }
}

#[tokio::test]
async fn what_the_containers_run_are_commands_of_the_programs_and_probes_ask_where_they_listen() {
    let pods = pods();
    for (name, program, port) in
        [("coordinator", "imgsync", Some(8080)), ("worker", "imgsync-worker", Some(8081)), ("run", "imgsync", None)]
    {
        let container = &pods[name]["containers"][0];
        let command = container["command"][0].as_str().unwrap_or("imgsync");
        assert_eq!(command, program, "{name}");
        let arguments: Vec<String> = container["args"]
            .as_array()
            .unwrap()
            .iter()
            .map(|argument| argument.as_str().unwrap().to_owned())
            .collect();
        assert_accepted(program, &arguments).await;
        let Some(port) = port else { continue };
        assert!(arguments.contains(&format!("0.0.0.0:{port}")), "{arguments:?}");
        assert_eq!(container["ports"][0]["containerPort"], port);
        for (probe, path) in [("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")] {
            assert_eq!(container[probe]["httpGet"]["path"], path, "{name}");
            assert_eq!(container[probe]["httpGet"]["port"], container["ports"][0]["name"], "{name}");
        }
    }
}

#[test]
fn a_coordinator_that_is_not_ready_still_serves_its_dashboard() {
    let services: Vec<Value> = all().into_iter().filter(|document| document["kind"] == "Service").collect();
    let dashboard = services.iter().find(|service| service["metadata"]["name"] == "coordinator").unwrap();
    assert_eq!(dashboard["spec"]["publishNotReadyAddresses"], true);
    let port = &pods()["coordinator"]["containers"][0]["ports"][0]["name"];
    assert_eq!(&dashboard["spec"]["ports"][0]["targetPort"], port);
}

#[test]
fn no_container_has_more_rights_than_it_needs() {
    for (name, pod) in pods() {
        assert_eq!(pod["automountServiceAccountToken"], false, "{name}");
        assert_eq!(pod["securityContext"]["runAsNonRoot"], true, "{name}");
        assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault", "{name}");
        for container in pod["containers"].as_array().unwrap() {
            let context = &container["securityContext"];
            assert_eq!(context["allowPrivilegeEscalation"], false, "{name}");
            assert_eq!(context["capabilities"]["drop"][0], "ALL", "{name}");
            assert!(container["resources"]["limits"]["memory"].is_string(), "{name}");
        }
    }
}

#[tokio::test]
async fn the_example_s_configuration_is_fine_and_its_secrets_are_those_that_are_asked_for() {
    let program = Imgsync::new();
    let check = program.again().args(["config", "check", "-c"]).arg(deploy("kubernetes/imgsync.yaml")).run().await;
    check.assert_code(0);
    let secrets = read("kubernetes/secret.env.example");
    let given: Vec<&str> = secrets.lines().filter_map(|line| line.split_once('=')).map(|(name, _)| name).collect();
    for (name, pod) in pods() {
        for container in pod["containers"].as_array().unwrap() {
            for variable in container["env"].as_array().into_iter().flatten() {
                let key = variable.pointer("/valueFrom/secretKeyRef/key").unwrap().as_str().unwrap();
                assert!(given.contains(&key), "{name} asks for {key}");
            }
        }
    }
    for name in ["IMGSYNC_BROKER", "IMGSYNC_STORE", "IMGSYNC_KEY"] {
        assert!(given.contains(&name), "{name}");
    }
}

#[test]
fn kustomize_puts_it_together() {
    let folder = tempfile::tempdir().unwrap();
    for file in fs::read_dir(deploy("kubernetes")).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), folder.path().join(file.file_name())).unwrap();
    }
    fs::copy(folder.path().join("secret.env.example"), folder.path().join("secret.env")).unwrap();
    let Some(made) = tool(Command::new("kubectl").arg("kustomize").arg(folder.path()), "kubernetes-client") else {
        return;
    };
    assert_success(&made);
    let text = String::from_utf8(made.stdout).unwrap();
    assert!(text.contains("image: ghcr.io/imgsync/imgsync:"), "the image is put in");
}
