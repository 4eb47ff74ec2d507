//! `imgsync images`: lists the images that files name, looks for them, and writes rules for them.

mod check;
mod output;
mod probe;
mod to_config;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use clap::Args;
use imgsync_config::RuleTarget;
use imgsync_image_names::Certainty;
use imgsync_model::naming::NamingStyle;
use imgsync_oci::Reference;
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_registry::{ClientSettings, Context};

use super::exit::{self, Exit};
use super::global::GlobalArgs;
use super::printer::Printer;
use super::retry_args::RetryArgs;
use super::settings::Settings;
use super::signals;
use super::target::parse_destination;
use crate::images::ImageSearch;

/// Files, and what to do with the images that they name.
#[derive(Debug, Args)]
pub(crate) struct ImagesArgs {
    /// Files or folders to read; - is stdin
    #[arg(value_name = "FILE", required = true)]
    pub(crate) files: Vec<PathBuf>,
    /// Print the places of each image below it
    #[arg(long, visible_alias = "why")]
    pub(crate) places: bool,
    /// Print each image as a JSON object
    #[arg(long)]
    pub(crate) json: bool,
    /// Print the digests that run, where `kubectl get pods -o yaml` shows them, instead of the tags
    #[arg(long)]
    pub(crate) running: bool,
    /// Also print strings that only look like images, in arguments, variables, annotations and ConfigMaps
    #[arg(long, conflicts_with = "probe")]
    pub(crate) perhaps: bool,
    /// Ask the registries, without credentials, which of these strings are images, and print those
    #[arg(long)]
    pub(crate) probe: bool,
    /// Print only images that are missing in this mirror, and exit with 1 if there are any
    #[arg(long, value_name = "TARGET", value_parser = parse_destination)]
    pub(crate) check: Option<RuleTarget>,
    /// Print a configuration with rules that copy the images to --to
    #[arg(long, requires = "to", conflicts_with_all = ["check", "json", "places"])]
    pub(crate) to_config: bool,
    /// Target of these rules: registry and path, or oci:DIR
    #[arg(long, value_name = "TARGET", value_parser = parse_destination, requires = "to_config")]
    pub(crate) to: Option<RuleTarget>,
    /// Naming for --check and --to-config: flat, keep, basename, full, or a template [default: as for rules]
    #[arg(long, value_name = "STYLE", value_parser = |text: &str| text.parse::<NamingStyle>())]
    pub(crate) naming: Option<NamingStyle>,
    #[command(flatten)]
    pub(crate) retry: RetryArgs,
}

/// Runs the command.
pub(crate) async fn run(args: ImagesArgs, global: &GlobalArgs, printer: &Printer) -> Exit {
    // Without requests, the configuration is not read: `--to-config > imgsync.yaml` has just emptied it.
    let loaded = (args.check.is_some() || args.probe).then(|| Settings::load(global, printer)).transpose();
    let settings = match loaded {
        Ok(settings) => settings,
        Err(exit) => return exit,
    };
    match execute(&args, settings.as_ref(), global.debug, printer).await {
        Ok(exit) => exit,
        Err(error) => {
            printer.failure(&error);
            exit::for_error(&error)
        }
    }
}

async fn execute(args: &ImagesArgs, settings: Option<&Settings>, debug: bool, printer: &Printer) -> Result<Exit> {
    if args.naming.is_some() && args.check.is_none() && !args.to_config {
        return Err(Error::new(ErrorKind::Invalid, "listing images", "--naming needs --check or --to-config"));
    }
    let mut search = ImageSearch::default();
    for file in &args.files {
        match file == Path::new("-") {
            true => search.add_reader("stdin", std::io::stdin().lock())?,
            false => search.add_path(file)?,
        }
    }
    let context = Context::default();
    signals::cancel_on_signal(context.cancel.clone(), printer.clone());
    let mut are_probed = true;
    let chosen: BTreeSet<Reference> = match (args.perhaps, settings.filter(|_| args.probe)) {
        (true, _) => search.images.all().map(|(image, _)| image.clone()).collect(),
        (false, Some(settings)) => {
            let candidates: Vec<Reference> =
                search.images.iter(Certainty::Perhaps).map(|(image, _)| image.clone()).collect();
            let probed = probe::probe(candidates, client_settings(args, settings)?, &context, printer).await?;
            are_probed = probed.unknown == 0;
            let sure = search.images.iter(Certainty::Sure).map(|(image, _)| image.clone());
            sure.chain(probed.images).collect()
        }
        (false, None) => search.images.iter(Certainty::Sure).map(|(image, _)| image.clone()).collect(),
    };
    let has_none_missing = match (&args.check, &args.to, settings) {
        (Some(target), _, Some(settings)) => {
            let checked =
                check::check(args, target, &search, &wanted(args, &search, &chosen), settings, &context, printer)
                    .await?;
            checked.print_summary(printer);
            checked.is_complete()
        }
        (_, Some(target), _) => {
            let wanted = wanted(args, &search, &chosen);
            to_config::print(target, args.naming.as_ref(), wanted.keys(), printer);
            true
        }
        _ => {
            output::print_images(args, &search, chosen.iter(), printer);
            true
        }
    };
    output::print_remarks(args, &search, &chosen, debug, printer);
    Ok(match search.is_complete() && has_none_missing && are_probed {
        true => Exit::Done,
        false => Exit::Failed,
    })
}

/// Returns the images, with the digests that run in place of tags if these are wanted, and for each the image as the
/// files name it.
fn wanted<'i>(
    args: &ImagesArgs,
    search: &ImageSearch,
    chosen: &'i BTreeSet<Reference>,
) -> BTreeMap<Reference, &'i Reference> {
    let names = |image: &'i Reference| {
        output::names(args, image, search.images.get(image)).into_iter().map(move |name| (name, image))
    };
    chosen.iter().flat_map(names).collect()
}

/// Returns the settings of the registry client with those of the flags.
fn client_settings(args: &ImagesArgs, settings: &Settings) -> Result<ClientSettings> {
    let mut client = settings.client()?;
    args.retry.apply(&mut client);
    Ok(client)
}
