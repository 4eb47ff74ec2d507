//! `imgsync tags`: previews what a rule would select.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{Args, ValueEnum};
use imgsync_config::{Preset, RuleSource};
use imgsync_layout::ArchiveRef;
use imgsync_model::select::{
    Newest, NewestBy, RepositoryPattern, RepositoryPatternError, Since, TagCandidate, TagPattern, TagSelection,
    VersionRange,
};
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::humanize::{group_digits, pluralize};
use imgsync_oci::retry::format_duration;
use imgsync_oci::sanitize::sanitize;
use imgsync_oci::{ArchiveFormat, Digest, RegistryName, RepositoryName, strip_transport};
use imgsync_registry::credentials::CredentialEnvironment;
use imgsync_registry::event::{Event, Events, Observer};
use imgsync_registry::{Client, Context, TrafficCounters};
use jiff::Timestamp;
use serde::Serialize;

use super::exit::{self, Exit};
use super::global::GlobalArgs;
use super::presets::parse_preset;
use super::printer::Printer;
use super::retry_args::RetryArgs;
use super::settings::Settings;
use super::signals;
use super::stdin_archive::{StdinOptions, finish_stdin, open_stdin_archive, pipe_timeouts};
use crate::discovery::{DiscoveryItem, DiscoveryOptions, RepositoryListing, RepositoryOrder};
use crate::orchestrator::{Listings, RuleListing};
use crate::presets::SourceSelector;

/// Repositories and tag filters.
#[derive(Debug, Args)]
pub(crate) struct TagsArgs {
    /// Repository pattern: gcr.io/distroless/static, gcr.io/distroless/* (one level), gcr.io/istio-release/** (all
    /// levels), oci:DIR, oci-archive:FILE or docker-archive:FILE (- is stdin)
    #[arg(value_name = "PATTERN", value_parser = parse_pattern, required_unless_present = "preset")]
    pub(crate) pattern: Option<RuleSource>,
    /// List the tags of a preset instead of a pattern: kubeadm, "kubeadm >=1.30"
    #[arg(long, value_name = "PRESET", value_parser = parse_preset, conflicts_with = "pattern")]
    pub(crate) preset: Option<Preset>,
    /// Only tags that match one of these: globs (1.*), or regular expressions between slashes (/v\d+/)
    #[arg(long, value_name = "GLOB")]
    pub(crate) include: Vec<TagPattern>,
    /// Exclude tags that match one of these
    #[arg(long, value_name = "GLOB")]
    pub(crate) exclude: Vec<TagPattern>,
    /// Only versions in this range, such as ">=1.20, <2"
    #[arg(long, value_name = "RANGE")]
    pub(crate) semver: Option<VersionRange>,
    /// Only the newest N tags of each repository (with --newest-by version: of each variant)
    #[arg(long, value_name = "N", value_parser = parse_count)]
    pub(crate) newest: Option<usize>,
    /// Order for --newest
    #[arg(long, value_name = "WHAT", default_value = "version", requires = "newest")]
    pub(crate) newest_by: NewestByArg,
    /// Only tags created since a date (2025-01-01), a timestamp or a duration ago (90d); needs a registry that lists
    /// dates
    #[arg(long, value_name = "WHEN", value_parser = |text: &str| text.parse::<Since>())]
    pub(crate) since: Option<Since>,
    /// Save an archive from stdin to a temporary file in this folder first: for those whose index comes last
    #[arg(long, value_name = "DIR", hide_short_help = true)]
    pub(crate) spool: Option<PathBuf>,
    /// Print each tag as a JSON object, with digest and date if the registry lists them
    #[arg(long)]
    pub(crate) json: bool,
    /// Number of repositories to list concurrently
    #[arg(long, value_name = "N", default_value = "20", value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub(crate) query_limit: u16,
    #[command(flatten)]
    pub(crate) retry: RetryArgs,
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

/// Name of stdin as the file of an archive.
const STDIN: &str = "-";

fn parse_pattern(text: &str) -> std::result::Result<RuleSource, String> {
    if let Some(folder) = text.strip_prefix("oci:") {
        let absolute = std::path::absolute(folder).map_err(|error| format!("not a folder: {error}"))?;
        return Ok(RuleSource::Layout(absolute));
    }
    if let Some((format, file)) = ArchiveFormat::split_scheme(text) {
        if file == STDIN {
            return Ok(RuleSource::Archive(format, PathBuf::from(file)));
        }
        let absolute = std::path::absolute(file).map_err(|error| format!("not a file: {error}"))?;
        return Ok(RuleSource::Archive(format, absolute));
    }
    let pattern: std::result::Result<RepositoryPattern, _> = strip_transport(text).parse();
    pattern.map(RuleSource::Repositories).map_err(|error: RepositoryPatternError| match &error.hint {
        // The hint is about rules.
        Some(hint) if hint.contains("tags:") => format!("{error} (choose tags with --include)"),
        Some(hint) => format!("{error} ({hint})"),
        None => error.to_string(),
    })
}

fn parse_count(text: &str) -> std::result::Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("must be at least 1".to_owned()),
        Ok(count) => Ok(count),
        Err(_) => Err("expected a number, such as 10".to_owned()),
    }
}

/// More dropped tags are counted instead of named.
const MAX_NAMED_TAGS: usize = 20;

/// A line of `--json`.
#[derive(Debug, Serialize)]
struct TagOutput<'a> {
    registry: &'a RegistryName,
    repository: &'a RepositoryName,
    tag: &'a str,
    /// `null` if the registry does not list it.
    digest: Option<&'a Digest>,
    created: Option<String>,
    media_type: Option<&'a str>,
}

/// Runs the command.
pub(crate) async fn run(args: TagsArgs, global: &GlobalArgs, printer: &Printer) -> Exit {
    let settings = match Settings::load(global, printer) {
        Ok(settings) => settings,
        Err(exit) => return exit,
    };
    match execute(&args, &settings, global.debug, printer).await {
        Ok(exit) => exit,
        Err(error) => {
            printer.failure(&error);
            exit::for_error(&error)
        }
    }
}

async fn execute(args: &TagsArgs, settings: &Settings, debug: bool, printer: &Printer) -> Result<Exit> {
    let selection = build_selection(args)?;
    let mut client = settings.client()?;
    args.retry.apply(&mut client);
    let timeouts = pipe_timeouts(None, client.stall_timeout);
    let client = Client::new(client, CredentialEnvironment::from_process());
    let context = Context { events: Events::new(Arc::new(RequestEventPrinter(printer.clone()))), ..Context::default() };
    signals::cancel_on_signal(context.cancel.clone(), printer.clone());

    let counters = TrafficCounters::new();
    let options = DiscoveryOptions { query_limit: args.query_limit.into(), order: RepositoryOrder::ByName };
    let Some(source) = args.preset.clone().map(RuleSource::Preset).or_else(|| args.pattern.clone()) else {
        return Err(Error::new(ErrorKind::Invalid, "listing tags", "pass a pattern or --preset"));
    };
    let stdin = match &source {
        RuleSource::Archive(format, file) if file == Path::new(STDIN) => {
            let archive = ArchiveRef { format: *format, file: file.clone(), image: None };
            let options = StdinOptions { spool: args.spool.as_deref(), timeouts };
            Some(open_stdin_archive(&archive, options, &context.cancel).await?)
        }
        _ => None,
    };
    let mut listings = match &stdin {
        Some(layout) => Listings::of_layout(layout.clone(), &context),
        None => Listings::new(&source, settings.folder(), &client, options, &context, &counters)?,
    };
    let mut output =
        TagPrinter { args, debug, printer, dropped: DroppedTags::default(), kept: 0, listed: 0, unlisted: 0 };
    let now = Timestamp::now();
    while let Some(RuleListing { item, selector }) = listings.next().await? {
        match item {
            DiscoveryItem::Listed(listing) => {
                if let Some(error) = listing.missing_dates_error(&selection) {
                    output.unlisted += 1;
                    printer.failure(&error);
                    continue;
                }
                let selector = selector.as_deref();
                if !output.print_repository(selector, &selection, &listing, now) {
                    // The reader has closed the pipe: `| head`.
                    return Ok(Exit::Done);
                }
            }
            DiscoveryItem::Failed(unlisted) => {
                output.unlisted += 1;
                printer.failure(&unlisted.error);
            }
        }
    }
    finish_stdin(stdin.as_ref()).await?;
    output.print_summary();
    tracing::info!(traffic = ?counters.snapshot(), "done");
    Ok(if output.unlisted > 0 { Exit::Failed } else { Exit::Done })
}

/// Builds the selection of a rule's `tags` from the flags.
fn build_selection(args: &TagsArgs) -> Result<TagSelection> {
    let selection = TagSelection {
        include: args.include.clone(),
        exclude: args.exclude.clone(),
        range: args.semver.clone(),
        since: args.since,
        newest: args.newest.map(|count| Newest { count, by: args.newest_by.into() }),
        min: None,
    };
    match selection.contradictions().first() {
        Some(contradiction) => Err(Error::new(ErrorKind::Invalid, "choosing tags", contradiction.to_string())),
        None => Ok(selection),
    }
}

/// Prints tags, and collects the summary.
struct TagPrinter<'a> {
    args: &'a TagsArgs,
    debug: bool,
    printer: &'a Printer,
    dropped: DroppedTags,
    kept: usize,
    listed: usize,
    unlisted: usize,
}

/// Dropped tags: the first few by name, all by reason.
#[derive(Default)]
struct DroppedTags {
    named: Vec<String>,
    reasons: BTreeMap<String, usize>,
    count: usize,
}

impl TagPrinter<'_> {
    /// Prints the tags of a repository. Returns false if the output is closed.
    fn print_repository(
        &mut self,
        part: Option<&SourceSelector>,
        selection: &TagSelection,
        listing: &RepositoryListing,
        now: Timestamp,
    ) -> bool {
        self.listed += 1;
        let candidates =
            listing.tags.iter().map(|listed| TagCandidate { tag: listed.tag.clone(), created: listed.created });
        let evaluation = match part {
            Some(part) => part.evaluate(selection, candidates, now),
            None => selection.evaluate(candidates, now),
        };
        for (candidate, reason) in &evaluation.dropped {
            let name = format!("{}/{}:{}", listing.registry, listing.repository, candidate.tag);
            let line = format!("dropped {}: {reason}", sanitize(&name));
            self.dropped.count += 1;
            *self.dropped.reasons.entry(reason.summary()).or_default() += 1;
            if self.debug {
                self.printer.line(&line);
            } else if self.dropped.named.len() < MAX_NAMED_TAGS {
                self.dropped.named.push(line);
            }
        }
        self.kept += evaluation.kept.len();
        evaluation.kept.iter().all(|candidate| self.printer.data(&self.format_tag(listing, &candidate.tag)))
    }

    fn format_tag(&self, listing: &RepositoryListing, tag: &str) -> String {
        if !self.args.json {
            return match &self.args.pattern {
                Some(RuleSource::Repositories(pattern)) if pattern.repository().is_some() => tag.to_owned(),
                _ => format!("{}/{}:{tag}", listing.registry, listing.repository),
            };
        }
        let listed = listing.get(tag);
        let line = TagOutput {
            registry: &listing.registry,
            repository: &listing.repository,
            tag,
            digest: listed.and_then(|listed| listed.digest.as_ref()),
            created: listed.and_then(|listed| listed.created).map(|created| created.to_string()),
            media_type: listed.and_then(|listed| listed.media_type.as_ref()).map(|kind| kind.as_str()),
        };
        serde_json::to_string(&line).unwrap_or_else(|error| format!("{{\"error\":\"{error}\"}}"))
    }

    fn print_summary(&self) {
        let DroppedTags { named, reasons, count } = &self.dropped;
        let of = |count: usize, one: &str, several: &str| pluralize(count as u64, one, several);
        if *count > named.len() && !self.debug {
            let reasons: Vec<String> =
                reasons.iter().map(|(reason, count)| format!("{} {reason}", group_digits(*count as u64))).collect();
            self.printer.line(&format!(
                "dropped {} (--debug lists them): {}",
                of(*count, "tag", "tags"),
                reasons.join("; ")
            ));
        } else {
            named.iter().for_each(|line| self.printer.line(line));
        }
        let listed = format!(
            "{} of {} in {}",
            group_digits(self.kept as u64),
            of(self.kept + count, "tag", "tags"),
            of(self.listed, "repository", "repositories")
        );
        let unlisted = format!("{} could not be listed", of(self.unlisted, "repository", "repositories"));
        self.printer.line(&match (self.listed, self.unlisted) {
            (_, 0) => listed,
            (0, _) => format!("{unlisted}, and there is nothing else"),
            _ => format!("{listed}; {unlisted}"),
        });
        let include = &self.args.include;
        if self.kept == 0
            && *count > 0
            && let Some(literal) = include.first().and_then(TagPattern::literal)
            && include.iter().all(|pattern| pattern.literal().is_some())
        {
            self.printer.line(&format!(
                "hint: a pattern matches the whole tag: --include '*{literal}*' selects the tags that contain it"
            ));
        }
    }
}

/// Prints retries and messages of requests.
struct RequestEventPrinter(Printer);

impl Observer for RequestEventPrinter {
    fn on_event(&self, event: &Event) {
        match event {
            Event::Retrying { error, wait, .. } => {
                self.0.line(&format!("{error}; retrying in {}", format_duration(*wait)));
            }
            Event::Warning { message } | Event::RepeatedWarning { message, .. } => self.0.warning(message),
            Event::Notice { message } => self.0.line(message),
            _ => {}
        }
    }
}
