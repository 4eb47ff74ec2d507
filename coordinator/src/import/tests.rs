use imgsync_config::{Config, ConfigFile};

use super::*;

pub(super) fn made(text: &str, hints: &ImportHints) -> (String, ConfigDraft) {
    let (_, draft) = import_file(text, None, hints).unwrap_or_else(|error| panic!("{error}\n{text}"));
    (checked(&draft), draft)
}

/// Returns the YAML, after checking that it is a valid configuration.
pub(super) fn checked(draft: &ConfigDraft) -> String {
    let yaml = draft.to_yaml();
    let presets = crate::presets::known_presets();
    let environment = |_: &str| Some("x".to_owned());
    let read = Config::read(&ConfigFile { name: "f", text: &yaml, environment: &environment, presets: Some(&presets) });
    read.unwrap_or_else(|errors| panic!("{errors}\n{yaml}"));
    yaml
}

pub(super) fn has_note(draft: &ConfigDraft, words: &str) -> bool {
    draft.notes().iter().any(|note| note.contains(words))
}

const SKOPEO: &str = r#"
registry.example.com:
    images:
        busybox: []
        redis:
            - "1.0"
            - "2.0"
            - "sha256:0000000000000000000000000000000011111111111111111111111111111111"
    images-by-tag-regex:
        nginx: ^1\.13\.[12]-alpine-perl$
        apache: rc
    images-by-semver:
        alpine: ">= 3.12.0"
        node: 1.2 - 1.4
    credentials:
        username: john
        password: this is a secret
    tls-verify: false
    cert-dir: /home/john/certs
    signed: yes
quay.io:
    tls-verify: true
    images:
        coreos/etcd:
            - latest
"#;

#[test]
fn a_file_of_skopeo_becomes_a_rule_an_image() {
    let hints = ImportHints { to: Some("mirror.example.com/all".into()), ..ImportHints::default() };
    let (yaml, draft) = made(SKOPEO, &hints);
    let expected = r#"registries:
  registry.example.com: {username: john, password: "${REGISTRY_EXAMPLE_COM_PASSWORD}", insecure: true}
rules:
  - from: registry.example.com/busybox
    to: mirror.example.com/all
    naming: basename
  - from: registry.example.com/redis
    tags: {include: ["1.0", "2.0"]}
    to: mirror.example.com/all
    naming: basename
  - from: registry.example.com/apache
    tags: {include: [/.*(?:rc).*/]}
    to: mirror.example.com/all
    naming: basename
  - from: registry.example.com/nginx
    tags: {include: ["/1\\.13\\.[12]-alpine-perl/"]}
    to: mirror.example.com/all
    naming: basename
  - from: registry.example.com/alpine
    tags: {include: ["/v?[0-9]+(\\.[0-9]+){0,2}/"], semver: ">= 3.12.0"}
    to: mirror.example.com/all
    naming: basename
  - from: registry.example.com/node
    tags: {include: ["/v?[0-9]+(\\.[0-9]+){0,2}/"], semver: ">=1.2 <=1.4"}
    to: mirror.example.com/all
    naming: basename
  - from: quay.io/coreos/etcd
    tags: {include: [latest]}
    to: mirror.example.com/all
    naming: basename
"#;
    assert_eq!(sorted(&yaml), sorted(expected), "{yaml}");
    for words in ["is not a tag", "takes dates", "cert-dir", "`signed` has no equivalent", "tls: off", "--scoped"] {
        assert!(has_note(&draft, words), "{words}: {:?}", draft.notes());
    }
    assert_eq!(draft.variables().len(), 1);
    assert!(!yaml.contains("this is a secret"));
    assert!(import_file(SKOPEO, None, &ImportHints::default()).unwrap_err().contains("--to"));
}

/// Returns the rules sorted: the tree's keys have no order.
fn sorted(yaml: &str) -> Vec<String> {
    let mut rules: Vec<String> = yaml.split("  - ").map(|part| part.trim().to_owned()).collect();
    rules.sort();
    rules
}

const REGSYNC: &str = r#"
version: 1
x-common: &common
  type: repository
creds:
  - registry: docker.io
    user: "{{env \"HUB_USER\"}}"
    pass: "{{file \"/var/run/secrets/pass\"}}"
    reqPerSec: 5
    repoAuth: true
  - registry: registry:5000
    tls: disabled
    hostname: localhost:5000
defaults:
  ratelimit: {min: 60, retry: 15m}
  parallel: 4
  interval: 12h
  backup: "bkup-{{.Ref.Tag}}"
  mediaTypes: [a]
sync:
  - source: alpine
    target: registry:5000/library/alpine
    <<: *common
    tags:
      allow: ["latest", "3", "3\\.\\d+"]
      deny: ["edge.*"]
  - source: ghcr.io/regclient/regctl:v0.3
    target: registry:5000/regclient/regctl:stable
    type: image
    platform: linux/amd64
    referrers: true
    digestTags: true
    referrerFilters: [{artifactType: application/spdx+json}]
    backup: "backup-{{time.Now.Format \"20060102\"}}-{{.Ref.Tag}}"
    hooks: {pre: {type: exec}}
  - source: old.example.com
    target: registry:5000
    type: registry
    repos: {allow: ["library/.*", "tools", "[a-c].*", ".*/end"], deny: ["library/x"]}
  - source: ocidir://x
    target: registry:5000/x
    type: repository
"#;

#[test]
fn a_file_of_regsync_becomes_rules_with_its_choices_and_backups() {
    let (yaml, draft) = made(REGSYNC, &ImportHints::default());
    let expected = r#"registries:
  docker.io: {username: "${HUB_USER}", password: "${DOCKER_IO_PASSWORD}", requests_per_second: 5, pull_reserve: 60}
  ghcr.io: {pull_reserve: 60}
  old.example.com: {pull_reserve: 60}
  "registry:5000": {tls: off, endpoint: http://localhost:5000}
concurrency: 4
defaults: {referrers: false, schedule: {every: 12h}}
rules:
  - from: docker.io/library/alpine
    tags: {include: [latest, "3", /3\.\d+/], exclude: [/edge.*/]}
    to: registry:5000
    naming: keep
    backup: bkup-{{tag}}
  - from: ghcr.io/regclient/regctl
    tags: {include: [v0.3]}
    platforms: [linux/amd64]
    to: registry:5000
    naming: "{{ 'regclient/regctl' if basename }}:stable"
    referrers: [application/spdx+json]
    backup: backup-{{date | replace('-', '')}}-{{tag}}
  - from: {repositories: old.example.com/library/**, exclude: [library/x]}
    to: registry:5000
    naming: keep
    backup: bkup-{{tag}}
  - from: old.example.com/tools
    to: registry:5000
    naming: keep
    backup: bkup-{{tag}}
  - from: old.example.com/a*
    to: registry:5000
    naming: keep
    backup: bkup-{{tag}}
  - from: old.example.com/a*/**
    to: registry:5000
    naming: keep
    backup: bkup-{{tag}}
  - from: old.example.com/b*
    to: registry:5000
    naming: keep
    backup: bkup-{{tag}}
  - from: old.example.com/b*/**
    to: registry:5000
    naming: keep
    backup: bkup-{{tag}}
  - from: old.example.com/c*
    to: registry:5000
    naming: keep
    backup: bkup-{{tag}}
  - from: old.example.com/c*/**
    to: registry:5000
    naming: keep
    backup: bkup-{{tag}}
"#;
    assert_eq!(sorted(&yaml), sorted(expected), "{yaml}");
    let phrases =
        ["repoAuth", "is read by a template", "mediaTypes", "`imgsync serve`", "hooks", "platform", ".*/end", "ocidir"];
    for words in phrases.iter().filter(|words| **words != "ocidir") {
        assert!(has_note(&draft, words), "{words}: {:?}", draft.notes());
    }
    assert!(has_note(&draft, "image layouts are written oci:DIR"));
}

#[test]
fn files_of_image_syncer_become_rules_with_the_names_that_they_give() {
    let images = r#"{
        "quay.io/coreos/kube-rbac-proxy": "quay.io/ruohe/kube-rbac-proxy",
        "docker.io/library/busybox:1.36,latest": ["r.example.com/mirror/library/busybox", "r.example.com/tools/bb"],
        "gcr.io/a/b:/v1\\..*/": "r.example.com/b",
        "gcr.io/a/c:1,2": "r.example.com/c:one,two",
        "gcr.io/a/d@sha256:0000000000000000000000000000000011111111111111111111111111111111": "r.example.com/d",
        "gcr.io/a/e:1,2": "r.example.com/e:1",
        "gcr.io/a/f": ""
    }"#;
    let auth = "quay.io: {username: me, password: 'hush hush'}\n\
                'r.example.com': {username: '${R_USER}', password: $R_PASSWORD, insecure: true}\n\
                quay.io/coreos: {username: other, password: other}\n";
    let hints =
        ImportHints { auth: Some(auth.into()), to: Some("r.example.com/default".into()), ..ImportHints::default() };
    let (yaml, draft) = made(images, &hints);
    for part in [
        "quay.io: {username: me, password: \"${QUAY_IO_PASSWORD}\"}",
        "r.example.com: {username: \"${R_USER}\", password: \"${R_PASSWORD}\", tls: off}",
        "- from: quay.io/coreos/kube-rbac-proxy\n    to: quay.io/ruohe\n    naming: basename\n",
        "- from: docker.io/library/busybox\n    tags: {include: [\"1.36\", latest]}\n    to: r.example.com/mirror\n    naming: keep\n",
        "    to: r.example.com\n    naming: \"{{ 'tools/bb' if basename }}\"\n",
        "tags: {include: [/.*(?:v1\\..*).*/]}",
        "naming: \"{{ 'c' if basename }}:one\"",
        "naming: \"{{ 'c' if basename }}:two\"",
        "- from: gcr.io/a/f\n    to: r.example.com/default\n    naming: basename\n",
    ] {
        assert!(yaml.contains(part), "{part}\n---\n{yaml}");
    }
    assert!(!yaml.contains("hush") && !yaml.contains("gcr.io/a/d") && !yaml.contains("gcr.io/a/e"));
    for words in ["is not a tag", "do not match", "quay.io/coreos", "tls: off"] {
        assert!(has_note(&draft, words), "{words}: {:?}", draft.notes());
    }
    assert_eq!(draft.variables().keys().collect::<Vec<_>>(), ["QUAY_IO_PASSWORD"]);
    // Both in one file, as before 1.2.
    let old = "auth: {quay.io: {username: me, password: hush}}\nimages: {quay.io/a/b: r.example.com/a/b}\nproc: 6\n";
    let (yaml, draft) = made(old, &ImportHints::default());
    assert!(yaml.contains("to: r.example.com\n    naming: keep"), "{yaml}");
    assert!(has_note(&draft, "`proc` has no equivalent"));
    let odd = "images: {quay.io/a/b: {to: r.example.com/b}, quay.io/a/c: [r.example.com/c, [x]]}\nretries: 3\n";
    let (yaml, draft) = made(odd, &ImportHints::default());
    assert_eq!((yaml.matches("from:").count(), draft.omissions()), (1, 2), "{yaml} {:?}", draft.notes());
    assert!(has_note(&draft, "`retries` has no equivalent"), "{:?}", draft.notes());
}

#[test]
fn what_is_no_list_of_tags_in_skopeos_file_does_not_select_all_tags() {
    let hints = ImportHints { to: Some("mirror.example.com/all".into()), ..ImportHints::default() };
    let text = "r.example.com: {images: {a: [{b: c}], d: [\"1\"]}, images-by-semver: {e: '>=1.2-rc1', f: '~1.2'}}\nq.example.com: [a]\n";
    let (yaml, draft) = made(text, &hints);
    assert_eq!((yaml.matches("from:").count(), draft.omissions()), (2, 3), "{yaml} {:?}", draft.notes());
    assert!(yaml.contains("r.example.com/d") && yaml.contains("r.example.com/f"), "{yaml}");
    for words in ["a: its tags are not a list", "e: `>=1.2-rc1`", "q.example.com: it is not a mapping"] {
        assert!(has_note(&draft, words), "{words}: {:?}", draft.notes());
    }
}

#[test]
fn expressions_of_image_syncer_are_found_anywhere_in_a_tag_as_there() {
    let tags = ["1.1", "v1.1.3", "2.1.10-slim", "11", "1.10", "0.9", "beta"];
    for (written, chosen) in [
        (r"1\.1", "1.1 v1.1.3 2.1.10-slim 1.10"),
        (r"^1\.1", "1.1 1.10"),
        (r"-slim$", "2.1.10-slim"),
        (r"^1\.1$", "1.1"),
        ("^v|beta", "v1.1.3 beta"),
    ] {
        let (yaml, _) = made(&format!("gcr.io/a/b:/{written}/: r.example.com/b\n"), &ImportHints::default());
        let read = Config::read(&ConfigFile { name: "f", text: &yaml, environment: &|_| None, presets: None }).unwrap();
        let candidates = tags.map(imgsync_model::select::TagCandidate::new);
        let kept = read.rules[0].selection.evaluate(candidates, jiff::Timestamp::UNIX_EPOCH).kept;
        let mut kept: Vec<&str> = kept.iter().map(|candidate| candidate.tag.as_str()).collect();
        kept.sort_by_key(|tag| tags.iter().position(|known| known == tag));
        assert_eq!(kept.join(" "), chosen, "{written}: {yaml}");
    }
}

#[test]
fn credentials_of_regsync_that_contradict_each_other_give_a_configuration_that_is_right() {
    for (creds, has, lacks, note) in [
        ("tls: insecure, regcert: /etc/ca.pem", "insecure: true", "ca:", "`regcert` was not imported"),
        ("tls: disabled, regcert: /etc/ca.pem", "tls: off", "ca:", "plain HTTP has no certificates"),
        ("tls: disabled, clientCert: /c.pem, clientKey: /k.pem", "tls: off", "client_", "`clientKey` was not"),
        ("tls: disabled, hostname: \"https://h:5001\"", "endpoint: http://h:5001", "https", ""),
        ("clientCert: /c.pem", "", "client_cert", "must be set together"),
        ("regcert: /etc/ca.pem", "ca: /etc/ca.pem", "insecure", ""),
    ] {
        let text = format!(
            "creds: [{{registry: \"r.example.com:5000\", {creds}}}]\nsync: [{{source: \"r.example.com:5000/a\", target: \"t.example.com/a\", type: repository}}]\n"
        );
        // `made` checks that the result is a valid configuration.
        let (yaml, draft) = made(&text, &ImportHints::default());
        assert!(yaml.contains(has) && !yaml.contains(lacks), "{creds}: {yaml}");
        assert!(note.is_empty() || has_note(&draft, note), "{creds}: {:?}", draft.notes());
    }
}

#[test]
fn a_file_of_another_program_is_known_by_what_stands_in_it() {
    for (text, format) in [
        (SKOPEO, Some(ImportFormat::Skopeo)),
        (REGSYNC, Some(ImportFormat::Regsync)),
        ("gcr.io/a/b: r.example.com/b\n", Some(ImportFormat::ImageSyncer)),
        ("images: {gcr.io/a/b: r.example.com/b}\nauth: {}\n", Some(ImportFormat::ImageSyncer)),
        ("rules: [{from: a}]\n", None),
        ("registries: {gcr.io: {images: {a: []}}}\n", None),
        ("timeout: 10 parsecs\n", None),
        ("", None),
        ("a: [", None),
    ] {
        assert_eq!(detect_format(text), format, "{text}");
    }
}

#[test]
fn a_command_of_2_1_becomes_its_rule() {
    let read = |line: &str| {
        let draft = import_command(line).unwrap_or_else(|error| panic!("{line}: {error}"));
        (checked(&draft), draft)
    };
    let (yaml, draft) = read(
        "/usr/bin/imgsync gcr --user gcrxio --password 'S3cret!' --namespace istio-release --process-limit 10 \
         --timeout 30m --query-limit 5 --report --report-level 2 --telegram-token 1:abc --telegram-group -100123",
    );
    let expected = "registries:\n  docker.io: {username: gcrxio, password: \"${DOCKER_IO_PASSWORD}\"}\n\
                    concurrency: 10\n\
                    notify: {telegram: {token: \"${IMGSYNC_TELEGRAM_TOKEN}\", group: \"-100123\"}}\n\
                    timeout: 30m\n\
                    rules:\n  - preset: istio\n    to: docker.io/gcrxio\n    naming: original\n";
    assert_eq!(yaml, expected);
    for words in ["--query-limit 5", "--report remains", "--report-level 2"] {
        assert!(has_note(&draft, words), "{words}: {:?}", draft.notes());
    }
    assert!(!format!("{draft:?}{yaml}").contains("S3cret") && !format!("{draft:?}").contains("1:abc"));
    let (yaml, _) = read("imgsync gcr --user me");
    assert!(yaml.contains("- from: gcr.io/google-containers/**\n    to: docker.io/me\n    naming: flat"), "{yaml}");
    assert!(
        read("imgsync gcr --kubeadm --user $HUB_USER --password ${HUB_PASS} --to docker.io/me")
            .0
            .contains("${HUB_PASS}")
    );
    assert!(read("imgsync flannel --user me --report=out.json").0.contains("report: {file: out.json}"));
    for bad in ["", "imgsync", "imgsync sync alpine", "imgsync gcr --nope", "imgsync run", "imgsync gcr 'x"] {
        assert!(import_command(bad).is_err(), "{bad}");
    }
    let error = import_command("imgsync gcr --user me --passwort S3cret").unwrap_err();
    assert!(!error.contains("S3cret"), "{error}");
}

#[test]
fn what_is_none_of_these_is_said_to_be_none_and_shows_nothing() {
    for text in ["", "[1, 2]", "just words", "a: {b: c}", "rules: [{from: x}]", "a: [", "password: \"s3cret"] {
        let error = import_file(text, None, &ImportHints::default()).unwrap_err();
        assert!(!error.contains("s3cret"), "{error}");
    }
    assert!(import_file("a: b", Some(ImportFormat::Regsync), &ImportHints::default()).is_err());
}
