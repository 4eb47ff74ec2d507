//! Settings of an entry of `sync`, or of `defaults` where the entry has none.

use std::time::Duration;

use imgsync_config::YamlText;
use imgsync_model::batch::Referrers;
use imgsync_model::naming::BackupTagTemplate;
use imgsync_model::schedule::CronPattern;
use jiff::tz::TimeZone;
use serde_json::{Map, Value};

use super::super::draft::{ConfigDraft, DraftReferrers, DraftRule, DraftSchedule};
use super::super::{as_text, as_texts, is_true};
use super::actions::replace_actions;

/// Media types of images, which regsync copies by default and imgsync always.
const IMAGE_TYPES: [&str; 4] = [
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.index.v1+json",
];
/// Minimum interval of a schedule.
const MIN_INTERVAL: Duration = Duration::from_secs(5);

/// An entry and the defaults.
pub(super) struct EntrySettings<'a> {
    pub(super) entry: &'a Map<String, Value>,
    pub(super) defaults: &'a Map<String, Value>,
    /// Line and source, for notes.
    pub(super) location: &'a str,
}

impl<'a> EntrySettings<'a> {
    fn get(&self, key: &str) -> Option<&'a Value> {
        let value = |map: &'a Map<String, Value>| map.get(key).filter(|value| !value.is_null());
        value(self.entry).or_else(|| value(self.defaults))
    }

    fn text(&self, key: &str) -> Option<&'a str> {
        as_text(self.get(key))
    }

    /// Returns `ratelimit.min`, the remaining pull quota to keep. Zero keeps none.
    pub(super) fn pull_reserve(&self, draft: &mut ConfigDraft) -> Option<&'a str> {
        let limit = self.get("ratelimit")?;
        if !limit.is_object() {
            self.note(draft, "`ratelimit` was not imported: it is not a mapping");
        }
        let written = limit.get("min").filter(|written| !written.is_null())?;
        match as_text(Some(written)).map(|text| (text, text.parse::<u64>())) {
            Some((_, Ok(0))) => None,
            Some((text, Ok(_))) => Some(text),
            _ => {
                self.note(draft, "`ratelimit: min` was not imported: it is not a number of pulls");
                None
            }
        }
    }

    /// Converts what does not depend on the type of the entry.
    pub(super) fn read_rule(&self, draft: &mut ConfigDraft) -> DraftRule {
        let mut rule = DraftRule { copy_foreign_layers: is_true(self.get("includeExternal")), ..DraftRule::default() };
        self.read_platforms(&mut rule, draft);
        self.read_backup(&mut rule, draft);
        self.read_referrers(&mut rule, draft);
        rule.schedule = self.read_schedule(draft);
        let media_types = as_texts(self.get("mediaTypes"));
        if !media_types.is_empty() && IMAGE_TYPES.iter().any(|kind| !media_types.contains(kind)) {
            self.omit(draft, "`mediaTypes` has no equivalent: images of all media types are copied");
        }
        if is_true(self.get("forceRecursive")) {
            self.note(draft, "`forceRecursive` is an option of one run here: `imgsync run --force`");
        }
        if self.get("ratelimit").is_some_and(|limit| limit.get("retry").is_some()) {
            self.note(draft, "`ratelimit: retry` has no equivalent: a registry's own times are kept");
        }
        for key in ["hooks", "fastCopy"] {
            if self.get(key).is_some() {
                self.note(draft, format!("`{key}` has no equivalent"));
            }
        }
        rule
    }

    fn note(&self, draft: &mut ConfigDraft, note: impl std::fmt::Display) {
        draft.add_note(format!("{}: {note}", self.location));
    }

    fn omit(&self, draft: &mut ConfigDraft, what: impl std::fmt::Display) {
        draft.record_omission(format!("{}: {what}", self.location));
    }

    fn read_platforms(&self, rule: &mut DraftRule, draft: &mut ConfigDraft) {
        if let Some(platform) = as_text(self.entry.get("platform")) {
            rule.platforms = vec![platform.to_owned()];
            self.omit(
                draft,
                "a single `platform` produces an index with that platform here, and in regsync the image alone, with \
                 another digest",
            );
            return;
        }
        let platforms = self.entry.get("platforms");
        rule.platforms = as_texts(platforms).into_iter().map(str::to_owned).collect();
        // regsync leaves the index as it is.
        rule.sparse = !rule.platforms.is_empty();
        if platforms.and_then(Value::as_array).is_some_and(|list| list.len() != rule.platforms.len()) {
            self.omit(draft, "`platforms` has an entry that is no platform");
        }
    }

    fn read_backup(&self, rule: &mut DraftRule, draft: &mut ConfigDraft) {
        let Some(backup) = self.text("backup") else { return };
        match convert_backup_template(backup) {
            Ok(template) => {
                if template.contains("{{date") || template.contains("{{time") {
                    draft.add_note("dates of `backup` are in UTC here, in regsync in the time zone of its machine");
                }
                rule.backup = Some(template);
            }
            Err(why) => self.omit(draft, format!("`backup: {backup}` has no equivalent: {why}")),
        }
    }

    fn read_referrers(&self, rule: &mut DraftRule, draft: &mut ConfigDraft) {
        let (default, wanted) = (is_true(self.defaults.get("referrers")), is_true(self.get("referrers")));
        let digest_tags = is_true(self.get("digestTags"));
        rule.referrers = match wanted == default {
            true => DraftReferrers::Default,
            false => DraftReferrers::All(wanted),
        };
        match (wanted, digest_tags) {
            (true, false) => {
                self.omit(
                    draft,
                    "digest tags (`digestTags`) are copied with other referrers here, not left at the source",
                );
            }
            (false, true) => {
                rule.referrers = DraftReferrers::All(true);
                self.omit(draft, "referrers (`referrers`) are copied with digest tags here, not left at the source");
            }
            (true, true) | (false, false) => {}
        }
        if !wanted {
            return;
        }
        let filters = self.get("referrerFilters").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let mut types = Vec::new();
        for filter in filters {
            match as_text(filter.get("artifactType")) {
                Some(kind) if filter.get("annotations").is_none() && Referrers::check_type(kind).is_ok() => {
                    types.push(kind.to_owned());
                }
                _ => {
                    self.omit(draft, "a filter of `referrerFilters` is not by `artifactType` alone: all are copied");
                    types.clear();
                    break;
                }
            }
        }
        if !types.is_empty() {
            rule.referrers = DraftReferrers::Types(types);
        }
        for key in ["referrerSource", "referrerTarget"] {
            if self.get(key).is_some() {
                self.omit(draft, format!("`{key}`: referrers are copied from and to the image's repository here"));
            }
        }
    }

    /// Converts the schedule; without one of the entry's own, `schedule` of the defaults comes before `interval`.
    fn read_schedule(&self, draft: &mut ConfigDraft) -> Option<DraftSchedule> {
        let (schedule, interval) = (self.text("schedule"), self.text("interval").filter(|interval| *interval != "0"));
        let every = schedule.map_or(interval, |schedule| schedule.strip_prefix("@every "));
        let converted = match (every, schedule) {
            (Some(every), _) => is_interval(every.trim())
                .then(|| DraftSchedule::Every { every: YamlText::new(every.trim()) })
                .ok_or_else(|| format!("`{every}` is not an interval such as 90s or 1h30m, from five seconds on")),
            (None, Some(cron)) => {
                let converted = convert_cron(cron);
                if matches!(converted, Ok(DraftSchedule::Cron(_))) {
                    draft.add_note(
                        "cron expressions are in UTC here, in regsync in the time zone of its machine: if that is \
                         another, write `schedule: {cron: …, zone: Europe/Berlin}`",
                    );
                }
                converted
            }
            (None, None) => return None,
        };
        match converted {
            Ok(schedule) => {
                draft.add_note("`imgsync serve` runs rules by their schedules, `imgsync run` at once");
                Some(schedule)
            }
            Err(why) => {
                self.note(draft, format!("the schedule has no equivalent: {why}"));
                None
            }
        }
    }
}

/// Whether a text is an interval that a schedule can have.
fn is_interval(text: &str) -> bool {
    let interval = text.parse::<jiff::SignedDuration>().ok();
    interval.and_then(|interval| Duration::try_from(interval).ok()).is_some_and(|interval| interval >= MIN_INTERVAL)
}

/// Converts a cron expression, which can begin with `CRON_TZ=ZONE`.
fn convert_cron(written: &str) -> Result<DraftSchedule, String> {
    let zone = written.strip_prefix("CRON_TZ=").or_else(|| written.strip_prefix("TZ="));
    let (zone, cron) = match zone.and_then(|rest| rest.split_once(' ')) {
        Some((zone, cron)) => (Some(zone), cron.trim()),
        None => (None, written),
    };
    cron.parse::<CronPattern>().map_err(|error| error.to_string())?;
    match zone {
        None => Ok(DraftSchedule::Cron(YamlText::new(cron))),
        Some(zone) if TimeZone::get(zone).is_ok() => {
            Ok(DraftSchedule::Zoned { cron: YamlText::new(cron), zone: YamlText::new(zone) })
        }
        Some(zone) => Err(format!("unknown time zone `{zone}`")),
    }
}

/// Converts a template of a backup tag.
fn convert_backup_template(written: &str) -> Result<String, String> {
    let text = replace_actions(written, |action| {
        let layout = action.strip_prefix("time.Now.Format").map(|layout| layout.trim().trim_matches(['"', '`', '\'']));
        Some(match (action, layout) {
            (".Ref.Tag", _) => "{{tag}}",
            (_, Some("2006-01-02")) => "{{date}}",
            (_, Some("20060102")) => "{{date | replace('-', '')}}",
            (_, Some("150405")) => "{{time}}",
            (_, Some("20060102150405")) => "{{date | replace('-', '')}}{{time}}",
            (_, Some("20060102-150405")) => "{{date | replace('-', '')}}-{{time}}",
            _ => return None,
        })
    })?;
    text.parse::<BackupTagTemplate>().map(|name| name.to_string())
}
