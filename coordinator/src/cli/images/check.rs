//! `--check`: looks for the images in a mirror.

use std::collections::BTreeMap;

use futures_util::StreamExt as _;
use imgsync_config::{RuleSource, RuleTarget};
use imgsync_model::naming::SourceName;
use imgsync_oci::Reference;
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::humanize::{group_digits, pluralize};
use imgsync_registry::credentials::CredentialEnvironment;
use imgsync_registry::{Access, Client, Context, ManifestRef, TrafficCounters};

use super::{ImagesArgs, client_settings, output};
use crate::cli::printer::Printer;
use crate::cli::settings::Settings;
use crate::images::ImageSearch;

/// Maximum number of concurrent requests.
const MAX_CONCURRENT_CHECKS: usize = 20;

/// Result of a check.
pub(super) struct Checked {
    present: usize,
    missing: usize,
    failed: usize,
    target: String,
}

impl Checked {
    /// Returns whether all images are there.
    pub(super) fn is_complete(&self) -> bool {
        self.missing == 0 && self.failed == 0
    }

    pub(super) fn print_summary(&self, printer: &Printer) {
        let total = (self.present + self.missing + self.failed) as u64;
        let mut line = format!(
            "{}: {} of {} there, {} missing",
            self.target,
            group_digits(self.present as u64),
            pluralize(total, "image", "images"),
            group_digits(self.missing as u64)
        );
        if self.failed > 0 {
            line.push_str(&format!(", {} unknown", group_digits(self.failed as u64)));
        }
        printer.line(&line);
    }
}

/// Prints the images that are missing in a mirror. An image by digest is there if the mirror has the digest. `wanted` has
/// the name of each image as the files have it.
pub(super) async fn check(
    args: &ImagesArgs,
    target: &RuleTarget,
    search: &ImageSearch,
    wanted: &BTreeMap<Reference, &Reference>,
    settings: &Settings,
    context: &Context,
    printer: &Printer,
) -> Result<Checked> {
    let RuleTarget::Registry(base) = target else {
        let hint = "use `imgsync inspect` for an image in a layout";
        return Err(Error::new(ErrorKind::Invalid, "checking the mirror", "it must be in a registry").with_hint(hint));
    };
    let mut rule = settings.config.rule_from_defaults(RuleSource::Layout(Default::default()));
    rule.naming = args.naming.clone().or(rule.naming);
    let style = rule.style_at(target);
    let client = Client::new(client_settings(args, settings)?, CredentialEnvironment::from_process());
    let find = async |image: &Reference| -> Result<Option<String>> {
        // An image by digest is requested by its digest, whatever its tag in the mirror.
        let tag = image.tag_or_latest().unwrap_or_else(imgsync_oci::Tag::latest);
        let source = SourceName { registry: &image.registry, repository: &image.repository, tag: &tag, original: None };
        let name = style.target_name(base, &source).map_err(|error| {
            Error::new(ErrorKind::Invalid, format!("naming {image} in the mirror"), error.to_string())
        })?;
        let reference = match &image.digest {
            Some(digest) => ManifestRef::Digest(digest.clone()),
            None => ManifestRef::Tag(name.tag.clone()),
        };
        let counters = TrafficCounters::new();
        let repository = client.repository(&name.registry, &name.repository, Access::Pull, context, &counters)?;
        let found = match repository.head_manifest(&reference).await {
            // Registries answer so for a repository that does not exist.
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            found => found?,
        };
        Ok(found.is_none().then(|| format!("{}/{}", name.registry, name.repository)))
    };
    let answers = futures_util::stream::iter(wanted)
        .map(|(image, written)| {
            let find = &find;
            async move { (image, *written, find(image).await) }
        })
        .buffered(MAX_CONCURRENT_CHECKS);
    let mut answers = std::pin::pin!(answers);
    let mut checked = Checked { present: 0, missing: 0, failed: 0, target: target.to_string() };
    while let Some((image, written, answer)) = answers.next().await {
        match answer {
            Ok(None) => checked.present += 1,
            Ok(Some(place)) => {
                checked.missing += 1;
                printer.line(&format!("missing: {image} in {place}"));
                if let Some(listed) = search.images.get(written) {
                    output::print_image(args, image, std::slice::from_ref(image), listed, printer);
                }
            }
            Err(error) if error.is_cancelled() => return Err(error),
            Err(error) => {
                checked.failed += 1;
                printer.failure(&error);
            }
        }
    }
    Ok(checked)
}
