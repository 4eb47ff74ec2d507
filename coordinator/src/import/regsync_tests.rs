//! Files of regsync select the same repositories, tags and names here, or the result says what it leaves out.

use imgsync_config::{Config, ConfigFile, Rule, RuleSource};
use imgsync_model::batch::Referrers;
use imgsync_model::naming::SourceName;
use imgsync_model::select::TagCandidate;

use super::tests::{checked, has_note, made};
use super::*;

fn rules(yaml: &str) -> Vec<Rule> {
    Config::read(&ConfigFile { name: "f", text: yaml, environment: &|_| Some("x".into()), presets: None })
        .unwrap()
        .rules
}

fn imported(sync: &str) -> (String, ConfigDraft) {
    made(&format!("version: 1\nsync:\n{sync}"), &ImportHints::default())
}

/// Returns the tags that any of the rules selects.
fn selected(yaml: &str, tags: &[&str]) -> String {
    let rules = rules(yaml);
    let candidates = || tags.iter().map(|tag| TagCandidate::new(*tag)).collect::<Vec<_>>();
    let kept: Vec<String> = rules
        .iter()
        .flat_map(|rule| rule.selection.evaluate(candidates(), jiff::Timestamp::UNIX_EPOCH).kept)
        .map(|kept| kept.tag.as_str().to_owned())
        .collect();
    tags.iter().filter(|tag| kept.iter().any(|kept| kept == *tag)).copied().collect::<Vec<_>>().join(" ")
}

const REPOSITORY: &str = "source: r.example.com/a/app, target: t.example.com/a/app, type: repository";

#[test]
fn each_of_several_tag_sets_becomes_a_rule() {
    let tags = ["latest", "edge", "3.5.0", "v3.5.2", "v3.6", "v3.20.1", "v4.0.0", "rc"];
    let (yaml, draft) = imported(&format!(
        "- {{{REPOSITORY}, tagSets: [{{allow: [latest, edge]}}, {{semverRange: ['>=3.5.1 <4.0'], allow: ['v\\d+\\.\\d+\\.\\d+']}}], tags: {{allow: [rc]}}}}\n"
    ));
    assert_eq!(selected(&yaml, &tags), "latest edge v3.5.2 v3.20.1 rc", "{yaml}");
    assert_eq!((rules(&yaml).len(), draft.omissions()), (3, 0), "{yaml} {:?}", draft.notes());
    // `tags` without a filter adds nothing to the sets.
    let (yaml, _) = imported(&format!("- {{{REPOSITORY}, tagSets: [{{allow: [latest]}}], tags: {{allow: []}}}}\n"));
    assert_eq!(selected(&yaml, &tags), "latest", "{yaml}");
    // What is no filter is not taken for one that selects everything.
    for (set, words) in [
        ("tagSets: {allow: [a]}", "`tagSets` is not a list"),
        ("tags: [a]", "`tags` is not a mapping"),
        ("tags: {allow: {a: b}}", "`allow` is not a list of texts"),
        ("tags: {allow: [a], newest: 3}", "`newest` is a filter"),
    ] {
        let text = format!("sync:\n- {{{REPOSITORY}, {set}}}\n");
        let error = import_file(&text, None, &ImportHints::default()).unwrap_err();
        assert!(error.contains("left out: line 2 (r.example.com/a/app)") && error.contains(words), "{set}: {error}");
    }
}

#[test]
fn expressions_with_alternatives_are_bound_as_in_regsync() {
    let tags = ["1", "1.2", "2", "2.1", "12", "3.9", "3x9", "a-2"];
    for (allow, expected) in
        [("1|2", "1 1.2 2 12 a-2"), ("(1|2)", "1 2"), ("3.9", "3.9 3x9"), ("3\\.9", "3.9"), ("^2$", "2")]
    {
        let (yaml, draft) = imported(&format!("- {{{REPOSITORY}, tags: {{allow: ['{allow}']}}}}\n"));
        assert_eq!((selected(&yaml, &tags).as_str(), draft.omissions()), (expected, 0), "{allow}: {yaml}");
    }
}

/// Compares as regclient's internal/semver does: missing numbers are zero, what follows a `-` is a pre-release.
fn regsync_takes(range: &str, tag: &str) -> bool {
    let parse = |text: &str| {
        let text = text.strip_prefix('v').unwrap_or(text);
        let (numbers, suffix) = text.split_once('-').map_or((text, ""), |(numbers, suffix)| (numbers, suffix));
        let numbers: Result<Vec<u64>, _> = numbers.split('.').map(str::parse::<u64>).collect();
        let mut numbers = numbers.ok()?;
        numbers.resize(5, 0);
        // No suffix comes after any.
        Some((numbers, suffix.is_empty()))
    };
    let Some(version) = parse(tag) else { return false };
    range.split_whitespace().all(|part| {
        let at = part.find(|c: char| !"<>=^~".contains(c)).unwrap();
        let bound = parse(&part[at..]).unwrap();
        let n = &bound.0;
        let upper = |numbers: [u64; 3]| (numbers.iter().copied().chain([0, 0]).collect::<Vec<_>>(), true);
        match &part[..at] {
            "" | "=" => version == bound,
            ">=" => version >= bound,
            ">" => version > bound,
            "<=" => version <= bound,
            "<" => version < bound,
            "~" => version >= bound && version < upper([n[0], n[1] + 1, 0]),
            "^" if n[0] > 0 => version >= bound && version < upper([n[0] + 1, 0, 0]),
            "^" if n[1] > 0 => version >= bound && version < upper([0, n[1] + 1, 0]),
            "^" => version >= bound && version < upper([0, 0, n[2] + 1]),
            other => panic!("{other}"),
        }
    })
}

#[test]
fn version_ranges_select_the_tags_that_they_select_in_regsync() {
    let tags = [
        "7",
        "v7",
        "7.0",
        "7.0.0",
        "7.2",
        "7.2.4",
        "7.4",
        "7-alpine",
        "7.0-alpine",
        "7.2-alpine",
        "7.2-rc1",
        "7.4.0-rc.1",
        "8",
        "8.0",
        "8.0-rc1",
        "8.0.0-alpine",
        "8.0.1",
        "0.2.3",
        "0.2.9",
        "0.3",
        "0.0.3",
        "0.0.4",
        "0",
        "0.9",
        "1.2.3.4",
        "latest",
        "7.2_up1.0",
        "7.2.post1",
        "7.2rc1",
        "app-7.2",
        "9.1",
        "20250301",
        "2025-03-01",
    ];
    for range in [
        "7",
        "=7",
        "=7.2",
        "7.2.4",
        ">7.2",
        ">=7.2",
        "<=7.2",
        "<8",
        "<8.0.0",
        "~7",
        "~7.2",
        "^7",
        "^7.2",
        "^0.2.3",
        "^0.0.3",
        "^0",
        ">=7 <8",
        ">7.0 <=7.4",
        "v7",
        ">=7.2",
    ] {
        let expected: Vec<&str> = tags.iter().filter(|tag| regsync_takes(range, tag)).copied().collect();
        let (yaml, draft) = imported(&format!("- {{{REPOSITORY}, tags: {{semverRange: ['{range}']}}}}\n"));
        let is_date = |tag: &&str| tag.starts_with("2025");
        // Dates are no versions here, which is said where it makes a difference.
        assert_eq!(draft.omissions() > 0, expected.iter().any(is_date), "{range}: {:?}", draft.notes());
        let expected: Vec<&str> = expected.into_iter().filter(|tag| !is_date(tag)).collect();
        assert_eq!(selected(&yaml, &tags), expected.join(" "), "{range}: {yaml}");
    }
    // Ranges are alternatives, and a date that `allow` leaves out makes no difference.
    let (yaml, draft) = imported(&format!(
        "- {{{REPOSITORY}, tags: {{semverRange: ['=7', '>=8.0'], allow: ['\\d+\\.\\d+', latest]}}}}\n"
    ));
    assert_eq!((selected(&yaml, &tags).as_str(), draft.omissions()), ("7.0 8.0 9.1", 0), "{yaml}");
    for range in [">=7.2-rc1", ">=x", "7 || 8", "!=7"] {
        let text = format!("sync:\n- {{{REPOSITORY}, tags: {{semverRange: ['{range}']}}}}\n");
        let error = import_file(&text, None, &ImportHints::default()).unwrap_err();
        assert!(error.contains("left out") && error.contains("has no equivalent"), "{range}: {error}");
    }
}

#[test]
fn a_target_tag_renames_tags_or_is_left_out() {
    let name = |yaml: &str| {
        let rule = &rules(yaml)[0];
        let RuleSource::Repositories(pattern) = &rule.source else { panic!("{yaml}") };
        let repository = pattern.shortest_match().unwrap();
        let tag = "1.0".parse().unwrap();
        let source = SourceName { registry: pattern.registry(), repository: &repository, tag: &tag, original: None };
        let imgsync_config::RuleTarget::Registry(base) = &rule.to[0] else { panic!("{yaml}") };
        rule.style_at(&rule.to[0]).target_name(base, &source).unwrap().to_string()
    };
    let template = "targetTag: '{{ .Source.Tag }}-x'";
    for (entry, expected) in [
        (format!("{REPOSITORY}, {template}"), "t.example.com/a/app:1.0-x"),
        (
            format!("source: r.example.com/a/app, target: t.example.com/b/app, type: repository, {template}"),
            "t.example.com/b/app:1.0-x",
        ),
        (
            format!("source: r.example.com/a/app, target: t.example.com/b/other, type: repository, {template}"),
            "t.example.com/b/other:1.0-x",
        ),
        (
            format!("source: r.example.com, target: t.example.com/m, type: registry, {template}"),
            "t.example.com/m/a:1.0-x",
        ),
        // The tag of a reference to a repository has no effect.
        (
            "source: 'r.example.com/a/app:9', target: 't.example.com/a/app:8', type: repository".to_owned(),
            "t.example.com/a/app:1.0",
        ),
    ] {
        let (yaml, draft) = imported(&format!("- {{{entry}}}\n"));
        assert_eq!((name(&yaml).as_str(), draft.omissions()), (expected, 0), "{entry}: {yaml}");
    }
    for template in [
        "{{ env \"BUILD\" }}",
        "fixed",
        "{{ .Source.Tag }}:x",
        "{{ .Source.Tag",
        "{{.Source.Repository}}-{{.Source.Tag}}",
    ] {
        let text = format!("sync:\n- {{{REPOSITORY}, targetTag: '{template}'}}\n");
        let error = import_file(&text, None, &ImportHints::default()).unwrap_err();
        assert!(error.contains("left out") && error.contains("targetTag"), "{template}: {error}");
    }
}

#[test]
fn a_digest_beside_a_tag_is_left_out() {
    let digest = "sha256:0000000000000000000000000000000011111111111111111111111111111111";
    for (source, target) in [
        (format!("r.example.com/y:v1@{digest}"), "t.example.com/y:v1".to_owned()),
        (format!("r.example.com/y@{digest}"), "t.example.com/y:v1".to_owned()),
        ("r.example.com/y:v1".to_owned(), format!("t.example.com/y@{digest}")),
    ] {
        let text = format!("sync:\n- {{source: '{source}', target: '{target}', type: image}}\n");
        let error = import_file(&text, None, &ImportHints::default()).unwrap_err();
        assert!(error.contains("left out") && error.contains("names a digest"), "{source}: {error}");
    }
}

#[test]
fn repositories_are_allowed_and_denied_as_in_regsync() {
    let names =
        ["team/app", "team/old/a", "team/old/a/b", "team/a", "team/b", "lib-x", "lib-x/y", "lib", "tools", "x/foo"];
    for (repos, expected) in [
        ("{allow: ['team/.*'], deny: ['team/old/.*']}", "team/app team/a team/b"),
        ("{allow: ['team/(a|b)', 'lib-.*']}", "team/a team/b lib-x lib-x/y"),
        ("{allow: ['lib.*']}", "lib-x lib-x/y lib"),
        ("{allow: ['^tools$', 'team/[ab]']}", "team/a team/b tools"),
        ("{deny: ['team/.*', 'tools', 'lib-[^/]+']}", "lib-x/y lib x/foo"),
        ("{allow: ['tools', 'x/foo'], deny: ['tools']}", "x/foo"),
        ("{allow: ['team/[^/]+']}", "team/app team/a team/b"),
        ("{allow: [], deny: []}", "team/app team/old/a team/old/a/b team/a team/b lib-x lib-x/y lib tools x/foo"),
    ] {
        let (yaml, draft) =
            imported(&format!("- {{source: r.example.com, target: t.example.com, type: registry, repos: {repos}}}\n"));
        let rules = rules(&yaml);
        let patterns: Vec<_> = rules
            .iter()
            .map(|rule| match &rule.source {
                RuleSource::Repositories(pattern) => pattern,
                other => panic!("{other}"),
            })
            .collect();
        let found: Vec<&str> =
            names.iter().filter(|name| patterns.iter().any(|pattern| pattern.matches(name))).copied().collect();
        assert_eq!((found.join(" ").as_str(), draft.omissions()), (expected, 0), "{repos}: {yaml}");
    }
    let (yaml, _) = imported(
        "- {source: r.example.com, target: t.example.com, type: registry, repos: {allow: ['team/.*'], deny: ['team/old/.*']}}\n",
    );
    assert!(yaml.contains("- from: {repositories: r.example.com/team/**, exclude: [team/old/**]}"), "{yaml}");
    for repos in
        ["{allow: ['.*/foo']}", "{allow: ['my.app']}", "{allow: ['a|b']}", "{allow: ['te+am']}", "{allow: ['a\\b.*']}"]
    {
        let text =
            format!("sync:\n- {{source: r.example.com, target: t.example.com, type: registry, repos: {repos}}}\n");
        let error = import_file(&text, None, &ImportHints::default()).unwrap_err();
        assert!(error.contains("left out: line 2 (r.example.com)") && error.contains("cannot express"), "{error}");
    }
    let (_, draft) =
        imported("- {source: r.example.com, target: t.example.com, type: registry, repos: {deny: ['.*/foo']}}\n");
    assert_eq!(draft.omissions(), 1, "{:?}", draft.notes());
}

#[test]
fn referrers_are_copied_only_where_regsync_copies_them() {
    let text = |defaults: &str, entry: &str| format!("defaults: {{{defaults}}}\nsync:\n- {{{REPOSITORY}, {entry}}}\n");
    let types = Referrers::Types(vec!["application/spdx+json".to_owned()]);
    for (defaults, entry, expected, omissions) in [
        ("", "backup: ''", Referrers::None, 0),
        ("", "referrers: false", Referrers::None, 0),
        ("referrers: true", "referrers: false", Referrers::None, 0),
        ("referrers: true, digestTags: true", "backup: ''", Referrers::All, 0),
        ("", "referrers: true, digestTags: true", Referrers::All, 0),
        ("", "referrers: true", Referrers::All, 1),
        ("", "digestTags: true", Referrers::All, 1),
        (
            "digestTags: true",
            "referrers: true, referrerFilters: [{artifactType: application/spdx+json}]",
            types.clone(),
            0,
        ),
        (
            "referrers: true, digestTags: true, referrerFilters: [{artifactType: application/spdx+json}]",
            "backup: ''",
            types,
            0,
        ),
        ("", "referrerFilters: [{artifactType: application/spdx+json}]", Referrers::None, 0),
        ("digestTags: true", "referrers: true, referrerFilters: [{annotations: {a: b}}]", Referrers::All, 1),
        ("digestTags: true", "referrers: true, referrerTarget: t.example.com/b", Referrers::All, 1),
    ] {
        let (yaml, draft) = made(&text(defaults, entry), &ImportHints::default());
        assert_eq!(rules(&yaml)[0].referrers, expected, "{defaults} {entry}: {yaml}");
        assert_eq!(draft.omissions(), omissions, "{defaults} {entry}: {:?}", draft.notes());
    }
    let (yaml, _) = made(&text("", "backup: ''"), &ImportHints::default());
    assert!(yaml.contains("defaults: {referrers: false}\n"), "{yaml}");
}

#[test]
fn schedules_are_imported() {
    let text = |defaults: &str, entry: &str| {
        format!(
            "defaults: {{{defaults}}}\nsync:\n- {{{REPOSITORY}, {entry}}}\n- {{source: r.example.com/b, target: t.example.com/b, type: repository}}\n"
        )
    };
    for (defaults, entry, part) in [
        ("interval: 60m", "backup: ''", "defaults: {referrers: false, schedule: {every: 60m}}\n"),
        ("", "schedule: '15 01 * * *'", "    schedule: 15 01 * * *\n"),
        ("", "schedule: 'CRON_TZ=Europe/Berlin 15 1 * * *'", "    schedule: {cron: 15 1 * * *, zone: Europe/Berlin}\n"),
        ("", "schedule: '@every 1h30m'", "    schedule: {every: 1h30m}\n"),
        ("interval: 2h", "schedule: '@daily'", "    schedule: \"@daily\"\n"),
        // A schedule of the defaults comes before an interval of the entry.
        ("schedule: '0 3 * * *'", "interval: 5m", "schedule: 0 3 * * *}\n"),
    ] {
        let (yaml, draft) = made(&text(defaults, entry), &ImportHints::default());
        assert!(yaml.contains(part), "{part}: {yaml}");
        assert!(has_note(&draft, "`imgsync serve`"), "{:?}", draft.notes());
        let is_local = part.contains("* *") && !part.contains("zone") || part.contains("@daily");
        assert_eq!(has_note(&draft, "are in UTC here"), is_local, "{part}: {:?}", draft.notes());
        assert_eq!(draft.omissions(), 0);
    }
    for (entry, words) in [("interval: 1s", "is not an interval"), ("schedule: sometimes", "not a cron expression")] {
        let (yaml, draft) = made(&text("", entry), &ImportHints::default());
        assert!(!yaml.contains("schedule") && has_note(&draft, words), "{yaml} {:?}", draft.notes());
    }
}

#[test]
fn notes_name_the_equivalent_and_the_line() {
    let odd = format!("creds: {{registry: r.example.com}}\nsync:\n- {{{REPOSITORY}}}\n");
    assert!(has_note(&made(&odd, &ImportHints::default()).1, "`creds` is not a list"));
    let (yaml, draft) = made(
        "creds:\n- {registry: e.example.com, credHelper: docker-credential-ecr-login, pathPrefix: hub}\n\
         - {registry: 'localhost:5000', tls: enabled}\n\
         defaults: {ratelimit: {min: 10, retry: 15m}, includeExternal: true}\n\
         sync:\n- {source: redis, target: t.example.com/redis, type: repository, forceRecursive: true}\n\
         - source: redis\n  target: t.example.com/other\n  type: repository\n  platform: linux/amd64\n\
         - {source: redis, target: t.example.com/third, type: repository, platforms: [linux/amd64], mediaTypes: [a/b]}\n",
        &ImportHints::default(),
    );
    for words in [
        "name it under `credHelpers` in docker's config.json",
        "left out: creds of e.example.com: `pathPrefix: hub`",
        "line 6 (redis): `ratelimit: retry`",
        "line 6 (redis): `forceRecursive` is an option of one run here: `imgsync run --force`",
        "left out: line 7 (redis): a single `platform`",
        "left out: line 11 (redis): `mediaTypes`",
    ] {
        assert!(has_note(&draft, words), "{words}: {:#?}", draft.notes());
    }
    assert_eq!(yaml.matches("foreign_layers: copy").count(), 3, "{yaml}");
    assert!(yaml.contains("\"localhost:5000\": {tls: on}"), "{yaml}");
    assert!(yaml.contains("sparse: true"), "{yaml}");
}

#[test]
fn backup_tags_have_the_names_of_regsync() {
    for (written, template) in [
        (r#"b-{{time.Now.Format "20060102"}}-{{.Ref.Tag}}"#, "b-{{date | replace('-', '')}}-{{tag}}"),
        (r#"b-{{time.Now.Format "2006-01-02"}}-{{.Ref.Tag}}"#, "b-{{date}}-{{tag}}"),
    ] {
        let (yaml, draft) = imported(&format!("- {{{REPOSITORY}, backup: '{written}'}}\n"));
        assert_eq!((rules(&yaml)[0].backup.as_ref().unwrap().to_string().as_str(), draft.omissions()), (template, 0));
    }
    for written in [r#"b-{{time.Now.Format "Jan"}}-{{.Ref.Tag}}"#, "other/repository:{{.Ref.Tag}}", "fixed"] {
        let (_, draft) = imported(&format!("- {{{REPOSITORY}, backup: '{written}'}}\n"));
        assert!(has_note(&draft, "left out: line 3 (r.example.com/a/app): `backup"), "{:?}", draft.notes());
    }
}

#[test]
fn a_certificate_is_written_in_lines_and_a_name_without_escapes() {
    let pem = "-----BEGIN CERTIFICATE-----\\nMIIB\\nAAAA\\n-----END CERTIFICATE-----\\n";
    let (_, draft) = import_file(
        &format!("creds: [{{registry: r.example.com, user: me, regcert: \"{pem}\"}}]\nsync: [{{source: r.example.com/a, target: t.example.com/b, type: repository}}]\n"),
        None,
        &ImportHints::default(),
    )
    .unwrap();
    let yaml = checked(&draft);
    let expected = "  r.example.com:\n    username: me\n    ca: |\n      -----BEGIN CERTIFICATE-----\n      MIIB\n      AAAA\n      -----END CERTIFICATE-----\n";
    assert!(yaml.contains(expected), "{yaml}");
    assert!(yaml.contains("naming: \"{{ 'b' if basename }}\"\n"), "{yaml}");
    assert!(has_note(&draft, "is NAME for every image"), "{:?}", draft.notes());
}

#[test]
fn invalid_numbers_are_named() {
    let text = |defaults: &str, entry: &str| format!("defaults: {{{defaults}}}\nsync:\n- {{{REPOSITORY}, {entry}}}\n");
    for (defaults, entry, words) in [
        ("parallel: many", "backup: ''", "defaults: `parallel` was not imported"),
        ("parallel: 0", "backup: ''", "defaults: `parallel` was not imported"),
        ("parallel: [2]", "backup: ''", "defaults: `parallel` was not imported"),
        ("", "ratelimit: {min: some}", "line 3 (r.example.com/a/app): `ratelimit: min` was not imported"),
        ("ratelimit: {min: -1}", "backup: ''", "line 3 (r.example.com/a/app): `ratelimit: min` was not imported"),
        ("ratelimit: 100", "backup: ''", "line 3 (r.example.com/a/app): `ratelimit` was not imported"),
    ] {
        let (yaml, draft) = made(&text(defaults, entry), &ImportHints::default());
        assert!(has_note(&draft, words), "{defaults} {entry}: {:?}", draft.notes());
        assert!(!yaml.contains("pull_reserve") && !yaml.contains("concurrency"), "{yaml}");
    }
    let (yaml, draft) = made(&text("parallel: 4, ratelimit: {min: 0}", "backup: ''"), &ImportHints::default());
    assert!(yaml.contains("concurrency: 4") && !has_note(&draft, "was not imported"), "{yaml} {:?}", draft.notes());
}
