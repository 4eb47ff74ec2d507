use std::path::Path;

use imgsync_config::{Config, ConfigFile};

use super::*;
use crate::mirrors::collect_names;

mod shared_names;

/// Reads a configuration without a store.
async fn names(text: &str) -> MirroredNames {
    let presets = crate::presets::known_presets();
    let file = ConfigFile { name: "imgsync.yaml", text, environment: &|_| None, presets: Some(&presets) };
    let config = Config::read(&file).unwrap();
    collect_names(&config, Path::new(""), None).await.unwrap()
}

/// Renders a configuration without a store.
async fn rendered(text: &str, format: MirrorFormat) -> RenderedMirrors {
    render(&names(text).await, format).unwrap()
}

/// Does the same, and takes the risk of shared names.
async fn rendered_with_shared_names(text: &str, format: MirrorFormat) -> RenderedMirrors {
    let names = MirroredNames { allows_shared_names: true, ..names(text).await };
    render(&names, format).unwrap()
}

/// Returns the mirrors of each prefix of a registries.conf.
fn mirrors_of_prefixes(rendered: &RenderedMirrors) -> Vec<(String, Vec<String>)> {
    let table: toml::Table = toml::from_str(&rendered.files[0].text).unwrap();
    let text = |value: &toml::Value, key: &str| value[key].as_str().unwrap().to_owned();
    let entries = table["registry"].as_array().unwrap().iter();
    entries
        .map(|entry| {
            let mirrors = entry["mirror"].as_array().unwrap().iter();
            (text(entry, "prefix"), mirrors.map(|mirror| text(mirror, "location")).collect())
        })
        .collect()
}

/// Returns the only file of an output, without its head.
fn text(rendered: &RenderedMirrors) -> &str {
    assert_eq!(rendered.files.len(), 1, "{rendered:?}");
    let (head, text) = rendered.files[0].text.split_once('\n').unwrap();
    assert!(head.starts_with(WRITTEN_BY));
    text
}

/// Returns the names that are not reachable, without the reasons.
fn unreachable_names(rendered: &RenderedMirrors) -> Vec<&str> {
    rendered.unreachable.iter().map(|unreachable| unreachable.name.as_str()).collect()
}

fn sorted_unreachable(rendered: &RenderedMirrors) -> Vec<&str> {
    let mut names = unreachable_names(rendered);
    names.sort_unstable();
    names
}

const RULES: &str = "\
registries:
  r.example:5000: {tls: off}
  s.example: {insecure: true, username: me, password: hidden}
rules:
- {from: docker.io/library/**, to: r.example/mirror, naming: keep}
- {from: quay.io/org/app, to: \"r.example:5000/flat\"}
- {from: ghcr.io/team/*, to: s.example/ghcr, naming: basename}
- {from: gcr.io/a/**, to: r.example/all, naming: full, platforms: [linux/amd64]}
- {from: quay.io/x/**, to: s.example/flat}
";

#[tokio::test]
async fn containerd_has_a_folder_for_each_registry_with_the_whole_path_of_the_mirror() {
    let rendered = rendered(RULES, MirrorFormat::Containerd).await;
    let paths: Vec<&str> = rendered.files.iter().map(|file| file.path.as_str()).collect();
    assert_eq!(paths, ["docker.io/hosts.toml", "gcr.io/hosts.toml"]);
    assert_eq!(
        rendered.files[0].text.split_once('\n').unwrap().1,
        "server = \"https://registry-1.docker.io\"\n\n\
         [host.\"https://r.example/v2/mirror\"]\ncapabilities = [\"pull\", \"resolve\"]\noverride_path = true\n"
    );
    assert!(rendered.files[1].text.contains("[host.\"https://r.example/v2/all/gcr.io\"]"));
    assert_eq!(
        unreachable_names(&rendered),
        [
            "ghcr.io/team/* in s.example/ghcr/*",
            "quay.io/org/app in r.example:5000/flat/quay.io_org_app",
            "quay.io/x/** in s.example/flat"
        ]
    );
    assert!(rendered.unreachable[0].reason.contains("use `naming: keep` or `naming: full`"));
    assert!(rendered.unreachable[2].reason.contains("known after the first run"));
    assert_eq!(rendered.reachable, 2);
}

#[tokio::test]
async fn mirrors_of_a_registry_are_asked_in_the_order_of_the_rules() {
    let rules = "registries: {b.example: {tls: off}}\nrules: [{from: docker.io/a/b, to: [z.example, b.example/x], naming: keep}, \
                 {from: docker.io/c/d, to: a.example, naming: keep}]";
    let rendered = rendered(rules, MirrorFormat::Containerd).await;
    let hosts: Vec<&str> = text(&rendered).lines().filter(|line| line.starts_with('[')).collect();
    assert_eq!(
        hosts,
        ["[host.\"https://z.example\"]", "[host.\"http://b.example/v2/x\"]", "[host.\"https://a.example\"]"]
    );
    assert_eq!(text(&rendered).matches("override_path").count(), 1, "only where the URL has a path");
}

#[tokio::test]
async fn registries_conf_has_the_longest_prefix_that_keeps_names() {
    let rendered = rendered(RULES, MirrorFormat::RegistriesConf).await;
    assert_eq!(
        text(&rendered),
        "[[registry]]\nprefix = \"docker.io\"\nlocation = \"docker.io\"\n\n\
         [[registry.mirror]]\nlocation = \"r.example/mirror\"\n\n\
         [[registry]]\nprefix = \"gcr.io\"\nlocation = \"gcr.io\"\n\n\
         [[registry.mirror]]\nlocation = \"r.example/all/gcr.io\"\npull-from-mirror = \"tag-only\"\n\n\
         [[registry]]\nprefix = \"ghcr.io/team\"\nlocation = \"ghcr.io/team\"\n\n\
         [[registry.mirror]]\nlocation = \"s.example/ghcr\"\ninsecure = true\n\n\
         [[registry]]\nprefix = \"quay.io/org/app\"\nlocation = \"quay.io/org/app\"\n\n\
         [[registry.mirror]]\nlocation = \"r.example:5000/flat/quay.io_org_app\"\ninsecure = true\n"
    );
    assert_eq!(unreachable_names(&rendered), ["quay.io/x/** in s.example/flat"]);
    assert!(rendered.notes[0].contains("`sparse: true` keeps the digests"), "{:?}", rendered.notes);
}

#[tokio::test]
async fn the_way_back_to_a_source_has_its_certificates_and_is_as_insecure() {
    let authority = imgsync_tests::tls::Authority::default();
    let ca: String = authority.pem().lines().map(|line| format!("      {line}\n")).collect();
    let rules = &format!(
        "registries:\n  plain.example: {{tls: off}}\n  any.example: {{insecure: true}}\n  own.example:\n    ca: |\n{ca}\
         rules:\n- {{from: plain.example/a/b, to: m.example/p, naming: keep}}\n- {{from: any.example/a/b, to: m.example/q, \
         naming: keep}}\n- {{from: own.example/a/b, to: m.example/r, naming: keep}}\n"
    );
    let containerd = rendered(rules, MirrorFormat::Containerd).await;
    let file = |path: &str| {
        let file = containerd.files.iter().find(|file| file.path == path);
        file.unwrap_or_else(|| panic!("{path}: {containerd:?}")).text.split_once('\n').unwrap().1
    };
    assert!(file("plain.example/hosts.toml").starts_with("server = \"http://plain.example\"\n\n[host."));
    assert!(
        file("any.example/hosts.toml").starts_with("server = \"https://any.example\"\nskip_verify = true\n\n[host.")
    );
    assert!(
        file("own.example/hosts.toml")
            .starts_with("server = \"https://own.example\"\nca = \"ca-own.example.pem\"\n\n[host.")
    );
    assert!(file("own.example/ca-own.example.pem").contains(authority.pem().trim()));

    let conf = rendered(rules, MirrorFormat::RegistriesConf).await;
    let table: toml::Table = toml::from_str(&conf.files[0].text).unwrap();
    let insecure: Vec<(&str, bool)> = table["registry"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| {
            (entry["prefix"].as_str().unwrap(), entry.get("insecure").is_some_and(|it| it.as_bool() == Some(true)))
        })
        .collect();
    assert_eq!(insecure, [("any.example", true), ("own.example", false), ("plain.example", true)]);

    let k3s = rendered(rules, MirrorFormat::K3s).await;
    let registries = imgsync_config::parse_yaml_tree(&k3s.files[0].text).unwrap();
    assert_eq!(registries["configs"]["any.example"]["tls"]["insecure_skip_verify"], "true");
    assert_eq!(registries["configs"]["own.example"]["tls"]["ca_file"], "/etc/rancher/k3s/ca-own.example.pem");
}

#[tokio::test]
async fn openshift_has_an_object_for_digests_and_one_for_tags() {
    let rendered = rendered(RULES, MirrorFormat::OpenShift).await;
    let documents: Vec<&str> = text(&rendered).split("---\n").collect();
    assert_eq!(documents.len(), 2);
    assert!(documents[0].starts_with(
        "apiVersion: config.openshift.io/v1\nkind: ImageDigestMirrorSet\nmetadata:\n  name: imgsync-mirrors\nspec:\n  \
         imageDigestMirrors:\n    - source: docker.io\n      mirrors:\n        - r.example/mirror\n      \
         mirrorSourcePolicy: AllowContactingSource\n"
    ));
    assert!(!documents[0].contains("gcr.io\n"), "its digests are not those of the source: {}", documents[0]);
    assert!(documents[1].contains("kind: ImageTagMirrorSet\n") && documents[1].contains("  imageTagMirrors:\n"));
    assert!(documents[1].contains("    - source: gcr.io\n      mirrors:\n        - r.example/all/gcr.io\n"));
    assert!(rendered.notes.iter().any(|note| note.contains("insecureRegistries")), "{:?}", rendered.notes);
}

#[tokio::test]
async fn k3s_rewrites_paths_by_regular_expressions() {
    let rendered = rendered(RULES, MirrorFormat::K3s).await;
    assert_eq!(
        text(&rendered),
        "mirrors:\n  docker.io:\n    endpoint:\n      - https://r.example\n    rewrite:\n      ^(.*)$: mirror/$1\n  \
         gcr.io:\n    endpoint:\n      - https://r.example\n    rewrite:\n      ^(.*)$: all/gcr.io/$1\n  \
         ghcr.io:\n    endpoint:\n      - https://s.example\n    rewrite:\n      \"^team/([^/]+)$\": ghcr/$1\n  \
         quay.io:\n    endpoint:\n      - http://r.example:5000\n    rewrite:\n      ^org/app$: flat/quay.io_org_app\n\
         configs:\n  s.example:\n    tls:\n      insecure_skip_verify: true\n"
    );
}

#[tokio::test]
async fn k3s_has_no_two_rewrites_for_one_name() {
    let rules = "rules: [{from: docker.io/library/**, to: m.example/m, naming: keep}, {from: docker.io/library/nginx, to: \
                 m.example/other}, {from: docker.io/library/redis, to: [m.example/a, n.example/b]}]";
    let rendered = rendered(rules, MirrorFormat::K3s).await;
    assert_eq!(
        unreachable_names(&rendered),
        [
            "docker.io/library/nginx in m.example/other/docker.io_library_nginx",
            "docker.io/library/redis in m.example/a/docker.io_library_redis"
        ]
    );
    assert!(text(&rendered).contains("rewrite:\n      ^(.*)$: m/$1"), "{}", text(&rendered));
    assert!(rendered.notes.iter().any(|note| note.contains("not from n.example/b")), "{:?}", rendered.notes);
}

#[tokio::test]
async fn docker_mirrors_docker_hub_without_a_path_and_nothing_else() {
    let rules = "registries: {m.example: {insecure: true}}\nrules: [{from: nginx, to: m.example, naming: keep}, {from: redis, to: \
                 m.example/path, naming: keep}, {from: quay.io/a/b, to: n.example, naming: keep}]";
    let rendered = rendered(rules, MirrorFormat::Docker).await;
    let json: serde_json::Value = serde_json::from_str(&rendered.files[0].text).unwrap();
    assert_eq!(
        json,
        serde_json::json!({"registry-mirrors": ["https://m.example"], "insecure-registries": ["m.example"]})
    );
    let mut names = unreachable_names(&rendered);
    names.sort_unstable();
    assert_eq!(names, ["docker.io/library/redis in m.example/path/library/redis", "quay.io/a/b in n.example/a/b"]);
}

#[tokio::test]
async fn kustomize_has_an_entry_for_each_spelling() {
    let rules = "rules: [{from: nginx, to: m.example/m}, {from: docker.io/org/app, to: m.example/m}, {from: quay.io/a/b, to: \
                 m.example/m}, {from: ghcr.io/a/**, to: m.example/m, naming: keep}]";
    let rendered = rendered(rules, MirrorFormat::Kustomize).await;
    let entries: Vec<(&str, &str)> = text(&rendered)
        .split("  - name: ")
        .skip(1)
        .map(|entry| entry.trim_end().split_once("\n    newName: ").unwrap())
        .collect();
    assert_eq!(
        entries,
        [
            ("docker.io/library/nginx", "m.example/m/docker.io_library_nginx"),
            ("library/nginx", "m.example/m/docker.io_library_nginx"),
            ("docker.io/nginx", "m.example/m/docker.io_library_nginx"),
            ("nginx", "m.example/m/docker.io_library_nginx"),
            ("docker.io/org/app", "m.example/m/docker.io_org_app"),
            ("org/app", "m.example/m/docker.io_org_app"),
            ("quay.io/a/b", "m.example/m/quay.io_a_b"),
        ]
    );
    assert_eq!(unreachable_names(&rendered), ["ghcr.io/a/** in m.example/m/a/**"]);
}

#[tokio::test]
async fn kyverno_has_a_rule_for_each_list_of_containers_and_a_replacement_for_each_name() {
    let rendered = rendered(RULES, MirrorFormat::Kyverno).await;
    let policy = imgsync_config::parse_yaml_tree(text(&rendered)).unwrap();
    assert_eq!((&policy["apiVersion"], &policy["kind"]), (&"kyverno.io/v1".into(), &"ClusterPolicy".into()));
    let rules = policy["spec"]["rules"].as_array().unwrap();
    for (rule, list) in rules.iter().zip(["containers", "initContainers"]) {
        assert_eq!(rule["name"], format!("mirror-{}", list.to_lowercase()));
        let foreach = rule["mutate"]["foreach"].as_array().unwrap();
        assert_eq!(foreach.len(), 4);
        assert_eq!(foreach[1]["list"], format!("request.object.spec.{list}"));
        assert_eq!(
            foreach[1]["preconditions"]["all"][0]["key"],
            "{{ regex_match('^quay[.]io/org/app([:@].*)?$', element.image) }}"
        );
        assert_eq!(
            foreach[1]["patchStrategicMerge"]["spec"][list][0]["image"],
            "{{ regex_replace_all('^quay[.]io/org/app([:@].*)?$', element.image, \
             'r.example:5000/flat/quay.io_org_app$1') }}"
        );
        let operation = &rule["preconditions"]["all"][0];
        assert_eq!((&operation["operator"], &operation["value"]), (&"Equals".into(), &"CREATE".into()));
    }
    assert_eq!(rules.len(), 2);
}

#[tokio::test]
async fn formats_without_a_way_back_have_no_pattern_that_matches_only_a_part() {
    let rules = "rules: [{from: \"quay.io/a/web-*\", to: m.example/m, naming: keep}, {from: quay.io/b/**, to: m.example/m, naming: \
                 keep}, {from: {repositories: quay.io/c/*, exclude: [c/x]}, to: m.example/m, naming: keep}]";
    let policy = rendered(rules, MirrorFormat::Kyverno).await;
    assert_eq!(unreachable_names(&policy), ["quay.io/a/* in m.example/m/a/*", "quay.io/c/* in m.example/m/c/*"]);
    assert!(text(&policy).contains("quay[.]io/b/") && !text(&policy).contains("web-"));
    assert_eq!(unreachable_names(&rendered(rules, MirrorFormat::RegistriesConf).await), [""; 0]);
}

#[tokio::test]
async fn kyverno_excepts_narrower_names_from_a_pattern() {
    let rules = "rules: [{from: docker.io/library/nginx, to: m.example/flat}, {from: docker.io/**, to: m.example/m, naming: keep}]";
    let kyverno = rendered(rules, MirrorFormat::Kyverno).await;
    let policy = imgsync_config::parse_yaml_tree(text(&kyverno)).unwrap();
    let foreach = policy["spec"]["rules"][0]["mutate"]["foreach"].as_array().unwrap();
    assert_eq!(foreach[0]["preconditions"]["all"].as_array().unwrap().len(), 1);
    let except = &foreach[1]["preconditions"]["all"][1];
    assert!(
        except["key"].as_str().unwrap().starts_with("{{ regex_match('^(docker[.]io/library/nginx([:@].*)?)$', "),
        "{except}"
    );
    assert_eq!((&except["operator"], &except["value"]), (&"Equals".into(), &"false".into()));
}

/// The patterns of `source` and `mirrors` in the CRDs of OpenShift 4.13 and later (openshift/api, config/v1).
const OPENSHIFT_MIRROR: &str = concat!(
    "^((?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])",
    r"(?:(?:\.(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9]))+)?(?::[0-9]+)?)",
    "(?:(?:/[a-z0-9]+(?:(?:(?:[._]|__|[-]*)[a-z0-9]+)+)?)+)?$"
);

#[tokio::test]
async fn mirror_sets_hold_what_the_schema_of_openshift_asks_for() {
    let rules = "rules: [{from: \"[2001:db8::1]:5000/a/b\", to: m.example/m, naming: keep}, {from: \"reg.example:5000/a-b/c__d.e\", to: \
                 \"10.0.0.1:5000/m\"}, {from: gcr.io/x/**, to: m.example/m, naming: full, platforms: [linux/amd64]}]";
    let openshift = rendered(rules, MirrorFormat::OpenShift).await;
    assert_eq!(unreachable_names(&openshift), ["[2001:db8::1]:5000/a/b in m.example/m/a/b"]);
    let pattern = regex::Regex::new(OPENSHIFT_MIRROR).unwrap();
    let mut seen = Vec::new();
    for document in text(&openshift).split("---\n") {
        let object = imgsync_config::parse_yaml_tree(document).unwrap();
        assert_eq!(object["apiVersion"], "config.openshift.io/v1");
        let (kind, list) = match object["kind"].as_str().unwrap() {
            "ImageDigestMirrorSet" => ("digest", "imageDigestMirrors"),
            "ImageTagMirrorSet" => ("tag", "imageTagMirrors"),
            other => panic!("{other}"),
        };
        assert_eq!(object["spec"].as_object().unwrap().keys().collect::<Vec<_>>(), [list]);
        for entry in object["spec"][list].as_array().unwrap() {
            let source = entry["source"].as_str().unwrap();
            let mut keys: Vec<&str> = entry.as_object().unwrap().keys().map(String::as_str).collect();
            keys.sort_unstable();
            assert_eq!(keys, ["mirrorSourcePolicy", "mirrors", "source"]);
            assert_eq!(entry["mirrorSourcePolicy"], "AllowContactingSource");
            assert!(pattern.is_match(source), "{source}");
            let mirrors: Vec<&str> =
                entry["mirrors"].as_array().unwrap().iter().map(|mirror| mirror.as_str().unwrap()).collect();
            assert!(mirrors.iter().all(|mirror| pattern.is_match(mirror)), "{mirrors:?}");
            assert_eq!(mirrors.iter().collect::<HashSet<_>>().len(), mirrors.len(), "the list is a set");
            seen.push(format!("{kind} {source}"));
        }
    }
    assert_eq!(seen, ["digest reg.example:5000/a-b/c__d.e", "tag gcr.io", "tag reg.example:5000/a-b/c__d.e"]);
}

#[tokio::test]
async fn a_name_with_several_mirrors_is_counted_once_by_k3s() {
    let rules = "rules: [{from: docker.io/library/**, to: m.example/x, naming: keep}, {from: docker.io/library/redis, to: \
                 [a.example/p, b.example/p, c.example/p]}]";
    let mirrors = rendered(rules, MirrorFormat::K3s).await;
    assert!(mirrors.reachable <= 2, "{}", mirrors.reachable);
}

#[tokio::test]
async fn odd_names_are_quoted_and_credentials_are_in_no_format() {
    let rules = "registries: {\"[::1]:5000\": {username: me, password: hidden, tls: off}, on: {insecure: true}}\n\
                 rules: [{from: \"[2001:db8::1]:5000/no/1.0\", to: \"[::1]:5000/0x1f\", naming: keep}, {from: quay.io/null/1e3, \
                 to: \"[::1]:5000/true\", naming: full}, {from: localhost:1/a/b, to: \"[::1]:5000/y\", naming: keep}]";
    let formats = [
        MirrorFormat::Containerd,
        MirrorFormat::RegistriesConf,
        MirrorFormat::K3s,
        MirrorFormat::Kyverno,
        MirrorFormat::Kustomize,
    ];
    for format in formats {
        let rendered = rendered(rules, format).await;
        assert_eq!((rendered.unreachable.as_slice(), rendered.reachable), ([].as_slice(), 3), "{format:?}");
        for OutputFile { path, text, .. } in &rendered.files {
            assert!(!text.contains("hidden") && !text.contains("username"), "{text}");
            let is_toml = path.ends_with(".toml") || path.ends_with(".conf");
            let parsed = match is_toml {
                true => toml::from_str::<toml::Table>(text).map(drop).map_err(|error| error.to_string()),
                false => text.split("---\n").try_for_each(|part| imgsync_config::parse_yaml_tree(part).map(drop)),
            };
            parsed.unwrap_or_else(|error| panic!("{path}: {error}\n{text}"));
        }
    }
    let containerd = rendered(rules, MirrorFormat::Containerd).await;
    assert_eq!(containerd.files[0].path, "[2001:db8::1]:5000/hosts.toml");
    assert!(containerd.files[0].text.contains("[host.\"http://[::1]:5000/v2/0x1f\"]"), "{}", containerd.files[0].text);
}
