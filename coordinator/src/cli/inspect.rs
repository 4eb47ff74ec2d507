//! `imgsync inspect REF`: shows the content of an image as a tree or as JSON.

use std::path::PathBuf;

use bytesize::ByteSize;
use clap::Args;
use imgsync_oci::MediaType;
use imgsync_oci::error::Result;
use imgsync_oci::humanize::pluralize;
use imgsync_oci::sanitize::sanitize;
use imgsync_registry::credentials::CredentialEnvironment;
use imgsync_registry::event::Events;
use imgsync_registry::{Client, Context};
use imgsync_worker::copy::{ImageLocation, InspectedBlob, ManifestTree, inspect};
use serde_json::json;

use super::batch_progress::BatchProgress;
use super::exit::{self, Exit};
use super::global::GlobalArgs;
use super::printer::Printer;
use super::retry_args::RetryArgs;
use super::settings::Settings;
use super::signals;
use super::stdin_archive::{StdinOptions, open_stdin, pipe_timeouts};
use super::values::parse_location;

/// Shows the platforms, layers, sizes and referrers of an image.
#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    /// The image: alpine, gcr.io/distroless/static:nonroot, host:5000/a/b@sha256:…, oci:DIR:TAG,
    /// oci-archive:FILE:TAG, docker-archive:FILE:TAG; as FILE, - is stdin
    #[arg(value_name = "REF", value_parser = parse_location)]
    pub(crate) reference: ImageLocation,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
    /// Save an archive from stdin to a temporary file in this folder first: for those whose index comes last
    #[arg(long, value_name = "DIR", hide_short_help = true)]
    pub(crate) spool: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) retry: RetryArgs,
}

/// Runs the command.
pub(crate) async fn run(args: InspectArgs, global: &GlobalArgs, printer: &Printer) -> Exit {
    let settings = match Settings::load(global, printer) {
        Ok(settings) => settings,
        Err(exit) => return exit,
    };
    match inspect_image(&args, &settings, printer).await {
        Ok(image) => {
            let (blobs, bytes) = image.count_blobs();
            match args.json {
                true => {
                    let mut object = json!({"reference": args.reference.to_string(), "blobs": blobs, "bytes": bytes});
                    // These types always serialize.
                    object["image"] = serde_json::to_value(&image).unwrap_or_default();
                    printer.data(&object.to_string())
                }
                false => {
                    let mut lines = vec![format!(
                        "{}: {}, {}",
                        args.reference,
                        pluralize(blobs as u64, "blob", "blobs"),
                        ByteSize(bytes)
                    )];
                    push_tree(&image, "", &mut lines);
                    printer.text(&lines.join("\n"))
                }
            };
            Exit::Done
        }
        Err(error) => {
            printer.failure(&error);
            exit::for_error(&error)
        }
    }
}

async fn inspect_image(args: &InspectArgs, settings: &Settings, printer: &Printer) -> Result<ManifestTree> {
    let mut client = settings.client()?;
    args.retry.apply(&mut client);
    let context = Context { events: Events::new(BatchProgress::new(printer, false)), ..Context::default() };
    signals::cancel_on_signal(context.cancel.clone(), printer.clone());
    let timeouts = pipe_timeouts(None, client.stall_timeout);
    let options = StdinOptions { spool: args.spool.as_deref(), timeouts };
    let stdin = open_stdin([&args.reference], options, &context.cancel).await?;
    let client = Client::new(client, CredentialEnvironment::from_process());
    inspect(&client, &args.reference, stdin.as_ref(), &context).await
}

/// Formats a manifest in one line.
fn format_manifest(image: &ManifestTree) -> String {
    let kind = match (&image.artifact_type, image.manifests.is_empty()) {
        (Some(kind), _) => kind.clone(),
        (None, false) => "index".to_owned(),
        (None, true) if MediaType::new(&image.media_type).is_index() => "index".to_owned(),
        (None, true) => image.media_type.clone(),
    };
    let mut parts = Vec::new();
    parts.extend(image.platform.clone().filter(|platform| platform != "unknown/unknown"));
    parts.push(image.digest.to_string());
    parts.push(kind);
    parts.push(ByteSize(image.size).to_string());
    if let Some(about) = &image.attested_digest {
        parts.push(format!("about {about}"));
    }
    parts.extend(image.tag.as_ref().map(|tag| format!("by the tag {tag}")));
    if image.missing {
        parts.push("(listed, but missing)".to_owned());
    }
    sanitize(&parts.join("  ")).into_owned()
}

fn format_blob(name: &str, blob: &InspectedBlob) -> String {
    let mut line = format!("{name}  {}  {}  {}", blob.digest, ByteSize(blob.size), blob.media_type);
    if !blob.urls.is_empty() {
        line.push_str(&format!("  at {}", blob.urls.join(" ")));
    }
    sanitize(&line).into_owned()
}

/// Appends a manifest and its children, which are prefixed with `indent`.
fn push_tree(image: &ManifestTree, indent: &str, lines: &mut Vec<String>) {
    lines.push(format_manifest(image));
    let mut below: Vec<(String, Option<&ManifestTree>)> = Vec::new();
    below.extend(image.config.iter().map(|config| (format_blob("config", config), None)));
    let of_index = MediaType::new(&image.media_type).is_index();
    let name = if of_index { "blob" } else { "layer" };
    below.extend(image.layers.iter().map(|layer| (format_blob(name, layer), None)));
    below.extend(image.manifests.iter().map(|child| (String::new(), Some(child))));
    below.extend(image.referrers.iter().map(|referrer| ("referrer  ".to_owned(), Some(referrer))));
    let last = below.len().saturating_sub(1);
    for (at, (text, child)) in below.into_iter().enumerate() {
        let (branch, more) = if at == last { ("└─ ", "   ") } else { ("├─ ", "│  ") };
        match child {
            None => lines.push(format!("{indent}{branch}{text}")),
            Some(child) => {
                let first = lines.len();
                push_tree(child, &format!("{indent}{more}"), lines);
                lines[first] = format!("{indent}{branch}{text}{}", lines[first]);
            }
        }
    }
}
