use super::*;
use imgsync_model::naming::NamingStyle;
use imgsync_model::select::{Newest, NewestBy};
use proptest::prelude::*;

mod credential_sources;
mod named_images;
mod policy;
mod secrets;

fn environment(name: &str) -> Option<String> {
    match name {
        "HUB_TOKEN" => Some("dckr: #pat\n  rules: []".to_owned()),
        "RABBITMQ_PASSWORD" => Some("rabbit".to_owned()),
        "IMGSYNC_KEY" => Some("0123456789abcdef".to_owned()),
        "RPS" => Some("7.5".to_owned()),
        "EMPTY" => Some(String::new()),
        _ => None,
    }
}

fn read(text: &str) -> Result<Config, ConfigErrors> {
    let pattern = |text: &str| vec![text.parse().unwrap()];
    let (distroless, kubeadm) = (pattern("gcr.io/distroless/**"), pattern("registry.k8s.io/**"));
    let preset = |name, has_versions, repositories| PresetInfo { name, has_versions, repositories };
    let presets =
        [preset("distroless", false, &distroless), preset("flannel", false, &[]), preset("kubeadm", true, &kubeadm)];
    Config::read(&ConfigFile { name: "imgsync.yaml", text, environment: &environment, presets: Some(&presets) })
}

fn good(text: &str) -> Config {
    read(text).unwrap_or_else(|errors| panic!("{text}\n{errors}"))
}

fn bad(text: &str) -> String {
    match read(text) {
        Ok(config) => panic!("{text}\nis taken as\n{}", config.to_yaml_redacted()),
        Err(errors) => errors.to_string(),
    }
}

/// Returns the messages alone.
fn messages(text: &str) -> Vec<String> {
    match read(text) {
        Ok(config) => panic!("{text}\nis taken as\n{}", config.to_yaml_redacted()),
        Err(errors) => errors.problems().iter().map(|problem| problem.message.clone()).collect(),
    }
}

fn rule(text: &str) -> String {
    format!("rules:\n  - {{from: gcr.io/a/b, to: r.example.com, {text}}}\n")
}

fn registry(text: &str) -> String {
    format!("registries: {{r.example.com: {{{text}}}}}\n")
}

const DESIGNED: &str = r#"
cluster:                       # leave out: all in one process
  broker: amqp://imgsync:${RABBITMQ_PASSWORD}@rabbitmq:5672
  store: redis://redis:6379
  key: ${IMGSYNC_KEY}
registries:
  docker.io: {username: gcrxio, password: "${HUB_TOKEN}", requests_per_second: 20, concurrency: 20}
  gcr.io: {endpoint: "http://127.0.0.1:5001"}
defaults: {to: docker.io/gcrxio, naming: flat}
rules:
  - preset: distroless
  - from: gcr.io/istio-release/**
    tags: {include: ["1.*"], exclude: ["*-rc*"], semver: ">=1.20", newest: 10, since: 2025-01-01}
    platforms: [linux/amd64, linux/arm64]
    to: [registry.example.com/mirror, harbor.example.org/mirror]
    naming: keep
"#;

#[test]
fn the_example_of_the_documentation_means_what_it_says() {
    let config = good(DESIGNED);
    let cluster = config.cluster.as_ref().unwrap();
    assert_eq!(cluster.broker[0].expose().as_str(), "amqp://imgsync:rabbit@rabbitmq:5672");
    let hub = &config.registries[&"docker.io".parse().unwrap()];
    let Some(CredentialConfig::Basic { username, password }) = &hub.credential else { panic!("{hub:?}") };
    assert_eq!((username.as_str(), password.expose()), ("gcrxio", "dckr: #pat\n  rules: []"), "a value stays a value");
    assert_eq!(config.rules.len(), 2);
    assert_eq!(config.rules[0].source, RuleSource::Preset("distroless".parse().unwrap()));
    assert_eq!(config.rules[0].naming, Some(NamingStyle::Flat));
    let rule = &config.rules[1];
    assert_eq!(
        (rule.line, rule.naming.clone(), rule.to.len(), rule.platforms.len()),
        (12, Some(NamingStyle::Keep), 2, 2)
    );
    assert_eq!(rule.selection.newest, Some(Newest { count: 10, by: NewestBy::Version }));
    assert!(!config.has_secrets_inline());
    assert!(!format!("{config:?}").contains("rabbit@"), "passwords are never printed");
}

#[test]
fn what_is_not_written_has_its_default() {
    for text in ["rules:\n", "rules: []\nregistries:\n", "\u{feff}rules: []\n", "---\nrules:\n"] {
        assert_eq!(good(text), Config::default(), "{text:?}");
    }
    for text in ["", "# nothing\n", "---\n", "\u{feff}\n"] {
        assert!(bad(text).contains("the configuration is empty"), "{text:?}");
    }
    let config = Config::default();
    let days = |days: u32| days * DAY;
    assert_eq!((config.verify_every, config.batch_retention, config.concurrency), (days(7), days(90), 20));
}

#[test]
fn good_configurations_are_taken() {
    for text in [
        &rule("tags: {newest: {count: 3, by: date}, since: 90d, min: 2}"),
        &rule("tags: {include: latest, exclude: '/.*-rc\\d+/', semver: '>=1.20 <2 || 3.x'}"),
        &rule("platforms: linux/arm/v7, referrers: false, verify_every: 1h30m, referrers_every: 2w"),
        &rule("referrers: [application/spdx+json]"),
        &rule("platforms: linux/amd64, sparse: true, foreign_layers: copy"),
        &rule("naming: '{{namespace}}/{{basename}}:{{tag}}'"),
        "rules: [{from: 'oci:./images', to: 'oci:./copy'}]",
        "rules: [{from: nginx, to: r.example.com}, {from: 'quay.io/*/etcd-*', to: [r.example.com, 'oci:out']}]",
        "registries: {docker.io: {username: gcrxio}}\nrules: [{preset: flannel, naming: original}]",
        "rules: [{preset: {kubeadm: {versions: '>=1.30, <1.33'}}, to: r.io}, {preset: {flannel: {}}, to: r.io}]",
        "rules: [{preset: kubeadm ~1.31, to: r.io}]",
        "defaults: {to: r.io, naming: original}\nrules: [{preset: flannel}, {from: quay.io/a/b}]",
        &registry("username: 'robot$name', password: p$$word"),
        &registry("identity_token: t, mirrors: ['https://m.example.com', 'http://n.example.com:5000'], http1: yes"),
        &registry(
            "proxy: 'socks5://u:p@proxy:1080', tls: off, egress: office, chunk: 10MiB, allow_private: true, create: yes",
        ),
        &registry("ca: [/etc/ca.pem, \"-----BEGIN CERTIFICATE-----\\nx\\n-----END CERTIFICATE-----\"]"),
        &registry(
            "client_cert: c.pem, client_key: k.pem, listing: harbor, api: 'https://api.example.com', insecure: false",
        ),
        &registry("listing: registry"),
        &registry("allow_metadata: [169.254.169.254, 'fd00:ec2::254']"),
        "registries: {docker.io: {endpoint: 'https://m', api: 'https://hub.docker.com'}, quay.io: {listing: quay}}",
        &registry("credentials: [{username: a, password: b}, {identity_token: c}], requests_per_second: \"${RPS}\""),
        &registry("pull_reserve: 20, bandwidth: 20MiB, concurrency: 4"),
        &registry("pull_reserve: 5%"),
        "bandwidth: 1.5MB\nmonthly_quota: 1TiB\n",
        "report: out.json\nkeep: 30d\ntimeout: 90s\nconcurrency: ${N:-5}\nverify_every: 12h\n",
        "report: {file: out.md, level: 3}\ncluster: {store: 'rediss://h', key: \"${IMGSYNC_KEY}\"}\n",
        "rules:\n  - &a {from: gcr.io/a, to: r.example.com, tags: &t {newest: 3}}\n  - {<<: *a, from: gcr.io/b, tags: *t}\n",
    ] {
        let config = good(text);
        let shown = config.to_yaml_redacted();
        let again = good(&shown);
        assert_eq!(again.to_yaml_redacted(), shown, "what is shown can be read");
        assert_eq!(again.rules.len(), config.rules.len());
    }
}

#[test]
fn an_address_with_a_login_of_any_form_is_shown_masked_and_can_be_read() {
    for login in ["me@", "me:hunter2@", ":hunter2@"] {
        let cluster = format!("cluster: {{broker: 'amqp://me:hunter2@h', store: 'redis://{login}h'}}\nrules: []\n");
        let shown = good(&cluster).to_yaml_redacted();
        assert!(!shown.contains("hunter2") && !shown.contains("me@"), "{shown}");
        assert_eq!(good(&shown).to_yaml_redacted(), shown, "{login}");
    }
}

#[test]
fn values_stay_as_they_were_written() {
    let config = good(&rule("tags: {include: [1.20, 010, true]}"));
    let include: Vec<&str> = config.rules[0].selection.include.iter().map(|pattern| pattern.as_str()).collect();
    assert_eq!(include, ["1.20", "010", "true"]);
}

#[test]
fn without_a_target_images_go_to_the_docker_hub_user() {
    let config = good("registries: {docker.io: {username: gcrxio}}\nrules: [{from: gcr.io/a/b}]");
    assert_eq!(config.rules[0].to, [RuleTarget::Registry("docker.io/gcrxio".parse().unwrap())]);
    assert_eq!(messages("rules: [{from: gcr.io/a/b}]"), ["rule has no target (`to`)"]);
}

#[test]
fn secrets_in_the_file_are_noticed() {
    assert!(good(&registry("username: u, password: p")).has_secrets_inline());
    assert!(good("cluster: {broker: 'amqp://u:p@h'}").has_secrets_inline());
    assert!(!good(&registry("username: u, password: \"${HUB_TOKEN}\"")).has_secrets_inline());
    assert!(good("cluster: {broker: 'amqp://u:p@${RPS}'}").has_secrets_inline());
    assert!(good(&registry("username: u, password: \"${NONE:-p}\"")).has_secrets_inline());
    assert!(!good("cluster: {broker: 'amqp://u:${RPS}@h'}").has_secrets_inline());
    assert!(!good("cluster: {broker: 'amqp://u@h'}").has_secrets_inline());
    assert!(!good("notify: {webhook: {url: 'https://h/${RPS}', headers: {a: 'Bearer ${RPS}'}}}").has_secrets_inline());
    assert!(good("notify: {webhook: {url: 'https://h/s3cret'}}").has_secrets_inline());
    assert!(!good(&registry("client_cert: c.pem, client_key: k.pem")).has_secrets_inline(), "a file's name is none");
}

#[test]
fn bad_configurations_are_refused_with_the_reason() {
    for (text, message) in [
        ("rules: {}".to_owned(), "expected a list, and this is a mapping"),
        ("rules: [{from: a.io/b, to: 'oci-archive:'}]".to_owned(), "`oci-archive:` in a rule needs the name of a file"),
        (
            "rules: [{from: a.io/b, to: ['oci-archive:x.tar', 'docker-archive:./x.tar']}]".to_owned(),
            "docker-archive:./x.tar is also written as oci-archive:",
        ),
        ("rules: [{}]".to_owned(), "a rule needs `from`, `preset` or `images`"),
        ("rules: [{form: a, to: r.io}]".to_owned(), "unknown key `form`, did you mean `from`?"),
        ("[]".to_owned(), "the configuration is a mapping of cluster, registries"),
        ("a: b: c".to_owned(), "this is not YAML: "),
        ("rules: []\n---\nrules: []".to_owned(), "a second one begins here"),
        ("keep: 1d\nkeep: 2d".to_owned(), "`keep` is written twice, first in line 1"),
        ("keep: 3 fortnights".to_owned(), "`3 fortnights` is not a time such as"),
        ("keep:\n".to_owned(), "a value is missing here"),
        ("keep: 0s".to_owned(), "`0s` is not a time"),
        ("concurrency: 0".to_owned(), "`0` is not a whole number from 1 to 10000"),
        ("timeout: \"${EMPTY}\"".to_owned(), "this is empty once the variables are filled in"),
        ("timeout: ${NONE:?set it}".to_owned(), "the variable NONE is not set: set it"),
        ("report: out.pdf".to_owned(), "a report's name ends with"),
        ("cluster: {broker: 'http://h'}".to_owned(), "a URL with http:// cannot be used here, but amqp:// or amqps://"),
        ("cluster: {store: redis}".to_owned(), "this is not a URL: it begins with redis:// or rediss://"),
        ("cluster: {key: ''}".to_owned(), "this secret is empty"),
        ("cluster: {}\nrules: [{from: a, to: 'oci:x'}]".to_owned(), "a layout or an archive works in one process only"),
        ("defaults: {verify_every: 1d}".to_owned(), "`verify_every` is not a key of `defaults`; it belongs to a rule"),
        ("rules: [{from: a, preset: flannel, to: r.io}]".to_owned(), "either `from` or `preset`, not both"),
        ("rules: [{preset: flanel, to: r.io}]".to_owned(), "there is no preset `flanel`, did you mean `flannel`?"),
        (
            "rules: [{preset: {kubeadm: {versions: 1.30}, flannel: {}}, to: r.io}]".to_owned(),
            "a preset with settings is a mapping of one name",
        ),
        ("rules: [{preset: {kubeadm: {version: 1.30}}, to: r.io}]".to_owned(), "did you mean `versions`?"),
        ("rules: [{preset: {kubeadm: {versions: newest}}, to: r.io}]".to_owned(), "`newest` is not a version"),
        ("rules: [{preset: {kubadm: {}}, to: r.io}]".to_owned(), "did you mean `kubeadm`?"),
        ("rules: [{preset: {flannel: {versions: 1.30}}, to: r.io}]".to_owned(), "`flannel` does not support versions"),
        ("rules: [{preset: kubeadm now, to: r.io}]".to_owned(), "after the preset's name comes a version range"),
        ("rules: [{preset: '*', to: r.io}]".to_owned(), "`*` is not a preset's name"),
        ("rules: [{preset: distroless, to: docker.io/x, naming: full}]".to_owned(), "two levels, not 4"),
        ("rules: [{from: 'gcr.io/a:1.*', to: r.io}]".to_owned(), "a repository pattern has no tag"),
        ("rules: [{from: 'gcr.io/**/a', to: r.io}]".to_owned(), "`**` can only be the last component"),
        ("rules: [{from: 'oci:x:1.0', to: r.io}]".to_owned(), "a layout in a rule has no tag"),
        ("rules: [{from: 'oci:x', to: 'oci:x'}]".to_owned(), "source and target are the same"),
        ("rules: [{from: r.io/a/b, to: r.io, naming: keep}]".to_owned(), "source and target are the same"),
        ("rules: [{from: a, to: gcrxio}]".to_owned(), "for Docker Hub write `docker.io/gcrxio`"),
        ("rules: [{from: a, to: [r.io, r.io]}]".to_owned(), "duplicate target"),
        ("rules: [{from: 'gcr.io/a/**', to: docker.io/x, naming: keep}]".to_owned(), "two levels, not 3"),
        (rule("naming: original"), "`naming: original` is for presets"),
        (rule("naming: flt"), "unknown naming style `flt`"),
        (rule("naming: '{{repo}}'"), "unknown variable `repo`"),
        (rule("platforms: [linux]"), "`linux` is not a platform"),
        (rule("platforms: []"), "this list is empty"),
        (rule("referrers: maybe"), "`maybe` is neither true nor false"),
        (rule("sparse: true"), "`sparse` needs `platforms`"),
        (rule("foreign_layers: yes"), "`yes` is not one of keep (as references), copy"),
        (rule("tags: [1.*]"), "`tags` is a mapping of include, exclude"),
        (rule("tags: {include: []}"), "this list is empty"),
        (rule("tags: {include: [1.2], exclude: ['1.*']}"), "`1.2` is always excluded by `1.*`"),
        (rule("tags: {exclude: '*'}"), "`*` excludes all tags"),
        (rule("tags: {newest: 0}"), "`0` is not a whole number from 1"),
        (rule("tags: {newest: {by: date}}"), "`count` is missing"),
        (rule("tags: {newest: {count: 1, by: size}}"), "is not one of version, date"),
        (rule("tags: {semver: '>2 <1'}"), "no version can be `>2 <1`"),
        (rule("tags: {since: soon}"), "`soon` is neither a date"),
        (rule("tags: {include: '/(/'}"), "is not a regular expression"),
        (registry("tls: enabled"), "`tls` is `on` or `off`, not `enabled`"),
        (registry("user: me"), "unknown key `user`, did you mean `username`?"),
        (registry("password: p"), "a `password` needs a `username`"),
        (registry("username: u, password: p, identity_token: t"), "there is a `password` as well"),
        (registry("credentials: [{username: u}]"), "a `username` needs a `password` here"),
        (registry("endpoint: r.example.com"), "this is not a URL: it begins with https:// or http://"),
        (registry("endpoint: 'https://u:p@h'"), "this URL holds a user or a password"),
        (registry("endpoint: 'https://h', tls: off"), "`tls: off` contradicts `endpoint`"),
        (registry("tls: off, insecure: true"), "`insecure` has no effect with `tls: off`"),
        (
            registry("listing: dockerhub"),
            "unknown listing `dockerhub`: use auto, registry, quay, hub, harbor or github",
        ),
        (registry("listing: github"), "`listing: github` needs `api:` for r.example.com"),
        (registry("listing: harbor, endpoint: 'https://h'"), "`listing: harbor` needs `api:` when `endpoint` is set"),
        (registry("listing: registry, api: 'https://h'"), "`api` has no effect with `listing: registry`"),
        (registry("api: 'https://h'"), "cannot tell the provider from the address of the API: set `listing:`"),
        (registry("proxy: 'ftp://h'"), "a URL with ftp:// cannot be used here"),
        (registry("client_key: k.pem"), "`client_key` needs `client_cert`"),
        (registry("requests_per_second: -1"), "`-1` is not a number above 0"),
        (registry("chunk: big"), "`big` is not a size"),
        (registry("pull_reserve: some"), "`some` is neither a number of pulls nor a percentage such as 5%"),
        (registry("pull_reserve: 101%"), "`101%` is neither"),
        ("monthly_quota: much".to_owned(), "`much` is not a size"),
        ("registries: {'https://gcr.io': {}}".to_owned(), "write the host alone, without a scheme"),
        ("registries: {\"${REGISTRY}\": {}}".to_owned(), "variables are allowed in values, not in keys"),
        ("registries: {gcr.io/a: {}}".to_owned(), "a registry is a host, without the path `a`"),
        ("registries: {docker.io: {}, index.docker.io: {}}".to_owned(), "is docker.io, which is written above already"),
    ] {
        let found = messages(&text);
        assert_eq!(found.len(), 1, "{text}: {found:?}");
        assert!(found[0].contains(message), "{text}: {found:?}");
    }
}

#[test]
fn tags_without_a_key_hint_at_include() {
    for (tags, hint) in [
        ("latest", "write `tags: {include: [\"latest\"]}`"),
        ("[7.4]", "write `tags: {include: [\"7.4\"]}`"),
        ("[latest, 1.*]", "write `tags: {include: [\"latest\", \"1.*\"]}`"),
    ] {
        let shown = bad(&rule(&format!("tags: {tags}")));
        assert!(shown.contains(hint) && shown.contains("`tags` is a mapping of include, exclude"), "{tags}: {shown}");
    }
    let shown = bad(&rule("tags: \"${RPS}\""));
    assert!(!shown.contains("write `tags"), "{shown}");
}

#[test]
fn secrets_are_in_no_message() {
    for text in [
        "registries:\n  gcr.io: {username: u, password: hunter2, tsl: off}\n",
        "registries:\n  gcr.io: {username: u, pasword: hunter2}\n",
        "registries:\n  gcr.io: {username: u, password: a, password: hunter2}\n",
        "registries:\n  gcr.io: {username: u, password: [hunter2]}\n",
        "registries:\n  gcr.io: {username: u, password: {a: hunter2}}\n",
        "registries:\n  gcr.io:\n    password: hunter2\n    : : [",
        "registries: {gcr.io: {password: hunter2",
        "cluster: {broker: 'http://u:hunter2@h', x: y}\n",
        "cluster: {store: \"redis://:hunter2@h:port\"}\n",
        "registries: {gcr.io: {endpoint: 'https://u:hunter2@h'}}",
        "cluster: {store: \"redis://:hun/hunter2@h:port\"}\n",
        "registries: {gcr.io: {username: u, password: \"${NONE:-hunter2}\", x: y}}",
        "registries: {gcr.io: {username: u, password: \"hunter2${RPS}\", x: y}}",
        "registries: {gcr.io: {client_key: \"-----BEGIN hunter2\"}}",
    ] {
        let shown = bad(text);
        assert!(!shown.contains("hunter2"), "{shown}");
    }
    let text = "timeout: ${HUB_TOKEN}\nrules: [{from: \"${HUB_TOKEN}\", to: \"${HUB_TOKEN}\"}]\n";
    assert!(!bad(text).contains("#pat"), "{}", bad(text));
    let shown = good(&registry("username: u, password: hunter2, proxy: 'http://u:hunter2@h'")).to_yaml_redacted();
    assert!(!shown.contains("hunter2"), "{shown}");
}

#[test]
fn everything_that_is_wrong_is_shown_at_once_with_its_place() {
    let text = "\
registries:
  docker.io: {username: gcrxio, password: hunter2, requests_per_secnd: 20}
rules:
  - preset: distroless
    to: docker.io/gcrxio
  - from: gcr.io/istio-release/**
    tag: {include: [\"1.*\"]}
    to: docker.io/gcrxio
    platforms: [linux/amd64, amd64]
  - from: gcr.io/a/ü:1.0
    tags: {newest: 0, semver: \">=latest\"}
\tto: x
";
    insta::assert_snapshot!(bad(text), @r#"
    error: this is not YAML: tabs disallowed within this context (block indentation)
       --> imgsync.yaml:12:2
        |
     12 | 	to: x
        | 	^
        = hint: YAML is indented with spaces, not with tabs
    "#);
    insta::assert_snapshot!(bad(&text.replace('\t', "    ")), @r#"
    error: unknown key `requests_per_secnd`, did you mean `requests_per_second`?
      --> imgsync.yaml:2:52
       |
     2 |   docker.io: {username: ***, password: ***, requests_per_secnd: 20}
       |                                             ^^^^^^^^^^^^^^^^^^

    error: unknown key `tag`, did you mean `tags`?
      --> imgsync.yaml:7:5
       |
     7 |     tag: {include: ["1.*"]}
       |     ^^^

    error: `amd64` is not a platform: write os/arch or os/arch/variant, as in linux/amd64 or linux/arm/v7
      --> imgsync.yaml:9:30
       |
     9 |     platforms: [linux/amd64, amd64]
       |                              ^^^^^

    error: a repository pattern has no tag
       --> imgsync.yaml:10:11
        |
     10 |   - from: gcr.io/a/ü:1.0
        |           ^^^^^^^^^^^^^^
        = hint: write `from: gcr.io/a/ü` and `tags: {include: ["1.0"]}`

    error: `0` is not a whole number from 1
       --> imgsync.yaml:11:20
        |
     11 |     tags: {newest: 0, semver: ">=latest"}
        |                    ^

    error: `>=latest` is not a version to compare with, such as 1.20, v1.2.3, 1.x or 2024-01-15
       --> imgsync.yaml:11:31
        |
     11 |     tags: {newest: 0, semver: ">=latest"}
        |                               ^^^^^^^^^^

    error: `x` names no registry; for Docker Hub write `docker.io/x`
       --> imgsync.yaml:12:9
        |
     12 |     to: x
        |         ^
    "#);
}

#[test]
fn rules_that_must_collide_are_refused() {
    let text = "\
rules:
  - {from: gcr.io/a/pilot, to: r.example.com/m, naming: basename}
  - {from: quay.io/b/pilot, to: [r.example.com/n, r.example.com/m], naming: basename}
";
    insta::assert_snapshot!(bad(text), @r#"
    error: r.example.com/m/pilot is also written by the rule in line 2, with other images
      --> imgsync.yaml:3:5
       |
     3 |   - {from: quay.io/b/pilot, to: [r.example.com/n, r.example.com/m], naming: basename}
       |     ^
       = hint: use another `naming` or `to` for one of the two
    "#);
    let twice = |platforms: &str| {
        format!(
            "rules: [{{from: r.io/a, to: r.example.com}}, {{from: r.io/a, to: r.example.com, platforms: {platforms}}}]"
        )
    };
    assert_eq!(messages(&twice("linux/amd64")).len(), 1, "one image, cut in two ways");
    good(&twice("linux/amd64").replace(", platforms: linux/amd64", ""));
    good(&text.replace("gcr.io/a/pilot,", "gcr.io/a/pilot, tags: {include: '1.*'},"));
}

#[test]
fn a_variable_in_braces_needs_quotes_and_the_message_says_so() {
    insta::assert_snapshot!(bad("registries:\n  docker.io: {password: ${HUB_TOKEN}}\n"), @r#"
    error: this is not YAML: while parsing a flow mapping, did not find expected ',' or '}'
      --> imgsync.yaml:2:26
       |
     2 |   docker.io: {password: ${HUB_TOKEN}}
       |                          ^
       = hint: quote variables inside { } and [ ]: "${VAR}"
    "#);
}

#[test]
fn a_configuration_is_shown_as_it_is_understood() {
    insta::assert_snapshot!(good(DESIGNED).to_yaml_redacted(), @r#"
    cluster:
      broker:
        url: amqp://rabbitmq:5672
        username: "***"
        password: "***"
      store: redis://redis:6379
      key: "***"
    registries:
      docker.io:
        username: "***"
        password: "***"
        requests_per_second: 20
        concurrency: 20
      gcr.io:
        endpoint: http://127.0.0.1:5001/
    defaults:
      to: [docker.io/gcrxio]
    rules:
      - preset: distroless
        to: [docker.io/gcrxio]
        naming: flat
        referrers: true
        verify_every: 7d
        referrers_every: 7d
      - from: gcr.io/istio-release/**
        tags:
          include: [1.*]
          exclude: ["*-rc*"]
          semver: ">=1.20"
          newest: 10
          since: 2025-01-01
        platforms: [linux/amd64, linux/arm64]
        to: [registry.example.com/mirror, harbor.example.org/mirror]
        naming: keep
        referrers: true
        verify_every: 7d
        referrers_every: 7d
    verify_every: 7d
    referrers_every: 7d
    keep: 90d
    concurrency: 20
    if_running: wait
    timeout: 10m
    "#);
}

#[test]
fn retention_settings_are_read_and_shown() {
    let config = good(&rule(
        "immutable: ['v*', '/^[0-9.]+$/'], backup: '{{tag}}-before-{{date}}', prune: {keep_days: 0, limit: 5}",
    ));
    let Rule { immutable, backup, prune, .. } = &config.rules[0];
    assert_eq!(
        (immutable.len(), backup.as_ref().map(ToString::to_string)),
        (2, Some("{{tag}}-before-{{date}}".into()))
    );
    assert_eq!(*prune, Some(PruneConfig { grace_period: Duration::ZERO, limit: PruneLimit::Count(5) }));
    assert_eq!(good(&config.to_yaml_redacted()).rules, {
        let mut again = good(&config.to_yaml_redacted()).rules;
        again[0].prune = *prune;
        again
    });
    assert_eq!(
        good(&rule("prune: true")).rules[0].prune,
        Some(PruneConfig { grace_period: 30 * DAY, limit: PruneLimit::Percent(10) })
    );
    assert_eq!(good(&rule("prune: {}")).rules[0].prune, good(&rule("prune: on")).rules[0].prune);
    assert_eq!(good(&rule("prune: false")).rules[0].prune, None);
    let defaults = good(
        "defaults: {to: r.example.com, immutable: '1.*'}\nrules: [{from: gcr.io/a}, {from: gcr.io/b, immutable: '2.*'}]",
    );
    let of = |index: usize| defaults.rules[index].immutable[0].as_str().to_owned();
    assert_eq!((of(0), of(1)), ("1.*".to_owned(), "2.*".to_owned()));
    for (text, wanted) in [
        ("prune: {limit: 200%}", "`200%` is neither a number of tags nor a percentage such as 10%"),
        ("prune: {keep_days: 1.5}", "`1.5` is not a whole number from 0 to 36500"),
        ("prune: {keep_day: 1}", "unknown key `keep_day`, did you mean `keep_days`?"),
        ("backup: '{{tag}}'", "the backup tag must differ from the tag that is backed up"),
        ("backup: '{{date}}'", "the backup tag must contain {{tag}}, or all backups would have the same tag"),
    ] {
        assert_eq!(messages(&rule(text)), [wanted], "{text}");
    }
    let layout = "rules: [{from: gcr.io/a, to: 'oci:x', prune: true, backup: '{{tag}}-old'}]";
    assert_eq!(messages(layout).len(), 2);
    assert_eq!(messages("defaults: {to: r.example.com, prune: true}").len(), 1, "a rule says so itself");
}

#[test]
fn aliases_cannot_make_a_file_explode() {
    let mut text = "a: &a [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for (name, of) in ["b", "c", "d", "e", "f", "g", "h", "i"].iter().zip(["a", "b", "c", "d", "e", "f", "g", "h"]) {
        text += &format!("{name}: &{name} [{}]\n", vec![format!("*{of}"); 10].join(", "));
    }
    assert_eq!(messages(&text), ["aliases make this file too large"]);
    assert_eq!(messages(&format!("a: {}", "[".repeat(200))).len(), 1);
    assert_eq!(messages("a: &a [*a]").len(), 1);
}

#[test]
fn a_long_configuration_is_read_in_no_time() {
    let mut text = "rules:\n".to_owned();
    for i in 0..2000 {
        text += &format!("  - {{from: gcr.io/a/r{i}, to: r.example.com/m, naming: keep}}\n");
    }
    assert_eq!(good(&text).rules.len(), 2000);
}

proptest! {
    #[test]
    fn nothing_panics(text in "([a-z]{1,8}: |- |\\[|\\{|\\}|\\]|, |\n|  |\"|'|\\$\\{|[&*|>#\t]|ä){0,40}|(?s).{0,60}") {
        if let Err(errors) = read(&text) {
            prop_assert!(!errors.to_string().is_empty());
        }
    }

    #[test]
    fn no_value_of_a_variable_changes_what_is_configured(value in "(?s).{1,30}") {
        let environment = |_: &str| Some(value.clone());
        let text = "registries:\n  gcr.io:\n    username: u\n    password: ${X}\n";
        let config = Config::read(&ConfigFile { name: "f", text, environment: &environment, presets: None }).unwrap();
        let settings = &config.registries[&"gcr.io".parse().unwrap()];
        prop_assert_eq!(&settings.credential, &Some(CredentialConfig::Basic { username: "u".into(), password: Secret::new(&*value) }));
    }
}
