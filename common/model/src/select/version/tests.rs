use super::*;
use proptest::prelude::*;

fn version(tag: &str) -> Version {
    Version::parse(tag).unwrap_or_else(|| panic!("{tag} is a version"))
}

#[test]
fn tags_as_people_write_them_are_versions() {
    for tag in [
        "1",
        "v1.25",
        "V2",
        "1.25.3-alpine",
        "1.2.3.4",
        "2024.01.15",
        "20240115",
        "2024-01-15",
        "2024-01",
        "release-1.2",
        "release-v1.2",
        "1.2rc1",
        "4.1.Final",
        "2.0.RC1",
        "4.1.Final",
        "2.0.RC1",
        "1.0-rc.1",
        "1.25.3-debian-11-r5",
        "20240115093000",
        "20240115.2",
        "1.2.3_build5",
        "0",
        "1234",
        "v2025",
        "1.0.post2",
        "1.0post3",
        "2.1-post1",
        "4.1.0.SP2",
        "9.6p1",
        "20250301-g1a2b3c4",
        "20250301T103000Z",
        "2025-03-01T10-30-00Z",
        "2025030102",
        "202503011030",
    ] {
        assert!(Version::parse(tag).is_some(), "{tag}");
    }
}

#[test]
fn words_and_commits_are_no_versions() {
    for tag in [
        "latest",
        "stable",
        "alpine3.19",
        "sha-0a1b2c3",
        "1234abc",
        "",
        "v",
        "release-",
        "1x",
        "-1",
        ".1",
        "1234a5",
        "1.x",
        "1.2.",
        "30517284",
        "9be1c2d4",
        "v30517284",
        "7654321-alpine",
        "12345",
        "00001",
        "1740825000",
        "20241315",
        "20250301993000",
        "1.0.post",
    ] {
        assert!(Version::parse(tag).is_none(), "{tag}");
    }
    assert!(Version::parse("99999999999999999999999").is_none(), "too large to be a number");
}

#[test]
fn versions_stand_in_the_order_that_people_expect() {
    let sorted = [
        "1.9",
        "1.10-dev",
        "1.10-alpha",
        "1.10-alpha.2",
        "1.10-beta1",
        "1.10-M1",
        "1.10-rc.1",
        "1.10-rc-2",
        "1.10rc10",
        "1.10",
        "v1.10",
        "1.10.0",
        "1.10-1",
        "1.10-2",
        "1.10.1",
        "1.10.1.1",
        "1.11-alpine3.9",
        "1.11-alpine3.19",
        "1.12",
        "1.12.post2",
        "1.12_up3.9.1",
        "1.12_up3.10.0",
        "1.13-eksbuild.2",
        "1.13-eksbuild.12",
        "2024.01.15",
    ];
    // `1.10`, `v1.10` and `1.10.0` are the same version: the text decides.
    let dates = ["2023-12-31", "20240114", "2024-01", "20240115", "20240115093000", "20240116T000000Z", "2024-01-16.2"];
    let mut both: Vec<&str> = dates.to_vec();
    both.swap(2, 0);
    both.sort_by_key(|tag| version(tag));
    assert_eq!(
        both,
        ["2023-12-31", "2024-01", "20240114", "20240115", "20240115093000", "20240116T000000Z", "2024-01-16.2"]
    );
    assert!(version("2199-12-31") < version("0.1"), "dates are apart from versions");
    let mut shuffled: Vec<Version> = sorted.iter().rev().map(|tag| version(tag)).collect();
    shuffled.sort();
    let mut expected = sorted.to_vec();
    expected[9..12].sort();
    assert_eq!(shuffled.iter().map(Version::as_str).collect::<Vec<_>>(), expected);
}

#[test]
fn the_ways_to_write_a_date_are_one_date() {
    assert_eq!(version("20240115").core, version("2024-01-15").core);
    assert_eq!(version("20240115T093000Z").core, version("20240115093000").core);
    assert_eq!(version("2024-01-15T09-30-00Z").core, version("20240115093000").core);
    assert!(version("20240115").is_date() && version("2024-01").is_date() && version("v20240115-alpine").is_date());
    assert!(!version("2024.01.15").is_date() && !version("2024").is_date() && !version("2024-13").is_date());
}

#[test]
fn the_variant_is_what_remains() {
    for (tag, family) in [
        ("1.25", ""),
        ("1.25-alpine", "alpine"),
        ("1.25-alpine3.19", "alpine"),
        ("1.25-rc1-alpine3.19", "alpine"),
        ("1.25.3-debian-11-r5", "debian"),
        ("1.25-bookworm-perl", "bookworm-perl"),
        ("1.25-rc1", ""),
        ("1.25-arm64", "arm64"),
        ("3.9.9-jdk17-alpine3.20", "jdk17-alpine"),
        ("1.25-ls42", "ls"),
        ("0.1.0-5-g1a2b3c4", ""),
        ("0.1.0-1a2b3c4-alpine", "alpine"),
        ("1.25-3", ""),
        ("v1.30.2-eksbuild.2", "eksbuild"),
        ("v1.30.2-eksbuild.12", "eksbuild"),
        ("v1.30.1-gke.1200", "gke"),
        ("v1.30.1-gke.1200.1", "gke"),
        ("2.1.0-main.17", "main"),
        ("2.1.0-main.17.g1a2b3c4", "main"),
        ("2.1.0-main.17.gabcdefa", "main"),
        ("2.1.0_build.4", ""),
        ("1.4.0_up0.9.1", ""),
        ("1.4.0_up0.10.0-rancher2", "rancher"),
        ("v1.30.2-k3s1", "k3s"),
        ("v1.30.2-rke2r10", "rke2r"),
        ("v1.30.2-eks-1-30-12", "eks"),
        ("1.25_alpine3.19", "alpine"),
        ("1.25_amd64", "amd64"),
        ("1.0.post2-slim", "slim"),
        ("1.2-alpha-20250301T103000Z", ""),
        ("1.2-nightly.20250301", ""),
        ("1.2-jdk17.0.2", "jdk17.0.2"),
        ("20250301-g1a2b3c4", ""),
        ("20250301-alpine3.20", "alpine"),
    ] {
        assert_eq!(version(tag).variant_name(), family, "{tag}");
    }
}

#[test]
fn a_version_is_found_behind_a_prefix() {
    let behind = |tag: &'static str| split_prefix(tag).map(|(prefix, version)| (prefix, version.is_date()));
    for (tag, prefix) in [
        ("app-1.2.0", "app-"),
        ("my-app-v1.10.0-rc1", "my-app-"),
        ("go1.22.3", "go"),
        ("jdk17-1.2", "jdk17-"),
        ("ubuntu-22.04", "ubuntu-"),
        ("chart_3", "chart_"),
    ] {
        assert_eq!(behind(tag), Some((prefix, false)), "{tag}");
    }
    assert_eq!(behind("RELEASE.2025-03-01T10-30-00Z"), Some(("RELEASE.", true)));
    for tag in
        ["latest", "1.2.0", "v1.2.0", "arm64", "sha-0a1b2c3", "sha-1234567", "a1b2c3d4", "abc1234", "9be1c2d4", "app-"]
    {
        assert_eq!(behind(tag), None, "{tag}");
    }
    assert!(split_prefix("app-1.10.0").unwrap().1 > split_prefix("app-1.9.0").unwrap().1);
}

fn tag() -> impl Strategy<Value = String> {
    prop_oneof![
        "v?[0-9]{1,2}(\\.[0-9]{1,2}){0,3}(-(rc|alpha|beta)\\.?[0-9]?)?(-(alpine|debian)[0-9]?)?(-r?[0-9])?",
        "20[0-9]{6}",
        "[0-9][A-Za-z0-9._-]{0,12}",
    ]
}

proptest! {
    #[test]
    fn nothing_panics(text in ".{0,40}") {
        let _ = (Version::parse(&text), split_prefix(&text));
    }

    #[test]
    fn the_order_is_total_antisymmetric_and_transitive(a in tag(), b in tag(), c in tag()) {
        if let (Some(a), Some(b), Some(c)) = (Version::parse(&a), Version::parse(&b), Version::parse(&c)) {
            prop_assert_eq!(a.cmp(&b), b.cmp(&a).reverse());
            prop_assert_eq!(a.cmp(&b) == Ordering::Equal, a == b);
            if a <= b && b <= c {
                prop_assert!(a <= c);
            }
        }
    }
}

/// The table of tags in docs/reference/configuration.md, row by row.
#[test]
fn the_table_of_the_documentation_is_true() {
    let text = include_str!("../../../../../docs/reference/configuration.md");
    let (_, table) = text.split_once("| input | family | order, old to new |\n|---|---|---|\n").unwrap();
    let (table, _) = table.split_once("<!-- -->").unwrap();
    let quoted = |cell: &str| cell.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<String>>();
    assert!(table.lines().count() > 12);
    for row in table.lines() {
        let cells: Vec<&str> = row.trim_matches('|').split('|').collect();
        let [input, family, order] = cells[..] else { panic!("{row}") };
        let (mut tags, order) = (quoted(input), quoted(order));
        if family.trim().starts_with("none") {
            for tag in &tags {
                assert!(Version::parse(tag).is_none() && split_prefix(tag).is_none(), "{tag}: {row}");
            }
            assert_eq!(order, [""; 0], "{row}");
            continue;
        }
        let of_prefix = tags.iter().all(|tag| split_prefix(tag).is_some());
        let read = |tag: &String| match of_prefix {
            true => split_prefix(tag).unwrap().1,
            false => version(tag),
        };
        let kind = if family.trim().starts_with("dates") { "dates" } else { "versions" };
        let word = family
            .trim()
            .strip_prefix(kind)
            .unwrap()
            .strip_prefix(" of `")
            .map_or("", |rest| rest.split('`').next().unwrap());
        for tag in &tags {
            assert_eq!((read(tag).is_date(), read(tag).variant_name()), (kind == "dates", word), "{tag}: {row}");
        }
        tags.sort_by_key(read);
        assert_eq!(tags, order, "{row}");
    }
}
