//! Rules that name each image: `images` and `digests`.

use crate::{Config, ConfigFile, RuleSource};

fn read(rule: &str) -> Result<Config, String> {
    let text = format!("defaults: {{to: r.example/m, tags: {{newest: 3}}}}\nrules:\n- {{{rule}}}\n");
    let file = ConfigFile { name: "c.yaml", text: &text, environment: &|_| None, presets: None };
    Config::read(&file).map_err(|errors| errors.to_string())
}

fn digest(content: &str) -> String {
    imgsync_oci::Digest::sha256(content.as_bytes()).to_string()
}

#[test]
fn files_and_digests_are_sources_without_a_tag_filter() {
    let (a, b) = (digest("a"), digest("b"));
    for (rule, label) in [
        ("images: list.txt".to_owned(), "images of list.txt"),
        ("images: [list.txt, manifests/, list.txt]".to_owned(), "images of list.txt, manifests/"),
        (format!("from: nginx, digests: ['{a}', '{b}', '{a}']"), "docker.io/library/nginx (2 digests)"),
    ] {
        let config = read(&rule).unwrap();
        let [rule] = config.rules.as_slice() else { panic!("{rule}") };
        assert_eq!(rule.source_label(), label);
        assert!(rule.source.names_images() && rule.selection == Default::default(), "{label}");
        let shown = config.to_yaml_redacted();
        let file = ConfigFile { name: "c.yaml", text: &shown, environment: &|_| None, presets: None };
        let again = Config::read(&file).unwrap_or_else(|errors| panic!("{shown}{errors}"));
        assert_eq!((&again.rules[0].source, again.rules[0].identity()), (&rule.source, rule.identity()), "{shown}");
    }
    let RuleSource::Digests(source) = &read(&format!("from: nginx, digests: '{a}'")).unwrap().rules[0].source else {
        panic!("one digest");
    };
    assert_eq!(source.digests.len(), 1);
}

#[test]
fn the_identity_is_that_of_the_images() {
    let identity = |rule: &str| read(rule).unwrap().rules[0].identity();
    let (a, b) = (digest("a"), digest("b"));
    let of = |digests: &[&String]| {
        let digests: Vec<&str> = digests.iter().map(|digest| digest.as_str()).collect();
        identity(&format!("from: nginx, digests: ['{}']", digests.join("', '")))
    };
    assert_eq!(of(&[&a, &b]), of(&[&b, &a]));
    assert_ne!(of(&[&a]), of(&[&b]));
    assert_eq!(identity("images: [./a, b]"), identity("images: [b, a/]"));
    assert_ne!(identity("images: [a/b]"), identity("images: [a, b]"));
}

#[test]
fn contradictions_are_refused() {
    let a = digest("a");
    let long = format!("sha512:{}", "0".repeat(128));
    for (rule, wanted) in [
        ("images: a, from: nginx".to_owned(), "either `images` or `from`"),
        (format!("images: a, digests: '{a}'"), "either `images` or `digests`"),
        ("images: a, tags: {newest: 1}".to_owned(), "`tags` needs `from` without `digests`"),
        ("images: a, prune: true".to_owned(), "`prune` needs `from` without `digests`"),
        ("images: '*.yaml'".to_owned(), "wildcards are not supported"),
        ("images: []".to_owned(), "this list is empty"),
        (format!("digests: '{a}'"), "`digests` needs `from`"),
        (format!("preset: kubeadm, digests: '{a}'"), "`digests` needs `from`"),
        (format!("from: 'gcr.io/x/**', digests: '{a}'"), "one repository, without wildcards"),
        (format!("from: nginx, digests: '{a}', tags: {{newest: 1}}"), "`tags` needs `from` without `digests`"),
        ("from: nginx, digests: latest".to_owned(), "no `algorithm:`"),
        (format!("from: nginx, digests: '{long}'"), "no tag has room for the digest"),
    ] {
        let said = read(&rule).unwrap_err();
        assert!(said.contains(wanted), "{rule}: {said}");
    }
}
