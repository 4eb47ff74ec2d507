//! Finds rules whose images are named in files that have changed.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;
use std::time::Instant;

use imgsync_config::RuleSource;
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_store::{LastRun, is_in_future};
use jiff::Timestamp;

use super::active_config::{ActiveConfig, ActiveRule};
use crate::images::FileVersions;

/// The pause between two checks is this many times as long as a check, however many files there are.
const MIN_PAUSE_FACTOR: u32 = 20;

/// What is known of the files of rules. Of this process, and for as long as it leads.
#[derive(Debug, Default)]
pub(super) struct ImageFiles {
    /// By rule.
    known: HashMap<String, KnownFiles>,
    next_check: Option<Instant>,
}

#[derive(Debug)]
struct KnownFiles {
    /// Version that the newest run has read; `None` if a run is due.
    started: Option<FileVersions>,
    /// Version at the last check: a file that is being written changes from one check to the next.
    seen: FileVersions,
}

impl ImageFiles {
    /// Forgets everything: another process may have started rules since.
    pub(super) fn forget(&mut self) {
        *self = ImageFiles::default();
    }

    /// Whether the next check includes a rule that was never checked, so that its last run decides what is new.
    pub(super) fn has_new_rules(&self, current: &ActiveConfig) -> bool {
        if self.is_paused() {
            return false;
        }
        current.rules.iter().filter_map(|rule| files(rule, current)).any(|(rule, _)| !self.known.contains_key(&rule.id))
    }

    /// Returns the ids of the rules with a schedule whose files have changed since their last start, once two checks have
    /// found the same.
    pub(super) async fn find_changed(
        &mut self,
        current: &ActiveConfig,
        last_runs: &BTreeMap<String, LastRun>,
    ) -> Result<Vec<(String, FileVersions)>> {
        let rules: Vec<_> = current.rules.iter().filter_map(|rule| files(rule, current)).collect();
        let ids: HashSet<&str> = rules.iter().map(|(rule, _)| rule.id.as_str()).collect();
        self.known.retain(|id, _| ids.contains(id.as_str()));
        if rules.is_empty() || self.is_paused() {
            return Ok(Vec::new());
        }
        let paths: Vec<Vec<PathBuf>> = rules.iter().map(|(_, paths)| paths.clone()).collect();
        let started_at = Instant::now();
        let read =
            move || -> Vec<Option<FileVersions>> { paths.iter().map(|paths| FileVersions::read(paths)).collect() };
        let versions = tokio::task::spawn_blocking(read)
            .await
            .map_err(|error| Error::new(ErrorKind::Local, "looking for changed files", error.to_string()))?;
        self.next_check = Some(Instant::now() + started_at.elapsed().saturating_mul(MIN_PAUSE_FACTOR));
        let mut changed = Vec::new();
        for ((rule, _), found) in rules.into_iter().zip(versions) {
            // A file that is missing is being replaced.
            let Some(found) = found else { continue };
            let Some(known) = self.known.get_mut(&rule.id) else {
                let is_new = is_changed_since(found, last_runs.get(&rule.id));
                self.known.insert(rule.id.clone(), KnownFiles { started: (!is_new).then_some(found), seen: found });
                continue;
            };
            if known.seen != found {
                known.seen = found;
            } else if known.started != Some(found) {
                changed.push((rule.id.clone(), found));
            }
        }
        Ok(changed)
    }

    /// Whether the next check is not due yet.
    fn is_paused(&self) -> bool {
        self.next_check.is_some_and(|time| time > Instant::now())
    }

    /// Records that a rule was started, and reads this version of its files.
    pub(super) fn record_start(&mut self, rule: &str, version: FileVersions) {
        if let Some(known) = self.known.get_mut(rule) {
            known.started = Some(version);
        }
    }
}

/// Whether files were changed after a run, while no process led. Times in the future say nothing.
fn is_changed_since(found: FileVersions, last_run: Option<&LastRun>) -> bool {
    let is_later = |(changed, run): (Timestamp, &LastRun)| changed > run.at && !is_in_future(changed, Timestamp::now());
    found.changed_at.zip(last_run).is_some_and(is_later)
}

/// Returns the files that name the images of a rule with a schedule.
fn files<'a>(rule: &'a ActiveRule, current: &ActiveConfig) -> Option<(&'a ActiveRule, Vec<PathBuf>)> {
    rule.schedule.as_ref()?;
    match &rule.config().rules.first()?.source {
        RuleSource::Images(paths) => Some((rule, paths.iter().map(|path| current.folder.join(path)).collect())),
        _ => None,
    }
}
