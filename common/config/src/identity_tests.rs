use proptest::prelude::*;

use super::super::{Config, ConfigFile};
use super::*;

fn rules(yaml: &str) -> Vec<Rule> {
    let file = ConfigFile { name: "c.yaml", text: yaml, environment: &|_| None, presets: None };
    Config::read(&file).unwrap_or_else(|errors| panic!("{yaml}\n{errors}")).rules
}

fn rule(yaml: &str) -> Rule {
    rules(yaml).remove(0)
}

/// Identity of a rule from gcr.io/a to r.example/m with these keys in addition.
fn with(more: &str) -> Digest {
    rule(&format!("rules:\n- from: gcr.io/a\n  to: r.example/m\n  {more}\n")).identity()
}

/// The hashes that stores hold. A row may only change together with the version of its domain.
const GOLDEN: &[(&str, &str)] = &[
    ("rules: [{from: gcr.io/a, to: r.example/m}]", "4f3064146350451a6d89b8fd25632086eba7077b13f83e192647e4e629b0806c"),
    (
        "rules: [{preset: flannel, to: docker.io/me, naming: original}]",
        "88bfcc10a9439cc475ede8486a8f0f8aa6028ac54b196ecd1b34a4d5947da38b",
    ),
    (
        "rules: [{preset: {kubeadm: {versions: '>=1.30 <1.32'}}, to: r.example/m}]",
        "3cd09f81ccce0784d76d0223df9c8d4a3c564f7c28a68d1ae049be54663874a5",
    ),
    (
        "rules:\n- from: {repositories: gcr.io/a/**, exclude: [gcr.io/a/b, gcr.io/a/*-test]}\n  to: [r.example/m, 'oci:out']\n  \
         naming: '{{namespace}}/{{basename}}'\n  platforms: [linux/amd64, linux/arm/v7]\n  sparse: true\n  foreign_layers: copy\n",
        "4eab634af8e449652704775d699f9df8f77fc1c76722dfb2b9e635f7825e2827",
    ),
    (
        "rules:\n- from: gcr.io/a\n  to: r.example/m\n  tags: {include: ['v*', /x.y/], exclude: '*-rc*', semver: '^1.2 || ~2.3', \
         newest: {count: 3, by: date}, since: 90d, min: 1}\n",
        "48c71fed48657d3ba32db3d4dfcf16d4093fc3ba183ac52f33e72f4f7828051b",
    ),
    (
        "rules:\n- from: gcr.io/a\n  to: r.example/m\n  referrers: [application/spdx+json]\n  immutable: ['v*']\n  \
         backup: '{{tag}}-before-{{date}}'\n  prune: {keep_days: 7, limit: 5}\n  verify_every: 1h\n  referrers_every: 2h\n",
        "76ecaea41330cb800e5416701532060611e31ff0b92914fa5b6cd38d4bae7096",
    ),
    (
        "rules: [{from: 'oci:in', to: localhost:5000, referrers: false, tags: {since: 2026-01-01}}]",
        "76ee50db68a93906f1619504e0a43734335961f052b0c643151c8763e4e77f08",
    ),
];

#[test]
fn identities_are_as_they_were() {
    let found: Vec<_> = GOLDEN.iter().map(|(yaml, _)| rule(yaml).identity().hex().to_owned()).collect();
    let golden: Vec<_> = GOLDEN.iter().map(|(_, golden)| (*golden).to_owned()).collect();
    assert_eq!(found, golden);
    let both = rules("rules: [{from: gcr.io/a, to: r.example/m}, {from: gcr.io/b, to: r.example/m}]");
    let of = |purpose: BatchPurpose| batch_identity(&both, purpose).hex().to_owned();
    let found = [
        of(BatchPurpose::default()),
        of(BatchPurpose { slice: Some((2, 100)), ..BatchPurpose::default() }),
        of(BatchPurpose { verify: Some(false), ..BatchPurpose::default() }),
        of(BatchPurpose { verify: Some(true), ..BatchPurpose::default() }),
        of(BatchPurpose { pushed: true, ..BatchPurpose::default() }),
        verification_identity(BatchId::from_bytes([7; 16])).hex().to_owned(),
    ];
    assert_eq!(
        found,
        [
            "f72b9539ec673926991040ce7f29ec18736f0cd568bbe7d60c06b0d7ad251508",
            "d98a727f82ec610d048f03c9564267e76fe091834912ca178643d73385da3ee4",
            "f1042ec69de93a9c18c85088b331e08c3280980b5cf1aa27c36af825dab632b9",
            "837e499212575e4d089257303689eb78642a646a79ed05416c71498c2f223b2f",
            "410313be6deccbce1663886926b7c288555cd4e2d96243697bc2591186920723",
            "5e439f5b576ae46b0f7e438a9fe71408cbfebb2b696651fc6c0e42a775bd15e5"
        ]
    );
}

#[test]
fn how_a_rule_is_written_is_no_part_of_it() {
    for (one, other) in [
        ("platforms: linux/amd64", "platforms: [linux/amd64]"),
        ("platforms: [linux/amd64, linux/arm64]", "platforms: [linux/arm64, \"linux/amd64\", linux/aarch64]"),
        ("platforms: linux/x86_64", "platforms: linux/amd64"),
        ("tags: {include: v1}", "tags: {include: ['v1']}"),
        ("tags: {include: [v1, v2]}", "tags: {include: [v2, v1, v2]}"),
        ("tags: {exclude: [v1, v2]}", "tags:\n    exclude:\n    - v2\n    - \"v1\""),
        ("tags: {include: '*'}", "tags: {}"),
        ("tags: {include: ['*', v1]}", "referrers: true"),
        ("tags: {semver: '>=1.20 <2'}", "tags: {semver: '< 2.0.0, >=v1.20.0'}"),
        ("tags: {semver: 1.x || 3.x}", "tags: {semver: 3.* || =1}"),
        ("tags: {newest: 3}", "tags: {newest: {count: 3, by: version}}"),
        ("tags: {since: 90d}", "tags: {since: 2160h}"),
        ("tags: {since: 2 weeks}", "tags: {since: 14d}"),
        ("tags: {since: 1 year}", "tags: {since: 12 months}"),
        ("tags: {since: 2026-01-01}", "tags: {since: '2026-01-01T00:00:00Z'}"),
        ("verify_every: 60s", "verify_every: 1m"),
        ("verify_every: 7d", "referrers_every: 168h"),
        ("naming: flat", "sparse: false"),
        ("foreign_layers: keep", "prune: false"),
        ("referrers: true", "referrers: yes"),
        ("referrers: [a/b, c/d]", "referrers: [c/d, a/b]"),
        ("immutable: ['v*', w]", "immutable: [w, 'v*']"),
        ("backup: '{{tag}}-old'", "backup: '{{ tag }}-old'"),
        ("naming: 'x/{{basename}}'", "naming: 'x/{{ basename }}'"),
        ("prune: true", "prune: {keep_days: 30, limit: 10%}"),
        ("prune: {limit: 3}", "prune: {limit: '3', keep_days: '30'}"),
        ("policy: off", "referrers: true"),
        ("policy: {labels: [a, b=c], max_age: 7d}", "policy: {max_age: 168h, labels: [b=c, a]}"),
        ("policy: {signed: {keys: [a.pub, b.pub]}}", "policy: {signed: {need: any, keys: [b.pub, a.pub]}}"),
        ("name: one", "name: another"),
        ("name: one", "schedule: '@daily'"),
        ("schedule: {every: 1h}", "schedule: {every: 2h, jitter: 5m}"),
    ] {
        assert_eq!(with(one), with(other), "{one} | {other}");
    }
    for (one, other) in [
        ("rules: [{from: nginx, to: r.example}]", "rules: [{from: index.docker.io/library/nginx, to: r.example}]"),
        (
            "rules: [{from: gcr.io/a, to: [r.example/x, r.example/y]}]",
            "rules: [{to: [r.example/y, r.example/x], from: gcr.io/a}]",
        ),
        (
            "rules: [{from: gcr.io/a, to: r.example}]",
            "defaults: {to: r.example}\nverify_every: 7d\nrules: [{from: {repositories: gcr.io/a}}]",
        ),
        ("rules: [{from: 'oci:x', to: r.example}]", "rules: [{from: 'oci:./x/', to: r.example}]"),
        ("rules: [{from: gcr.io/a, to: 'oci:x'}]", "rules: [{from: gcr.io/a, to: 'oci:x', naming: full}]"),
        (
            "rules: [{from: {repositories: gcr.io/a/**, exclude: [gcr.io/a/b, gcr.io/a/c]}, to: r.example}]",
            "rules: [{from: {repositories: gcr.io/a/**, exclude: [a/c, gcr.io/a/b]}, to: r.example}]",
        ),
        ("rules: [{preset: kubeadm, to: r.example}]", "rules: [{preset: {kubeadm: {}}, to: r.example}]"),
    ] {
        assert_eq!(rule(one).identity(), rule(other).identity(), "{one} | {other}");
    }
}

#[test]
fn what_changes_what_is_done_is_another_rule() {
    let all = [
        "",
        "platforms: linux/amd64",
        "platforms: linux/arm64",
        "platforms: linux/arm",
        "platforms: linux/arm/v7",
        "{platforms: linux/amd64, sparse: true}",
        "platforms: [linux/amd64, linux/arm64]",
        "tags: {include: v1}",
        "tags: {exclude: v1}",
        "tags: {include: /v1/}",
        "tags: {include: [v1, v2]}",
        "tags: {semver: '>=1.20'}",
        "tags: {semver: '>1.20'}",
        "tags: {semver: '<1.20'}",
        "tags: {semver: '>=1.20-rc1'}",
        "tags: {semver: '*'}",
        "tags: {semver: '>=2024-01-15'}",
        "tags: {newest: 3}",
        "tags: {newest: {count: 3, by: date}}",
        "tags: {newest: 4}",
        "tags: {since: 30d}",
        "tags: {since: 1 month}",
        "tags: {since: 2026-01-01}",
        "tags: {min: 1}",
        "tags: {newest: 3, min: 3}",
        "referrers: false",
        "referrers: [a/b]",
        "referrers: [a/b, c/d]",
        "immutable: v1",
        "backup: '{{tag}}-old'",
        "backup: '{{tag}}-{{date}}'",
        "policy: {signed: {keys: a.pub}}",
        "policy: {signed: {keys: b.pub}}",
        "policy: {signed: {keys: [a.pub, b.pub]}}",
        "policy: {signed: {keys: [a.pub, b.pub], need: all}}",
        "policy: {max_age: 1d}",
        "policy: {max_size: 1}",
        "policy: {labels: a}",
        "policy: {labels: a=b}",
        "policy: {requires_platforms: linux/amd64}",
        "foreign_layers: copy",
        "naming: keep",
        "naming: basename",
        "naming: full",
        "naming: '{{basename}}'",
        "prune: true",
        "prune: {keep_days: 31}",
        "prune: {limit: 10}",
        "prune: {limit: 11%}",
        "verify_every: 1h",
        "referrers_every: 1h",
        "from2",
        "to2",
    ];
    let text = |more: &str| match more {
        "from2" => "rules: [{from: gcr.io/b, to: r.example/m}]".to_owned(),
        "to2" => "rules: [{from: gcr.io/a, to: r.example/n}]".to_owned(),
        more => {
            let more = more.strip_prefix('{').and_then(|more| more.strip_suffix('}')).unwrap_or(more);
            let comma = if more.is_empty() { "" } else { ", " };
            format!("rules: [{{from: gcr.io/a, to: r.example/m{comma}{more}}}]")
        }
    };
    let mut seen: Vec<(Digest, &str)> = Vec::new();
    for more in all {
        let identity = rule(&text(more)).identity();
        if let Some((_, other)) = seen.iter().find(|(seen, _)| *seen == identity) {
            panic!("{more} is the same as {other}");
        }
        seen.push((identity, more));
    }
    let [one, other] = [rule(&text("")), rule(&text("from2"))];
    let (both, turned) = ([one.clone(), other.clone()], [other, one.clone()]);
    assert_ne!(batch_identity(&both, BatchPurpose::default()), batch_identity(&turned, BatchPurpose::default()));
    assert_ne!(batch_identity(&both[..1], BatchPurpose::default()), batch_identity(&both, BatchPurpose::default()));
    assert_ne!(batch_identity(&both[..1], BatchPurpose::default()), one.identity());
}

/// A rule by its meaning, which can be written in many ways.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Meaning {
    include: std::collections::BTreeSet<u8>,
    platforms: std::collections::BTreeSet<u8>,
    to: std::collections::BTreeSet<u8>,
    verify_hours: u8,
    newest: Option<u8>,
    since_days: Option<u8>,
    referrers: Option<bool>,
}

fn meaning() -> impl Strategy<Value = Meaning> {
    let set = || proptest::collection::btree_set(0..4_u8, 0..4);
    let to = proptest::collection::btree_set(0..4_u8, 1..4);
    let more =
        (1..4_u8, proptest::option::of(1..4_u8), proptest::option::of(1..4_u8), proptest::option::of(any::<bool>()));
    (set(), set(), to, more).prop_map(|(include, platforms, to, (verify_hours, newest, since_days, referrers))| {
        Meaning {
            include,
            platforms,
            to,
            verify_hours,
            newest,
            since_days,
            // An explicit `true` equals the default.
            referrers: referrers.filter(|all| !all),
        }
    })
}

impl Meaning {
    /// Writes the rule in one of many ways.
    fn written(&self, way: u64) -> String {
        let bit = |at: u32| way >> at & 1 == 1;
        let list = |items: Vec<String>, at: u32| match (items.as_slice(), bit(at)) {
            ([one], true) => one.clone(),
            (items, false) => format!("[{}]", items.join(", ")),
            (items, true) => format!("[{}]", items.iter().rev().cloned().collect::<Vec<_>>().join(", ")),
        };
        let quoted = |text: String, at: u32| if bit(at) { format!("\"{text}\"") } else { text };
        let mut keys = vec![quoted("from".to_owned(), 0) + ": gcr.io/a"];
        let mut tags = Vec::new();
        if !self.include.is_empty() {
            let include = self.include.iter().map(|n| quoted(format!("v{n}"), 1)).collect();
            tags.push(format!("include: {}", list(include, 2)));
        }
        if let Some(newest) = self.newest {
            tags.push(match bit(3) {
                true => format!("newest: {{by: version, count: {newest}}}"),
                false => format!("newest: {newest}"),
            });
        }
        if let Some(days) = self.since_days {
            tags.push(if bit(4) { format!("since: {}h", u32::from(days) * 24) } else { format!("since: {days}d") });
        }
        if bit(5) {
            tags.reverse();
        }
        if !tags.is_empty() || bit(6) {
            keys.push(format!("tags: {{{}}}", tags.join(", ")));
        }
        if !self.platforms.is_empty() {
            let names =
                if bit(7) { ["x86_64", "arm/v7", "aarch64", "i386"] } else { ["amd64", "arm/7", "arm64", "386"] };
            let platforms = self.platforms.iter().map(|n| format!("linux/{}", names[usize::from(*n)])).collect();
            keys.push(format!("platforms: {}", list(platforms, 8)));
        }
        keys.push(format!("to: {}", list(self.to.iter().map(|n| quoted(format!("r.example/{n}"), 9)).collect(), 10)));
        let (hours, minutes) = (self.verify_hours, u32::from(self.verify_hours) * 60);
        keys.push(if bit(11) { format!("verify_every: {minutes}m") } else { format!("verify_every: {hours}h") });
        match self.referrers {
            Some(all) => {
                keys.push(format!("referrers: {}", if all || bit(12) { all.to_string() } else { "off".into() }))
            }
            None if bit(13) => keys.push("referrers: true".to_owned()),
            None => {}
        }
        if bit(14) {
            keys.push(format!("name: rule-{}", way % 7));
        }
        if bit(15) {
            keys.reverse();
        }
        format!("rules: [{{{}}}]", keys.join(", "))
    }
}

proptest! {
    #[test]
    fn a_rule_is_the_same_however_it_is_written_and_another_where_it_means_another(
        one in meaning(), other in meaning(), ways in any::<(u64, u64)>()
    ) {
        let identity = |meaning: &Meaning, way| rule(&meaning.written(way)).identity();
        prop_assert_eq!(identity(&one, ways.0), identity(&one, ways.1), "{} | {}", one.written(ways.0), one.written(ways.1));
        prop_assert_eq!(one == other, identity(&one, ways.0) == identity(&other, ways.1));
    }
}
