//! `imgsync explain REF`: explains why a tag was or was not copied, from the rules, the digest cache and the newest
//! batches.

use std::path::PathBuf;

use clap::Args;
use imgsync_config::{Config, Rule, RuleSource};
use imgsync_image_names::Certainty;
use imgsync_model::batch::{BatchOptions, RepositoryLocator, TagLocator};
use imgsync_model::select::TagCandidate;
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::humanize::pluralize;
use imgsync_oci::{Digest, ParseReferenceError, Reference, RegistryName, RepositoryName, Tag};
use imgsync_registry::credentials::CredentialEnvironment;
use imgsync_registry::{Access, Client, Context, TrafficCounters};
use imgsync_store::{CacheScope, Store};
use jiff::Timestamp;

use super::backend;
use super::exit::{Exit, fail};
use super::global::GlobalArgs;
use super::printer::Printer;
use super::settings::Settings;
use crate::discovery::list_repository;
use crate::images::ImageSearch;
use crate::presets::source_selectors;

/// Limit of searched batches, newest first.
const MAX_BATCHES: usize = 5;
const TASK_PAGE_SIZE: usize = 5000;

/// Explains why a tag was or was not copied: which rules select it, its result in the newest batch that contains it,
/// and its entry in the digest cache.
#[derive(Debug, Args)]
pub(crate) struct ExplainArgs {
    /// Source or target tag: gcr.io/distroless/static:nonroot
    #[arg(value_name = "REF", value_parser = parse_reference)]
    pub(crate) reference: Reference,
    /// State folder [default: $XDG_STATE_HOME/imgsync, else ~/.local/state/imgsync]
    #[arg(long, value_name = "DIR")]
    pub(crate) state: Option<PathBuf>,
}

fn parse_reference(text: &str) -> std::result::Result<Reference, String> {
    if text.starts_with("oci:") {
        return Err("images in layouts cannot be explained: name the source or target in a registry".to_owned());
    }
    text.parse().map_err(|error: ParseReferenceError| error.to_string())
}

/// Runs the command.
pub(crate) async fn run(args: ExplainArgs, global: &GlobalArgs, printer: &Printer) -> Exit {
    let settings = match Settings::load(global, printer) {
        Ok(settings) => settings,
        Err(exit) => return exit,
    };
    match explain(&args, &settings, printer).await {
        Ok(true) => Exit::Done,
        Ok(false) => {
            printer.error(
                &format!("no rule or batch contains {}", args.reference),
                Some("if it is a target tag that was not written yet, explain its source tag"),
            );
            Exit::Failed
        }
        Err(error) => fail(&error, printer),
    }
}

async fn explain(args: &ExplainArgs, settings: &Settings, printer: &Printer) -> Result<bool> {
    // An image that a rule names by digest has a tag made of it.
    let pinned = args.reference.digest.as_ref().and_then(Digest::pinned_tag);
    let tag = pinned.or_else(|| args.reference.tag_or_latest()).ok_or_else(|| {
        Error::new(
            ErrorKind::Invalid,
            format!("explaining {}", args.reference),
            "expected a tag or a sha256, got another digest",
        )
    })?;
    let by_rules = explain_rules(&args.reference, &tag, settings, printer).await?;
    let store = backend::open_store(settings, args.state.as_ref()).await?;
    let by_batches = explain_batches(&args.reference, &tag, &*store, printer).await?;
    if by_rules || by_batches {
        return Ok(true);
    }
    match with_library(&args.reference) {
        Some(other) => explain_batches(&other, &tag, &*store, printer).await,
        None => Ok(false),
    }
}

/// Returns the target of an official image of Docker Hub if its `library/` was left out, as in `docker pull redis`:
/// `naming: keep` writes to mirror/library/redis.
fn with_library(reference: &Reference) -> Option<Reference> {
    let path = reference.repository.as_str();
    if path.split('/').any(|part| part == "library") {
        return None;
    }
    let (above, name) =
        path.rsplit_once('/').map_or((String::new(), path), |(above, name)| (format!("{above}/"), name));
    let repository = format!("{above}library/{name}").parse().ok()?;
    Some(Reference { repository, ..reference.clone() })
}

/// Prints how each rule that reads the repository selects the tag.
async fn explain_rules(reference: &Reference, tag: &Tag, settings: &Settings, printer: &Printer) -> Result<bool> {
    let mut found = false;
    let Config { rules, .. } = &settings.config;
    for (number, rule) in rules.iter().enumerate() {
        // Files that cannot be read do not hide what other rules do.
        let named = explain_named(rule, reference, tag, settings).unwrap_or_else(|error| {
            printer.warning(&error.to_string());
            None
        });
        if let Some(named) = named {
            found = true;
            let name = rule.name.as_ref().map(|name| format!(" {name}")).unwrap_or_default();
            printer.text(&format!("rule {}{name} (line {}, {}): {named}", number + 1, rule.line, rule.source));
        }
        for part in source_selectors(&rule.source)? {
            if !part.reads(&reference.registry, &reference.repository) {
                continue;
            }
            found = true;
            let from = match &rule.source {
                RuleSource::Preset(preset) => format!("preset {preset}"),
                _ => format!("from {}", part.pattern),
            };
            let name = rule.name.as_ref().map(|name| format!(" {name}")).unwrap_or_default();
            let label = format!("rule {}{name} (line {}, {from})", number + 1, rule.line);
            let client = Client::new(settings.client()?, CredentialEnvironment::from_process());
            let (context, counters) = (Context::default(), TrafficCounters::new());
            let repository =
                client.repository(&reference.registry, &reference.repository, Access::Pull, &context, &counters)?;
            let listing = list_repository(&repository).await?;
            if listing.get(tag.as_str()).is_none() {
                printer.text(&format!("{label}: the source does not list the tag {tag}"));
                continue;
            }
            if let Some(error) = listing.missing_dates_error(&rule.selection) {
                printer.text(&format!("{label}: not copied: {error}"));
                continue;
            }
            let candidates =
                listing.tags.iter().map(|listed| TagCandidate { tag: listed.tag.clone(), created: listed.created });
            let evaluation = part.evaluate(&rule.selection, candidates, Timestamp::now());
            if let Some(min) = evaluation.below_min {
                printer.text(&format!(
                    "{label}: not copied: only {} left, and `min` is {min}",
                    pluralize(evaluation.kept.len() as u64, "tag is", "tags are")
                ));
            } else if let Some((_, reason)) = evaluation.dropped.iter().find(|(dropped, _)| dropped.tag == tag.as_str())
            {
                printer.text(&format!("{label}: not copied: {reason}"));
            } else {
                let condition = match rule.policy {
                    Some(_) => ", if its `policy` allows the image: `imgsync run --dry-run` checks that",
                    None => "",
                };
                printer.text(&format!("{label}: selected{condition}"));
            }
        }
    }
    Ok(found)
}

/// Explains whether a rule that names each image names this one; `None` if it does not name the repository.
fn explain_named(rule: &Rule, reference: &Reference, tag: &Tag, settings: &Settings) -> Result<Option<String>> {
    let condition = if rule.policy.is_some() { ", if its `policy` allows the image" } else { "" };
    let is_same = |registry: &RegistryName, repository: &RepositoryName| {
        *registry == reference.registry && *repository == reference.repository
    };
    match &rule.source {
        RuleSource::Digests(source) if is_same(&source.registry, &source.repository) => {
            let is_named = source.digests.iter().any(|digest| digest.pinned_tag().as_ref() == Some(tag));
            Ok(Some(match is_named {
                true => format!("selected, by its digest{condition}"),
                false => format!("not copied: {tag} is none of its digests"),
            }))
        }
        RuleSource::Images(paths) => {
            let mut search = ImageSearch::default();
            paths.iter().try_for_each(|path| search.add_path(&settings.folder().join(path)))?;
            let mut others = 0;
            for (image, listed) in search.images.iter(Certainty::Sure) {
                if !is_same(&image.registry, &image.repository) {
                    continue;
                }
                let image_tag = image.digest.as_ref().map_or_else(|| image.tag_or_latest(), Digest::pinned_tag);
                if image_tag.as_ref() == Some(tag) {
                    let place = listed.places.first().map(|(_, place)| place.to_string()).unwrap_or_default();
                    return Ok(Some(format!("selected, named at {place}{condition}")));
                }
                others += 1;
            }
            let images = pluralize(others, "other image", "other images");
            Ok((others > 0).then(|| format!("not copied: its files name {images} of this repository, not {tag}")))
        }
        _ => Ok(None),
    }
}

/// Prints the tag's results in the newest batches, as a source or as a target.
async fn explain_batches(reference: &Reference, tag: &Tag, store: &dyn Store, printer: &Printer) -> Result<bool> {
    let home = RepositoryLocator::in_registry(reference.registry.clone(), &reference.repository);
    let is_it = |label: &TagLocator| *label.repository == home && label.tag == *tag;
    let mut found = false;
    for batch in store.batches(MAX_BATCHES).await? {
        let started = batch.created_at.strftime("%Y-%m-%d %H:%M:%S UTC").to_string();
        let name = format!("{home}:{tag}");
        for line in
            store.prune_records(batch.id).await?.iter().filter(|line| line.target == name || line.source == name)
        {
            found = true;
            let why = if line.reason.is_empty() { String::new() } else { format!(": {}", line.reason) };
            printer.text(&format!(
                "batch {} of {started}: {} is gone at the source, {} {}{why}",
                batch.id,
                line.source,
                line.target,
                line.outcome.as_str()
            ));
        }
        let mut from = 0;
        loop {
            let rows = store.tasks(batch.id, None, from, TASK_PAGE_SIZE).await?;
            let Some(last) = rows.last() else { break };
            from = last.task.index + 1;
            for row in rows {
                let planned = &row.task.spec;
                if !is_it(&planned.source) && !is_it(&planned.target) {
                    continue;
                }
                found = true;
                let state = row.state.as_str();
                printer.text(&format!(
                    "batch {} of {started}: {} -> {}: {state}",
                    batch.id, planned.source, planned.target
                ));
                let failures = store.failures(batch.id, row.task.index, 1).await?;
                if let Some(failed) = failures.iter().find(|failed| failed.task.index == row.task.index) {
                    printer.text(&format!("  {}: {}", failed.failure.kind, failed.failure.error));
                }
                let options = BatchOptions::decode(&batch.options, &format!("batch {}", batch.id))?;
                let rule = options.rule(planned.rule)?;
                let scope =
                    CacheScope { repository: (*planned.target.repository).clone(), options: rule.fingerprint().into() };
                let known = store.cached_tags(&scope, std::slice::from_ref(&planned.target.tag)).await?;
                if let Some(known) = known.into_iter().next().flatten() {
                    printer.text(&format!(
                        "  digest cache: source {}, seen at the target {}",
                        known.source,
                        known.seen_at.strftime("%Y-%m-%d %H:%M:%S UTC")
                    ));
                }
            }
        }
        if found {
            break;
        }
    }
    Ok(found)
}
