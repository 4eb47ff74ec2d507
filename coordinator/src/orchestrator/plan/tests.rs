use imgsync_config::{Config, ConfigFile};
use imgsync_oci::DigestTag;
use imgsync_registry::ListedTag;

use super::*;

fn rules(yaml: &str) -> Vec<Rule> {
    let file = ConfigFile { name: "test.yaml", text: yaml, environment: &|_| None, presets: None };
    Config::read(&file).unwrap_or_else(|errors| panic!("{errors}")).rules
}

fn listing(name: &str, tags: &[&str]) -> RepositoryListing {
    let (registry, repository) = name.split_once('/').unwrap();
    let mut tags: Vec<ListedTag> = tags
        .iter()
        .map(|tag| ListedTag {
            tag: tag.to_string(),
            digest: Some(Digest::sha256(format!("{name}:{tag}").as_bytes())),
            created: None,
            media_type: None,
        })
        .collect();
    tags.sort_by(|a, b| a.tag.cmp(&b.tag));
    RepositoryListing {
        registry: registry.parse().unwrap(),
        repository: repository.parse().unwrap(),
        manifests: tags.len(),
        tags,
        children: Vec::new(),
        is_named: false,
        is_tree: true,
        missing_dates_reason: None,
        memory: None,
    }
}

fn plan(planner: &mut Planner, index: usize, rule: &Rule, name: &str, tags: &[&str]) -> RepositoryPlan {
    planner.plan(index, rule, None, &listing(name, tags), Timestamp::UNIX_EPOCH)
}

fn targets(plan: &RepositoryPlan) -> Vec<String> {
    plan.tasks.iter().map(|task| task.target.to_string()).collect()
}

#[test]
fn a_listing_becomes_tasks_in_the_order_of_tags_then_targets() {
    let rules = rules(
        "rules: [{from: gcr.io/a/**, tags: {exclude: ['*-rc*']}, naming: keep, to: [z.example.com/m, b.example.com/m]}]",
    );
    let plan = plan(&mut Planner::new(), 0, &rules[0], "gcr.io/a/b", &["1.10", "1.9", "latest", "2.0-rc1", "bad tag"]);
    let expected = ["latest", "1.9", "1.10"]
        .map(|tag| [format!("b.example.com/m/a/b:{tag}"), format!("z.example.com/m/a/b:{tag}")])
        .concat();
    assert_eq!(targets(&plan), expected);
    assert!(plan.tasks.iter().all(|task| !task.may_collide && task.rule == 0));
    assert_eq!(plan.tasks[0].digest, Some(Digest::sha256(b"gcr.io/a/b:latest")));
    let dropped: Vec<String> = plan.dropped.iter().map(|(tag, reason)| format!("{tag}: {reason}")).collect();
    assert_eq!(dropped, ["bad tag: not a valid tag", "2.0-rc1: excluded by *-rc*"]);
}

#[test]
fn digest_tags_are_indexed_and_never_selected() {
    let image = Digest::sha256(b"gcr.io/a/b:1.0");
    let [sig, att] = [DigestTag::Signature, DigestTag::Attestation].map(|kind| kind.tag_for(&image).to_string());
    let rules = rules(
        "rules: [{from: gcr.io/a/b, to: docker.io/me, tags: {newest: {count: 1, by: version}}},
                 {from: gcr.io/a/b, to: docker.io/you, referrers: false}]",
    );
    let tags = ["1.0", &sig, &att];
    let wanted = plan(&mut Planner::new(), 0, &rules[0], "gcr.io/a/b", &tags);
    assert_eq!(targets(&wanted), ["docker.io/me/gcr.io_a_b:1.0"]);
    assert_eq!(wanted.dropped.len(), 2);
    assert!(wanted.dropped.iter().all(|(_, reason)| *reason == DropReason::DigestTag), "{:?}", wanted.dropped);
    let hints = wanted.tasks[0].digest_tag_hints;
    assert!(hints.is_listed() && hints.may_have(DigestTag::Signature) && !hints.may_have(DigestTag::Sbom));
    assert_eq!(wanted.digest_tags.for_image(&image).len(), 2);
    assert!(wanted.digest_tags.for_image(&Digest::sha256(b"another")).is_empty());

    let unwanted = plan(&mut Planner::new(), 1, &rules[1], "gcr.io/a/b", &tags);
    assert_eq!((unwanted.tasks.len(), unwanted.digest_tags.is_empty()), (1, true), "none is copied, nor counted");
}

#[test]
fn fewer_tags_than_min_fail_and_none_is_copied() {
    let rules = rules("rules: [{from: gcr.io/a/b, tags: {include: ['1.*'], min: 2}, to: docker.io/me}]");
    let plan = plan(&mut Planner::new(), 0, &rules[0], "gcr.io/a/b", &["1.1", "2.0"]);
    assert!(plan.tasks.is_empty());
    assert_eq!(
        plan.refused.unwrap().to_string(),
        "selecting the tags of gcr.io/a/b: 1 of 2 tags is selected, and `min` is 2 (1 not matched by any include)"
    );
}

#[test]
fn a_name_that_the_target_does_not_take_fails_alone_with_the_reason() {
    let rules = rules("rules: [{from: gcr.io/a/**, to: docker.io/me}]");
    let long = format!("gcr.io/a/{}", "x".repeat(250));
    let mut planner = Planner::new();
    let refused = plan(&mut planner, 0, &rules[0], &long, &["1"]);
    assert_eq!((refused.tasks.len(), refused.failed.len()), (0, 1));
    assert_eq!(refused.failed[0].error.kind(), ErrorKind::Refused);
    assert!(refused.failed[0].error.to_string().contains("cannot be a target"), "{}", refused.failed[0].error);
    assert_eq!(targets(&plan(&mut planner, 0, &rules[0], "gcr.io/a/b", &["1"])), ["docker.io/me/gcr.io_a_b:1"]);
}

#[test]
fn a_source_is_not_copied_onto_itself() {
    let rules = rules("rules: [{from: r.example.com/a/**, naming: keep, to: r.example.com}]");
    let plan = plan(&mut Planner::new(), 0, &rules[0], "r.example.com/a/b", &["1"]);
    assert_eq!((plan.tasks.len(), plan.failed[0].error.kind()), (0, ErrorKind::Invalid));
}

#[test]
fn two_repositories_under_one_name_collide_where_they_are_compared_and_are_in_doubt_where_not() {
    let rules = rules("rules: [{from: gcr.io/**, naming: basename, to: r.example.com/m}]");
    let mut planner = Planner::new();
    let first = plan(&mut planner, 0, &rules[0], "gcr.io/a/x", &["1", "2"]);
    let second = plan(&mut planner, 0, &rules[0], "gcr.io/b/x", &["2", "3"]);
    assert!(first.tasks.iter().all(|task| !task.may_collide));
    assert!(second.tasks.iter().all(|task| task.may_collide), "tags of the first were not remembered");
    // From here on tags are.
    let third = plan(&mut planner, 0, &rules[0], "gcr.io/c/x", &["3", "4"]);
    assert_eq!(third.failed.len(), 1);
    assert_eq!(third.failed[0].error.kind(), ErrorKind::Collision);
    assert_eq!(
        third.failed[0].error.to_string(),
        "copying gcr.io/c/x:3: r.example.com/m/x:3 is already the target of gcr.io/b/x"
    );
    let all = [first.tasks, second.tasks, third.tasks].concat();
    let (resolved, failed) = resolve_conflicts(all, &rules);
    let resolved: Vec<String> = resolved.iter().map(|task| format!("{}", task.source)).collect();
    assert_eq!(resolved, ["gcr.io/a/x:1", "gcr.io/a/x:2", "gcr.io/b/x:3", "gcr.io/c/x:4"]);
    assert_eq!(failed.len(), 1);
    assert_eq!((failed[0].source.to_string().as_str(), failed[0].error.kind()), ("gcr.io/b/x:2", ErrorKind::Collision));
}

#[test]
fn two_rules_that_ask_for_the_same_copy_it_once() {
    let rules = rules(
        "rules: [{from: gcr.io/a/*, to: docker.io/me}, {from: gcr.io/a/b, tags: {include: ['1*']}, to: docker.io/me}]",
    );
    let mut planner = Planner::new();
    let mut tasks = plan(&mut planner, 0, &rules[0], "gcr.io/a/b", &["1", "2"]).tasks;
    let again = plan(&mut planner, 1, &rules[1], "gcr.io/a/b", &["1", "2"]);
    assert!(again.tasks[0].may_collide && again.failed.is_empty());
    tasks.extend(again.tasks);
    let (resolved, failed) = resolve_conflicts(tasks, &rules);
    assert_eq!((resolved.len(), failed.len()), (2, 0));
    assert!(resolved.iter().all(|task| task.rule == 0));
}

#[test]
fn one_image_cut_in_two_ways_collides() {
    let rules = rules(
        "rules: [{from: gcr.io/a/*, to: docker.io/me}, {from: gcr.io/a/*, platforms: [linux/amd64], to: docker.io/me}]",
    );
    let mut planner = Planner::new();
    let whole = plan(&mut planner, 0, &rules[0], "gcr.io/a/b", &["1"]);
    let cut = plan(&mut planner, 1, &rules[1], "gcr.io/a/b", &["1"]);
    let (resolved, failed) = resolve_conflicts([whole.tasks, cut.tasks].concat(), &rules);
    assert_eq!((resolved.len(), resolved[0].rule, failed.len()), (1, 0, 1));
    assert_eq!(failed[0].error.kind(), ErrorKind::Collision);
}

#[test]
fn two_tags_that_a_template_calls_the_same_collide() {
    let rules = rules("rules: [{from: gcr.io/a/b, naming: '{{basename}}:stable', to: r.example.com/m}]");
    let plan = plan(&mut Planner::new(), 0, &rules[0], "gcr.io/a/b", &["1", "2"]);
    assert_eq!(targets(&plan), ["r.example.com/m/b:stable"]);
    assert_eq!(
        plan.failed[0].error.to_string(),
        "copying gcr.io/a/b:2: r.example.com/m/b:stable is already the target of gcr.io/a/b:1"
    );
}

#[test]
fn layouts_are_targets_too() {
    let rules = rules("rules: [{from: gcr.io/a/b, to: 'oci:out'}]");
    let plan = plan(&mut Planner::new(), 0, &rules[0], "gcr.io/a/b", &["1"]);
    assert_eq!(targets(&plan), ["oci:out:gcr.io/a/b:1"]);
}

#[test]
fn slices_add_up_to_the_sorted_whole() {
    let rules = rules("rules: [{from: gcr.io/**, to: [docker.io/me, r.example.com/m]}]");
    let mut planner = Planner::new();
    let mut tasks = Vec::new();
    for name in ["gcr.io/b", "gcr.io/a/b", "gcr.io/a-b", "gcr.io/a"] {
        tasks.extend(plan(&mut planner, 0, &rules[0], name, &["1.10", "1.9", "latest"]).tasks);
    }
    let slice =
        |number: usize| Slice { size: NonZeroUsize::new(7).unwrap(), number: NonZeroUsize::new(number).unwrap() };
    let slices: Vec<Vec<PlannedTask>> = (1..=5).map(|number| cut_slice(tasks.clone(), slice(number))).collect();
    assert_eq!(slices.iter().map(Vec::len).collect::<Vec<_>>(), [7, 7, 7, 3, 0]);
    let mut reversed = tasks.clone();
    reversed.reverse();
    assert_eq!(cut_slice(reversed, slice(2)), slices[1], "however it was listed");
    let whole: Vec<String> = slices.concat().iter().map(|task| task.source.to_string()).collect();
    let mut expected = Vec::new();
    for name in ["gcr.io/a", "gcr.io/a/b", "gcr.io/a-b", "gcr.io/b"] {
        for tag in ["latest", "1.9", "1.10"] {
            expected.extend([format!("{name}:{tag}"), format!("{name}:{tag}")]);
        }
    }
    assert_eq!(whole, expected);
}
