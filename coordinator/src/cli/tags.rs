//! `imgsync tags`: previews what a rule would select.

use std::collections::BTreeMap;
use std::sync::Arc;

use clap::{Args, ValueEnum};
use imgsync_common::config::{Preset, Source};
use imgsync_common::error::{Class, Error, Result};
use imgsync_common::event::{Event, Events, Observer};
use imgsync_common::image::{Digest, RegistryName, RepositoryName};
use imgsync_common::printable::printable;
use imgsync_common::registry::credentials::Environment;
use imgsync_common::registry::{Client, Context, Tally};
use imgsync_common::retry::{Policy, seconds};
use imgsync_common::select::{
    Candidate, Newest, NewestBy, RepositoryPattern, RepositoryPatternError, Selection, Since, TagPattern, VersionRange,
};
use jiff::Timestamp;
use serde::Serialize;

use super::args::{Global, Patience};
use super::exit::{self, Exit};
use super::presets::preset;
use super::printer::Printer;
use super::settings::Settings;
use super::signals;
use crate::batches::{Listings, Offer};
use crate::enumerate::{Found, Listing, Options, Order};
use crate::presets::Part;
use crate::words::many;

/// Which repositories, and which of their tags.
#[derive(Debug, Args)]
pub(crate) struct TagsArgs {
    /// gcr.io/distroless/static, gcr.io/distroless/* (one level), gcr.io/istio-release/** (all below), or oci:DIR, an image layout
    #[arg(value_name = "PATTERN", value_parser = pattern, required_unless_present = "preset")]
    pub(crate) pattern: Option<Source>,
    /// What this preset reads, in place of a pattern: kubeadm, "kubeadm >=1.30"
    #[arg(long, value_name = "PRESET", value_parser = preset, conflicts_with = "pattern")]
    pub(crate) preset: Option<Preset>,
    /// Only tags that match one of these: globs (1.*), or regular expressions between slashes (/v\d+/)
    #[arg(long, value_name = "GLOB")]
    pub(crate) include: Vec<TagPattern>,
    /// No tags that match one of these
    #[arg(long, value_name = "GLOB")]
    pub(crate) exclude: Vec<TagPattern>,
    /// Only versions in this range, such as ">=1.20, <2"
    #[arg(long, value_name = "RANGE")]
    pub(crate) semver: Option<VersionRange>,
    /// Only the newest so many of each repository; by version, of each variant
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub(crate) newest: Option<usize>,
    /// What makes a tag newer
    #[arg(long, value_name = "WHAT", default_value = "version", requires = "newest")]
    pub(crate) newest_by: NewestByArg,
    /// Only what is younger than a day (2025-01-01), a moment or a time (90d); only of registries that list dates
    #[arg(long, value_name = "WHEN", value_parser = |text: &str| text.parse::<Since>())]
    pub(crate) since: Option<Since>,
    /// Print each tag as a JSON object, with digest and date where the registry lists them
    #[arg(long)]
    pub(crate) json: bool,
    /// Repositories that are listed at the same time
    #[arg(long, value_name = "N", default_value = "20", value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub(crate) query_limit: u16,
    #[command(flatten)]
    pub(crate) patience: Patience,
}

/// `--newest-by`.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum NewestByArg {
    Version,
    Date,
}

impl From<NewestByArg> for NewestBy {
    fn from(by: NewestByArg) -> NewestBy {
        match by {
            NewestByArg::Version => NewestBy::Version,
            NewestByArg::Date => NewestBy::Date,
        }
    }
}

fn pattern(text: &str) -> std::result::Result<Source, String> {
    if let Some(folder) = text.strip_prefix("oci:") {
        let absolute = std::path::absolute(folder).map_err(|error| format!("not a folder: {error}"))?;
        return Ok(Source::Layout(absolute));
    }
    let pattern: std::result::Result<RepositoryPattern, _> = text.parse();
    pattern.map(Source::Repositories).map_err(|error: RepositoryPatternError| match &error.hint {
        // The hint is about rules.
        Some(hint) if hint.contains("tags:") => format!("{error} (choose tags with --include)"),
        Some(hint) => format!("{error} ({hint})"),
        None => error.to_string(),
    })
}

fn at_least_one(text: &str) -> std::result::Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("the newest 0 are none".to_owned()),
        Ok(count) => Ok(count),
        Err(_) => Err("write how many, such as 10".to_owned()),
    }
}

/// More dropped tags are counted instead of named.
const MOST_NAMED: usize = 20;

/// A line of `--json`.
#[derive(Debug, Serialize)]
struct Line<'a> {
    registry: &'a RegistryName,
    repository: &'a RepositoryName,
    tag: &'a str,
    /// `null` if the registry does not list it.
    digest: Option<&'a Digest>,
    created: Option<String>,
    media_type: Option<&'a str>,
}

/// Runs the command.
pub(crate) async fn run(args: TagsArgs, global: &Global, printer: &Printer) -> Exit {
    let settings = match Settings::load(global, printer) {
        Ok(settings) => settings,
        Err(exit) => return exit,
    };
    match work(&args, &settings, global.debug, printer).await {
        Ok(exit) => exit,
        Err(error) => {
            printer.failure(&error);
            exit::of_error(&error)
        }
    }
}

async fn work(args: &TagsArgs, settings: &Settings, debug: bool, printer: &Printer) -> Result<Exit> {
    let selection = selection(args)?;
    let mut client = settings.client()?;
    client.retry = Policy { attempts: args.patience.attempts, first_delay: args.patience.retry_delay, ..client.retry };
    client.retry.max_delay = client.retry.max_delay.max(client.retry.first_delay);
    client.stall = args.patience.stall_timeout;
    let client = Client::new(client, Environment::from_process());
    let context = Context { events: Events::to(Arc::new(Words(printer.clone()))), ..Context::default() };
    signals::cancel_on_signal(context.cancel.clone(), printer.clone());

    let tally = Tally::new();
    let options = Options { query_limit: args.query_limit.into(), order: Order::ByName };
    let Some(source) = args.preset.clone().map(Source::Preset).or_else(|| args.pattern.clone()) else {
        return Err(Error::new(Class::Invalid, "listing tags", "there is neither a pattern nor a preset"));
    };
    let mut listings = Listings::of(&source, settings.folder(), &client, options, &context, &tally).await?;
    let mut told = Told { args, debug, printer, dropped: Dropped::default(), kept: 0, listed: 0, unlisted: 0 };
    let now = Timestamp::now();
    while let Some(Offer { found, part }) = listings.next().await? {
        match found {
            Found::Listed(listing) => {
                if let Some(error) = listing.lacks_dates_for(&selection) {
                    told.unlisted += 1;
                    printer.failure(&error);
                    continue;
                }
                let part = part.as_deref();
                if !told.repository(part, &selection, &listing, now) {
                    // The reader has closed the pipe: `| head`.
                    return Ok(Exit::Done);
                }
            }
            Found::Unlisted(unlisted) => {
                told.unlisted += 1;
                printer.failure(&unlisted.error);
            }
        }
    }
    told.end();
    tracing::info!(traffic = ?tally.read(), "done");
    Ok(if told.unlisted > 0 { Exit::Failed } else { Exit::Done })
}

/// Builds the selection of a rule's `tags` from the flags.
fn selection(args: &TagsArgs) -> Result<Selection> {
    let selection = Selection {
        include: args.include.clone(),
        exclude: args.exclude.clone(),
        range: args.semver.clone(),
        since: args.since,
        newest: args.newest.map(|count| Newest { count, by: args.newest_by.into() }),
        min: None,
    };
    match selection.contradictions().first() {
        Some(contradiction) => Err(Error::new(Class::Invalid, "choosing tags", contradiction.to_string())),
        None => Ok(selection),
    }
}

/// Prints tags, and collects the summary.
struct Told<'a> {
    args: &'a TagsArgs,
    debug: bool,
    printer: &'a Printer,
    dropped: Dropped,
    kept: usize,
    listed: usize,
    unlisted: usize,
}

/// Dropped tags: the first few by name, all by reason.
#[derive(Default)]
struct Dropped {
    named: Vec<String>,
    reasons: BTreeMap<String, usize>,
    count: usize,
}

impl Told<'_> {
    /// Prints the tags of a repository. Returns false if the output is closed.
    fn repository(&mut self, part: Option<&Part>, selection: &Selection, listing: &Listing, now: Timestamp) -> bool {
        self.listed += 1;
        let candidates =
            listing.tags.iter().map(|listed| Candidate { tag: listed.tag.clone(), created: listed.created });
        let evaluation = match part {
            Some(part) => part.evaluate(selection, candidates, now),
            None => selection.evaluate(candidates, now),
        };
        for (candidate, reason) in &evaluation.dropped {
            let name = format!("{}/{}:{}", listing.registry, listing.repository, candidate.tag);
            let line = format!("dropped {}: {reason}", printable(&name));
            self.dropped.count += 1;
            *self.dropped.reasons.entry(reason.in_general()).or_default() += 1;
            if self.debug {
                self.printer.line(&line);
            } else if self.dropped.named.len() < MOST_NAMED {
                self.dropped.named.push(line);
            }
        }
        self.kept += evaluation.kept.len();
        evaluation.kept.iter().all(|candidate| self.printer.data(&self.line(listing, &candidate.tag)))
    }

    fn line(&self, listing: &Listing, tag: &str) -> String {
        if !self.args.json {
            return match &self.args.pattern {
                Some(Source::Repositories(pattern)) if pattern.repository().is_some() => tag.to_owned(),
                _ => format!("{}/{}:{tag}", listing.registry, listing.repository),
            };
        }
        let listed = listing.get(tag);
        let line = Line {
            registry: &listing.registry,
            repository: &listing.repository,
            tag,
            digest: listed.and_then(|listed| listed.digest.as_ref()),
            created: listed.and_then(|listed| listed.created).map(|created| created.to_string()),
            media_type: listed.and_then(|listed| listed.media_type.as_ref()).map(|kind| kind.as_str()),
        };
        serde_json::to_string(&line).unwrap_or_else(|error| format!("{{\"error\":\"{error}\"}}"))
    }

    fn end(&self) {
        let Dropped { named, reasons, count } = &self.dropped;
        let of = |count: usize, one: &str, several: &str| many(count as u64, one, several);
        if *count > named.len() && !self.debug {
            let reasons: Vec<String> = reasons.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
            self.printer.line(&format!(
                "dropped {} (--debug names them): {}",
                of(*count, "tag", "tags"),
                reasons.join("; ")
            ));
        } else {
            named.iter().for_each(|line| self.printer.line(line));
        }
        let mut summary = format!(
            "{} of {} in {}",
            self.kept,
            of(self.kept + count, "tag", "tags"),
            of(self.listed, "repository", "repositories")
        );
        if self.unlisted > 0 {
            summary.push_str(&format!("; {} could not be listed", of(self.unlisted, "repository", "repositories")));
        }
        self.printer.line(&summary);
    }
}

/// Prints retries and messages of requests.
struct Words(Printer);

impl Observer for Words {
    fn on(&self, event: &Event) {
        match event {
            Event::Retrying { error, wait, .. } => {
                self.0.line(&format!("{error}; trying again in {}", seconds(*wait)));
            }
            Event::Warning { message } | Event::RepeatedWarning { message, .. } => self.0.warning(message),
            Event::Notice { message } => self.0.line(message),
            _ => {}
        }
    }
}
