//! `--probe`: asks registries whether strings are the names of images.

use futures_util::StreamExt as _;
use imgsync_oci::Reference;
use imgsync_oci::error::{ErrorKind, Result};
use imgsync_oci::humanize::pluralize;
use imgsync_registry::credentials::CredentialEnvironment;
use imgsync_registry::providers::CredentialSource;
use imgsync_registry::{Access, Client, ClientSettings, Context, ManifestRef, RegistrySettings, TrafficCounters};

use crate::cli::printer::Printer;

/// Maximum number of concurrent requests.
const MAX_CONCURRENT_PROBES: usize = 20;

/// Result of asking.
pub(super) struct Probed {
    /// The images that exist.
    pub(super) images: Vec<Reference>,
    /// Number of strings whose registry did not answer.
    pub(super) unknown: usize,
}

/// Answer of a registry.
enum Answer {
    Exists,
    Missing,
    /// Why it is unknown.
    Unknown(String),
}

/// Asks the registries which of these are images. It sends no credentials. A registry that the configuration does not
/// name must have a public address: the user has not configured it.
pub(super) async fn probe(
    candidates: Vec<Reference>,
    mut settings: ClientSettings,
    context: &Context,
    printer: &Printer,
) -> Result<Probed> {
    for image in &candidates {
        let untrusted = || RegistrySettings { public_only: true, ..RegistrySettings::default() };
        settings.registries.entry(image.registry.clone()).or_insert_with(untrusted);
    }
    for registry in settings.registries.values_mut() {
        registry.credentials.clear();
        registry.pull_credentials.clear();
        registry.identity = None;
        registry.credential_source = CredentialSource::Anonymous;
    }
    let client = Client::new(settings, CredentialEnvironment::default());
    let answers = futures_util::stream::iter(candidates)
        .map(|image| {
            let client = &client;
            async move {
                let answer = ask(client, &image, context).await;
                (image, answer)
            }
        })
        .buffered(MAX_CONCURRENT_PROBES);
    let mut answers = std::pin::pin!(answers);
    let mut probed = Probed { images: Vec::new(), unknown: 0 };
    let mut missing = 0;
    while let Some((image, answer)) = answers.next().await {
        match answer? {
            Answer::Exists => probed.images.push(image),
            Answer::Missing => {
                missing += 1;
                printer.line(&format!("no image: {image}"));
            }
            Answer::Unknown(why) => {
                probed.unknown += 1;
                printer.line(&format!("unknown: {image}: {why}"));
            }
        }
    }
    let count = pluralize(probed.images.len() as u64, "string is an image", "strings are images");
    printer.line(&format!("{count}, {missing} are not, {} unknown", probed.unknown));
    Ok(probed)
}

async fn ask(client: &Client, image: &Reference, context: &Context) -> Result<Answer> {
    let reference = match (&image.digest, image.tag_or_latest()) {
        (Some(digest), _) => ManifestRef::Digest(digest.clone()),
        (None, Some(tag)) => ManifestRef::Tag(tag),
        (None, None) => return Ok(Answer::Missing),
    };
    let counters = TrafficCounters::new();
    let repository = client.repository(&image.registry, &image.repository, Access::Pull, context, &counters)?;
    match repository.head_manifest(&reference).await {
        Ok(Some(_)) => Ok(Answer::Exists),
        Ok(None) => Ok(Answer::Missing),
        Err(error) if error.is_cancelled() => Err(error),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Answer::Missing),
        Err(error) => Ok(Answer::Unknown(error.to_string())),
    }
}
