use super::*;
use crate::select::TagSelection;
use proptest::prelude::*;

fn named(style: &str, base: &str, source: &str) -> Result<String, String> {
    let style: NamingStyle = style.parse().map_err(|error: NamingTemplateError| error.to_string())?;
    let base: TargetBase = base.parse().map_err(|error: TargetBaseError| error.to_string())?;
    let source: imgsync_oci::Reference = source.parse().unwrap();
    let tag = source.tag_or_latest().unwrap();
    let source_name =
        SourceName { registry: &source.registry, repository: &source.repository, tag: &tag, original: None };
    style.target_name(&base, &source_name).map(|target| target.to_string()).map_err(|error| error.to_string())
}

#[test]
fn each_style_gives_its_name() {
    let pilot = "gcr.io/istio-release/pilot:1.25";
    for (style, base, source, target) in [
        ("flat", "docker.io/gcrxio", pilot, "docker.io/gcrxio/gcr.io_istio-release_pilot:1.25"),
        ("flat", "docker.io/gcrxio", "localhost:5000/a/b:1", "docker.io/gcrxio/localhost_5000_a_b:1"),
        ("flat", "docker.io/gcrxio", "nginx:1", "docker.io/gcrxio/docker.io_library_nginx:1"),
        ("keep", "registry.example.com/mirror", pilot, "registry.example.com/mirror/istio-release/pilot:1.25"),
        ("keep", "registry.example.com", pilot, "registry.example.com/istio-release/pilot:1.25"),
        ("basename", "docker.io/gcrxio", pilot, "docker.io/gcrxio/pilot:1.25"),
        (
            "full",
            "registry.example.com/mirror",
            "localhost:5000/a/b:1",
            "registry.example.com/mirror/localhost_5000/a/b:1",
        ),
        ("{{namespace}}-{{basename}}", "docker.io/gcrxio", pilot, "docker.io/gcrxio/istio-release-pilot:1.25"),
        ("x/{{basename}}:{{tag}}-mirror", "registry.example.com", pilot, "registry.example.com/x/pilot:1.25-mirror"),
        ("{{flat|replace('.', '-')}}", "docker.io/gcrxio", pilot, "docker.io/gcrxio/gcr-io_istio-release_pilot:1.25"),
    ] {
        assert_eq!(named(style, base, source).as_deref(), Ok(target), "{style}");
    }
}

#[test]
fn the_name_in_the_originals_days_can_be_kept() {
    let source: imgsync_oci::Reference = "ghcr.io/flannel-io/flannel:v0.26.0".parse().unwrap();
    let tag = source.tag_or_latest().unwrap();
    let source_name = SourceName {
        registry: &source.registry,
        repository: &source.repository,
        tag: &tag,
        original: Some("quay.io/coreos/flannel"),
    };
    let target = NamingStyle::Original.target_name(&"docker.io/gcrxio".parse().unwrap(), &source_name).unwrap();
    assert_eq!(target.to_string(), "docker.io/gcrxio/quay.io_coreos_flannel:v0.26.0");
}

#[test]
fn a_layout_keeps_the_whole_name() {
    let source: imgsync_oci::Reference = "localhost:5000/a/b:1".parse().unwrap();
    let tag = source.tag_or_latest().unwrap();
    let source_name =
        SourceName { registry: &source.registry, repository: &source.repository, tag: &tag, original: None };
    assert_eq!(NamingStyle::Full.layout_name(&source_name).unwrap().0, "localhost:5000/a/b");
}

#[test]
fn what_the_target_will_not_take_is_refused_with_the_reason() {
    let refused = |style: &str, base: &str, source: &str| named(style, base, source).unwrap_err();
    assert_eq!(
        refused("keep", "docker.io/gcrxio", "gcr.io/istio-release/pilot:1"),
        "`docker.io/gcrxio/istio-release/pilot` cannot be a target: Docker Hub repositories are NAMESPACE/NAME: two \
         levels, not 3 (`naming: flat` joins any path into one)"
    );
    assert!(refused("flat", "docker.io", "gcr.io/a:1").ends_with("set `to` to docker.io/NAMESPACE"));
    assert!(refused("{{basename|upper}}", "r.example.com", "gcr.io/a/b:1").contains("lowercase"));
    assert!(refused("{{basename}}..x", "r.example.com", "gcr.io/a/b:1").contains("each part between slashes"));
    assert!(refused("{{basename}}:-{{tag}}", "r.example.com", "gcr.io/a/b:1").contains("tag"));
    let long = format!("gcr.io/a/{}:1", "x".repeat(240));
    assert!(refused("flat", "r.example.com/mirror", &long).contains("255 are allowed"));
}

#[test]
fn templates_are_checked_before_they_are_used() {
    let refused = |text: &str| text.parse::<NamingStyle>().unwrap_err().to_string();
    assert!(refused("flatt").starts_with(
        "unknown naming style `flatt`: use flat, keep, basename, full, original or a template such as {{"
    ));
    assert!(refused("{{repo}}").starts_with("unknown variable `repo`"));
    assert!(refused("{{basename").starts_with("the template is invalid: syntax error"));
    assert!(refused("{{basename|frobnicate}}").starts_with("the template is invalid: unknown filter"));
    assert!(refused("{{tag}}").starts_with("a name must contain"));
    assert!(refused("mirror{% if true %}{% endif %}").starts_with("a name must contain"));
}

#[test]
fn a_base_is_a_registry_and_a_path() {
    let refused = |text: &str| text.parse::<TargetBase>().unwrap_err().to_string();
    assert_eq!(refused("gcrxio"), "`gcrxio` names no registry; for Docker Hub write `docker.io/gcrxio`");
    assert!(refused("r.example.com/a:latest").contains("without a tag"));
    assert!(refused("r.example.com/a/*").contains("digest or `*`"));
    assert!(refused("https://r.example.com/a").contains("without a scheme"));
    assert!(refused("r.example.com/A").contains("lowercase"));
    assert!(refused("docker.io/a/b").contains("too deep"));
    assert_eq!("localhost:5000".parse::<TargetBase>().unwrap().to_string(), "localhost:5000");
    assert_eq!(
        "r.example.com/a/".parse::<TargetBase>().map(|base| base.to_string()),
        Err(TargetBaseError::Malformed("a/".parse::<RepositoryName>().unwrap_err()))
    );
}

#[test]
fn two_sources_of_one_target_are_found_tag_by_tag() {
    let mut names = TargetRegister::new();
    assert_eq!(names.claim_repository("gcr.io/a/pilot", "r/pilot"), TargetClaim::Exclusive);
    assert_eq!(
        names.claim_repository("gcr.io/a/pilot", "r/pilot"),
        TargetClaim::Exclusive,
        "another rule for the same pair"
    );
    assert_eq!(names.claim_repository("gcr.io/b/pilot", "r/pilot"), TargetClaim::Shared("gcr.io/a/pilot".into()));
    assert_eq!(names.claim_repository("gcr.io/c/other", "r/other"), TargetClaim::Exclusive);
    assert_eq!(names.claim_tag("gcr.io/a/pilot", "r/pilot", "1.0"), Ok(()));
    assert_eq!(names.claim_tag("gcr.io/b/pilot", "r/pilot", "2.0"), Ok(()));
    assert_eq!(names.claim_tag("gcr.io/a/pilot", "r/pilot", "1.0"), Ok(()), "once more does no harm");
    let collision = names.claim_tag("gcr.io/b/pilot", "r/pilot", "1.0").unwrap_err();
    assert_eq!(collision.to_string(), "r/pilot:1.0 is already the target of gcr.io/a/pilot");
    assert_eq!(names.shared_targets(), [("r/pilot", vec!["gcr.io/a/pilot", "gcr.io/b/pilot"])]);
}

#[test]
fn tags_are_remembered_only_where_they_can_collide() {
    let mut names = TargetRegister::new();
    names.claim_repository("gcr.io/a", "r/a");
    for tag in 0..1000 {
        names.claim_tag("gcr.io/a", "r/a", &tag.to_string()).unwrap();
    }
    assert_eq!(names.recorded_tags(), 0);
    assert_eq!(
        names.claim_repository("gcr.io/b", "r/a"),
        TargetClaim::SharedAfterTags("gcr.io/a".into()),
        "only the plan knows what passed"
    );
}

#[test]
fn tags_in_the_repositorys_name_are_compared_without_a_claim() {
    let mut names = TargetRegister::new();
    assert_eq!(names.claim_tag("gcr.io/a", "r/a-1.0", "latest"), Ok(()));
    assert!(names.claim_tag("gcr.io/b", "r/a-1.0", "latest").is_err());
}

#[test]
fn rules_that_must_collide_are_known_before_listing() {
    let collide = |a: (&str, &str, &str), b: (&str, &str, &str)| {
        let parse = |(source, base, style): (&str, &str, &str)| {
            let source: imgsync_oci::Reference = source.parse().unwrap();
            (source, base.parse::<TargetBase>().unwrap(), style.parse::<NamingStyle>().unwrap())
        };
        let (a, b) = (parse(a), parse(b));
        let selection = TagSelection::default();
        let rule = |rule: &(imgsync_oci::Reference, TargetBase, NamingStyle)| {
            (rule.0.registry.clone(), rule.0.repository.clone())
        };
        let ((ra, pa), (rb, pb)) = (rule(&a), rule(&b));
        find_certain_collision(
            &SingleRepositoryRule { registry: &ra, repository: &pa, selection: &selection, base: &a.1, style: &a.2 },
            &SingleRepositoryRule { registry: &rb, repository: &pb, selection: &selection, base: &b.1, style: &b.2 },
        )
        .map(|target| format!("{}/{}", target.registry, target.repository))
    };
    let (a, b) = ("gcr.io/a/pilot", "quay.io/b/pilot");
    let r = "r.example.com/m";
    assert_eq!(collide((a, r, "basename"), (b, r, "basename")).as_deref(), Some("r.example.com/m/pilot"));
    assert_eq!(collide((a, r, "basename"), (a, r, "basename")), None, "one source twice");
    assert_eq!(collide((a, r, "flat"), (b, r, "flat")), None);
    assert_eq!(collide((a, r, "basename"), (b, "r.example.com/n", "basename")), None);
    assert_eq!(collide((a, r, "{{basename}}:a-{{tag}}"), (b, r, "{{basename}}:b-{{tag}}")), None);
    assert_eq!(collide((a, r, "{{basename}}"), (b, r, "basename")).as_deref(), Some("r.example.com/m/pilot"));
}

proptest! {
    #[test]
    fn nothing_panics(style in "\\{\\{[a-z|%{}]{0,12}\\}\\}|.{0,20}", base in ".{0,20}|[a-z./:]{0,20}") {
        let _ = named(&style, &base, "gcr.io/a/b:1");
    }

    #[test]
    fn flat_names_fit_every_registry(path in "[a-z0-9]{1,8}(/[a-z0-9]{1,8}([._-][a-z0-9]{1,4})?){0,3}", port in proptest::option::of(1u16..)) {
        let host = port.map_or("gcr.io".to_owned(), |port| format!("gcr.io:{port}"));
        let source = format!("{host}/{path}:1");
        prop_assert!(named("flat", "docker.io/gcrxio", &source).is_ok());
    }
}
