use super::*;
use proptest::prelude::*;

fn now() -> Timestamp {
    "2026-11-01T00:00:00Z".parse().unwrap()
}

fn patterns(text: &str) -> Vec<TagPattern> {
    text.split_whitespace().map(|pattern| pattern.parse().unwrap()).collect()
}

fn tags(text: &str) -> Vec<TagCandidate> {
    text.split_whitespace()
        .map(|tag| match tag.split_once('@') {
            Some((tag, date)) => {
                TagCandidate { tag: tag.to_owned(), created: Some(format!("{date}T00:00:00Z").parse().unwrap()) }
            }
            None => TagCandidate::new(tag),
        })
        .collect()
}

fn kept(selection: &TagSelection, text: &str) -> String {
    selection.evaluate(tags(text), now()).kept.iter().map(|c| c.tag.as_str()).collect::<Vec<_>>().join(" ")
}

fn dropped(selection: &TagSelection, text: &str) -> Vec<String> {
    selection.evaluate(tags(text), now()).dropped.iter().map(|(c, reason)| format!("{}: {reason}", c.tag)).collect()
}

fn newest(count: usize, by: NewestBy) -> TagSelection {
    TagSelection { newest: Some(Newest { count, by }), ..TagSelection::default() }
}

#[test]
fn without_a_word_all_tags_are_kept_in_order_and_once() {
    assert_eq!(kept(&TagSelection::default(), "1.10 latest 1.9 edge 1.10"), "edge latest 1.9 1.10");
}

#[test]
fn each_dropped_tag_has_its_reason() {
    let selection = TagSelection {
        include: patterns("1.* 2025*"),
        exclude: patterns("*-rc*"),
        range: Some(">=1.20".parse().unwrap()),
        since: Some("2025-01-01".parse().unwrap()),
        newest: Some(Newest { count: 1, by: NewestBy::Version }),
        min: Some(2),
    };
    let list = "1.21-rc1@2025-02-01 latest 1.19.3 1.22@2024-12-31 1.23 1.24@2025-03-01 1.25@2025-04-01 1.x";
    let evaluation = selection.evaluate(tags(list), now());
    assert_eq!(evaluation.below_min, Some(2));
    assert_eq!(kept(&selection, list), "1.25");
    assert_eq!(
        dropped(&selection, list),
        [
            "1.x: not a version",
            "latest: not matched by any include",
            "1.19.3: 1.19.3 is not >=1.20",
            "1.21-rc1: excluded by *-rc*",
            "1.22: older than 2025-01-01, from 2024-12-31",
            "1.23: no creation date",
            "1.24: not among the newest 1",
        ]
    );
}

#[test]
fn the_newest_are_counted_for_each_variant() {
    let list = "1.25 1.26 1.27 1.26-alpine3.18 1.26-alpine3.19 1.27-alpine3.20 1.27-alpine 1.27-perl latest";
    assert_eq!(kept(&newest(2, NewestBy::Version), list), "1.26 1.27 1.27-alpine 1.27-alpine3.20 1.27-perl");
    assert_eq!(
        dropped(&newest(2, NewestBy::Version), list),
        [
            "latest: not a version",
            "1.25: not among the newest 2",
            "1.26-alpine3.18: not among the newest 2 of alpine",
            "1.26-alpine3.19: not among the newest 2 of alpine",
        ]
    );
}

#[test]
fn the_newest_by_date_are_counted_over_all() {
    let list = "edge@2026-03-01 1.0@2026-01-01 2.0@2026-02-01 3.0";
    assert_eq!(kept(&newest(2, NewestBy::Date), list), "edge 2.0");
    assert_eq!(dropped(&newest(2, NewestBy::Date), list), ["1.0: not among the newest 2", "3.0: no creation date"]);
}

#[test]
fn since_is_a_day_a_moment_or_a_time_ago() {
    let since = |text: &str| TagSelection { since: Some(text.parse().unwrap()), ..TagSelection::default() };
    let list = "a@2026-10-30 b@2026-08-01 c@2020-01-01";
    assert_eq!(kept(&since("2026-08-01"), list), "a b");
    assert_eq!(kept(&since("2026-08-01T00:00:01Z"), list), "a");
    assert_eq!(kept(&since("7d"), list), "a");
    assert_eq!(kept(&since("6 months"), list), "a b");
    assert_eq!(kept(&since("1000y"), list), "a b c");
    for wrong in ["", "yesterday", "-7d", "0d", "2025-13-01"] {
        assert!(wrong.parse::<Since>().is_err(), "{wrong}");
    }
}

#[test]
fn only_dates_need_dates() {
    assert!(!newest(3, NewestBy::Version).needs_created());
    assert!(newest(3, NewestBy::Date).needs_created());
    assert!(TagSelection { since: Some("7d".parse().unwrap()), ..TagSelection::default() }.needs_created());
}

#[test]
fn tags_that_the_specification_refuses_are_dropped() {
    let odd = ["", "-a", ".a", "a/b", "a b", "ä", "a\u{1b}[31m", &"x".repeat(129)];
    let evaluation = TagSelection::default().evaluate(odd.iter().map(|tag| TagCandidate::new(*tag)), now());
    assert_eq!(evaluation.kept, []);
    assert!(evaluation.dropped.iter().all(|(_, reason)| *reason == DropReason::NotATag));
    assert_eq!(evaluation.dropped.len(), odd.len());
}

#[test]
fn what_can_keep_nothing_is_noticed() {
    let found =
        |selection: TagSelection| selection.contradictions().iter().map(ToString::to_string).collect::<Vec<_>>();
    let selection = |include: &str, exclude: &str| TagSelection {
        include: patterns(include),
        exclude: patterns(exclude),
        ..TagSelection::default()
    };
    assert_eq!(found(selection("1.2 1.*", "1.2*")), ["`1.2` is always excluded by `1.2*`"]);
    assert_eq!(found(selection("", "*")), ["`*` excludes all tags"]);
    assert_eq!(found(selection("1.*", "/1[.]0/")), [""; 0]);
    assert_eq!(found(newest(0, NewestBy::Version)), ["the newest 0 are none"]);
    assert_eq!(
        found(TagSelection { min: Some(3), ..newest(2, NewestBy::Date) }),
        ["`min` is 3, but only the newest 2 by date are kept"]
    );
}

#[test]
fn selections_surely_overlap_only_where_that_is_certain() {
    let selection = |include: &str| TagSelection { include: patterns(include), ..TagSelection::default() };
    assert!(selection("").certainly_overlaps(&selection("")));
    assert!(selection("1.0 2.0").certainly_overlaps(&selection("2.0 3.0")));
    assert!(selection("1.0").certainly_overlaps(&selection("1.*")));
    assert!(!selection("1.*").certainly_overlaps(&selection("2.*")));
    assert!(!selection("1.0").certainly_overlaps(&selection("2.0")));
}

#[test]
fn a_hundred_thousand_tags_are_evaluated_quickly() {
    let all = (0..100_000).map(|i| TagCandidate::new(format!("{}.{}.{}-alpine3.{}", i % 7, i % 1000, i, i % 20)));
    let selection = TagSelection {
        exclude: patterns("*-rc* /.*-beta.*/"),
        range: Some(">=2".parse().unwrap()),
        ..newest(10, NewestBy::Version)
    };
    let evaluation = selection.evaluate(all, now());
    assert_eq!(evaluation.kept.len(), 10);
    assert_eq!(evaluation.dropped.len(), 99_990);
}

#[test]
fn what_is_no_version_is_never_the_newest() {
    for (list, newest_is) in [
        ("2.3.0 2.4.1 30517284 9be1c2d4", "2.4.1"),
        ("2.3.0 2.4.1 v30517284 7654321-alpine 1740825000", "2.4.1"),
        ("3.9 3.10 88412 4711 2c5a91e", "4711"),
        ("v1.30.2-eksbuild.2 v1.30.2-eksbuild.12 v1.29.9-eksbuild.40", "v1.30.2-eksbuild.12"),
        ("v1.30.1-gke.900 v1.30.1-gke.1200", "v1.30.1-gke.1200"),
        ("0.9.0-main.17 0.9.0-main.18", "0.9.0-main.18"),
        ("7.2_build.4 7.2_build.11", "7.2_build.11"),
        ("1.4.0_up0.9.1 1.4.0_up0.10.0 1.4.0", "1.4.0_up0.10.0"),
        ("1.0 1.0.post2 1.0.post1", "1.0.post2"),
        ("5.1-k3s9 5.1-k3s10", "5.1-k3s10"),
    ] {
        assert_eq!(kept(&newest(1, NewestBy::Version), list), newest_is, "{list}");
    }
}

#[test]
fn dates_are_counted_apart_from_versions() {
    let list = "17.2 16.9 20250301 2025-03-02 20250301103000 20250228-g1a2b3c4 latest";
    assert_eq!(kept(&newest(1, NewestBy::Version), list), "2025-03-02 17.2");
    let within = |range: &str| TagSelection { range: Some(range.parse().unwrap()), ..TagSelection::default() };
    assert_eq!(kept(&within(">=16"), list), "16.9 17.2");
    assert_eq!(kept(&within(">=2025-03-01"), list), "20250301 20250301103000 2025-03-02");
    let dated = TagSelection { include: patterns("2025*"), ..newest(1, NewestBy::Version) };
    assert_eq!(kept(&dated, list), "2025-03-02");
    assert_eq!(
        dropped(&newest(1, NewestBy::Version), list)[1..3],
        ["20250228-g1a2b3c4: not among the newest 1 of dates", "20250301: not among the newest 1 of dates"]
    );
}

#[test]
fn versions_are_parsed_after_a_common_prefix() {
    let list = "app-1.2.0 app-1.10.0 app-1.9.0-rc1 latest";
    assert_eq!(kept(&newest(2, NewestBy::Version), list), "app-1.9.0-rc1 app-1.10.0");
    let range = TagSelection { range: Some(">=1.3".parse().unwrap()), ..TagSelection::default() };
    assert_eq!(kept(&range, list), "app-1.9.0-rc1 app-1.10.0");
    assert_eq!(kept(&newest(1, NewestBy::Version), "go1.9 go1.22.3 go1.22.10"), "go1.22.10");
    let minio = "RELEASE.2025-03-01T10-30-00Z RELEASE.2025-02-28T23-00-00Z";
    assert_eq!(kept(&newest(1, NewestBy::Version), minio), "RELEASE.2025-03-01T10-30-00Z");
    // Tags that are versions without a prefix take precedence.
    assert_eq!(kept(&newest(1, NewestBy::Version), "1.2 pr-7 pr-8 1.3"), "1.3");
    // It is unknown which of the two prefixes is wanted.
    let two = newest(1, NewestBy::Version).evaluate(tags("app-1.2 app-1.3 web-1.1 edge"), now());
    assert_eq!(two.kept, []);
    assert_eq!(
        two.dropped[0].1.to_string(),
        "a version with the prefix `app-`, while other tags have `web-`: choose one with include"
    );
    assert_eq!(two.count_drops().to_string(), "1 not a version, 3 versions with different prefixes");
    let one = TagSelection { include: patterns("web-*"), ..newest(1, NewestBy::Version) };
    assert_eq!(kept(&one, "app-1.2 app-1.3 web-1.1 edge"), "web-1.1");
}

#[test]
fn drops_are_counted_in_the_order_of_the_filters() {
    let selection = TagSelection {
        include: patterns("1.* 2.*"),
        exclude: patterns("*-rc*"),
        range: Some(">=1.20".parse().unwrap()),
        since: Some("2025-01-01".parse().unwrap()),
        newest: Some(Newest { count: 1, by: NewestBy::Version }),
        min: None,
    };
    let list = "1.30@2026-01-01 1.29@2026-01-01 1.28@2020-01-01 1.19 1.18 edge 2.0-rc1 1.x";
    let evaluation = selection.evaluate(tags(list), now());
    assert_eq!(
        evaluation.count_drops().to_string(),
        "1 excluded by *-rc*, 1 not matched by any include, 2 not >=1.20, 1 not a version, 1 older than 2025-01-01, \
         1 not among the newest 1"
    );
    assert_eq!((evaluation.count_drops().total(), evaluation.kept.len()), (7, 1));
}

proptest! {
    #[test]
    fn every_tag_is_kept_or_dropped_and_the_order_of_the_list_does_not_matter(
        mut list in proptest::collection::vec("[0-9]\\.[0-9](-rc1|-alpine)?|[a-z]{1,3}|.{0,4}", 0..30),
        count in 1usize..4,
    ) {
        let selection = TagSelection { exclude: patterns("a*"), ..newest(count, NewestBy::Version) };
        let forth = selection.evaluate(list.iter().map(TagCandidate::new), now());
        list.reverse();
        let back = selection.evaluate(list.iter().map(TagCandidate::new), now());
        prop_assert_eq!(&forth, &back);
        list.sort();
        list.dedup();
        prop_assert_eq!(forth.kept.len() + forth.dropped.len(), list.len());
        prop_assert!(forth.kept.is_sorted_by(|a, b| compare_tags(&a.tag, &b.tag).is_lt()));
        prop_assert!(forth.dropped.is_sorted_by(|a, b| compare_tags(&a.0.tag, &b.0.tag).is_lt()));
    }
}
