//! The images that are copied.

use imgsync_tests::images::{Layer, TestImage};

use crate::measure::Servers;
use crate::work_list::RepositoryWork;

/// Returns a small image of two platforms. Each platform's first layer is shared by all tags of the repository.
pub(crate) fn small_image(repository: usize, tag: usize) -> TestImage {
    let child = |platform: &str| {
        TestImage::single(&format!("cold-{repository}-{tag}-{platform}"))
            .layer(Layer::Shared(format!("base-{repository}-{platform}"), 2000))
            .layer(Layer::File(1500))
            .build()
    };
    TestImage::index(&format!("cold-{repository}-{tag}"))
        .child(&child("amd64"), "linux/amd64")
        .child(&child("arm64"), "linux/arm64")
        .build()
}

/// Fills the source with repositories `r0`, `r1` … and tags `v0`, `v1` …
pub(crate) async fn push_small_images(servers: &Servers, repositories: usize, tags: usize) {
    for repository in 0..repositories {
        for tag in 0..tags {
            let image = small_image(repository, tag);
            servers.source.push(&format!("r{repository}"), &format!("v{tag}"), &image).await;
        }
    }
}

/// Returns the repositories, to be listed and copied to `m/`.
pub(crate) fn repositories(count: usize) -> Vec<RepositoryWork> {
    (0..count).map(|number| RepositoryWork::listed(&format!("r{number}"), &format!("m/r{number}"))).collect()
}

/// Returns the repositories, whose tags the target is known to hold. imgsync asks the target for some of them.
pub(crate) fn known_repositories(count: usize, tags: usize, spot_checks: usize) -> Vec<RepositoryWork> {
    let mut repositories = repositories(count);
    for (number, repository) in repositories.iter_mut().enumerate() {
        for tag in 0..tags {
            repository.known.insert(format!("v{tag}"), small_image(number, tag).root);
        }
    }
    for spot_check in 0..spot_checks {
        let repository = &mut repositories[spot_check % count];
        repository.spot_checked.insert(format!("v{}", spot_check / count));
    }
    repositories
}

/// Returns a configuration with one rule for each repository.
pub(crate) fn one_rule_each(servers: &Servers, repositories: usize) -> String {
    let rules: String =
        (0..repositories).map(|number| format!("- from: {}/r{number}\n", servers.source.host())).collect();
    format!("defaults: {{to: {}/m, naming: keep}}\nrules:\n{rules}", servers.target.host())
}
