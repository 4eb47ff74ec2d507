//! `imgsync bundle inventory`: what a registry has, as a small file.

use std::path::{Path, PathBuf};

use bytesize::ByteSize;
use clap::Args;
use imgsync_bundle::InventoryHeader;
use imgsync_model::naming::TargetBase;
use imgsync_model::select::RepositoryPattern;
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::humanize::pluralize;
use imgsync_registry::credentials::CredentialEnvironment;
use imgsync_registry::event::Events;
use imgsync_registry::{Client, Context};

use super::super::batch_progress::BatchProgress;
use super::super::exit::{Exit, fail};
use super::super::global::GlobalArgs;
use super::super::printer::Printer;
use super::super::retry_args::RetryArgs;
use super::super::settings::Settings;
use super::super::signals;
use super::load::parse_target;
use crate::bundle::take_inventory;

/// `imgsync bundle inventory`.
#[derive(Debug, Args)]
pub(crate) struct InventoryArgs {
    /// Registry and path, as `bundle load --to` takes it
    #[arg(value_name = "TARGET", value_parser = parse_target)]
    pub(crate) target: TargetBase,
    /// Only these repositories below it, for registries that cannot list theirs
    #[arg(value_name = "REPOSITORY")]
    pub(crate) repositories: Vec<String>,
    /// File to write, or - for stdout
    #[arg(long, value_name = "FILE")]
    pub(crate) out: PathBuf,
    /// Number of repositories to list concurrently
    #[arg(long, value_name = "N", default_value = "20", value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub(crate) query_limit: u16,
    #[command(flatten)]
    pub(crate) retry: RetryArgs,
}

/// Runs the command.
pub(super) async fn run(args: &InventoryArgs, global: &GlobalArgs, printer: &Printer) -> Exit {
    let settings = match Settings::load(global, printer) {
        Ok(settings) => settings,
        Err(exit) => return exit,
    };
    match inventory(args, &settings, printer).await {
        Ok(exit) => exit,
        Err(error) => fail(&error, printer),
    }
}

async fn inventory(args: &InventoryArgs, settings: &Settings, printer: &Printer) -> Result<Exit> {
    let mut client = settings.client()?;
    args.retry.apply(&mut client);
    let client = Client::new(client, CredentialEnvironment::from_process());
    let events = Events::new(BatchProgress::new(printer, false));
    let context = Context { events, ..Context::default() };
    signals::cancel_on_signal(context.cancel.clone(), printer.clone());
    let header = InventoryHeader {
        created: jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        imgsync: env!("CARGO_PKG_VERSION").to_owned(),
        target: args.target.to_string(),
    };
    let patterns = match args.repositories.is_empty() {
        true => vec![parse_pattern(&format!("{}/**", args.target))?],
        false => {
            let names = args.repositories.iter().map(|name| parse_pattern(&format!("{}/{name}", args.target)));
            names.collect::<Result<_>>()?
        }
    };
    let prefix = args.target.prefix.as_ref();
    let taken = take_inventory(&client, &patterns, prefix, header, args.query_limit.into(), &context).await?;
    for error in &taken.unlisted {
        printer.failure(error);
    }
    let bytes = taken.inventory.encode();
    let tags: usize = taken.inventory.repositories.iter().map(|repository| repository.tags.len()).sum();
    if args.out == Path::new("-") {
        printer.data(String::from_utf8_lossy(&bytes).trim_end());
    } else {
        std::fs::write(&args.out, &bytes).map_err(|error| {
            let detail = format!("{}: {error}", args.out.display());
            Error::new(ErrorKind::Local, "writing the inventory", detail).with_source(error)
        })?;
    }
    printer.line(&format!(
        "inventory of {}: {}, {}, {}",
        args.target,
        pluralize(taken.inventory.repositories.len() as u64, "repository", "repositories"),
        pluralize(tags as u64, "tag", "tags"),
        ByteSize(bytes.len() as u64)
    ));
    Ok(if taken.unlisted.is_empty() { Exit::Done } else { Exit::Failed })
}

fn parse_pattern(text: &str) -> Result<RepositoryPattern> {
    text.parse().map_err(|error: imgsync_model::select::RepositoryPatternError| {
        Error::new(ErrorKind::Invalid, format!("listing {text}"), error.to_string())
    })
}
