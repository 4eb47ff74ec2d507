//! `imgsync batch show`: a batch, its failures by error kind and registry, its workers and rate limits.

use imgsync_model::batch::{BatchId, BatchOptions, Priority};
use imgsync_oci::error::Result;
use imgsync_oci::humanize::{group_digits, pluralize};
use imgsync_registry::Client;
use imgsync_registry::credentials::CredentialEnvironment;
use imgsync_store::Store;
use serde_json::{Value, json};

use super::printer::Printer;
use super::settings::Settings;
use crate::batch_view::BatchView;
use crate::orchestrator::{WorkerCoverage, rate_limit_messages};
use crate::report::failure_groups::{FailureGroups, FailureRow};
use crate::report::{self, Report, ReportLevel, TextStyle};

const MAX_RUNNING_TASKS: usize = 50;
const MAX_REGISTRIES: usize = 10;
const MAX_RULES: usize = 10;
const FAILURE_PAGE_SIZE: usize = 1_000;

/// The batch as the command shows it.
pub(super) struct BatchDetails<'a> {
    store: &'a dyn Store,
    report: Report<'a>,
    groups: FailureGroups,
    /// Coverage by workers; none without a cluster.
    coverage: Option<WorkerCoverage>,
    rate_limit_messages: Vec<String>,
}

impl<'a> BatchDetails<'a> {
    /// Reads the batch from the store.
    pub(super) async fn read(
        store: &'a dyn Store,
        id: BatchId,
        is_cluster: bool,
        settings: &Settings,
    ) -> Result<BatchDetails<'a>> {
        let report = Report::load(store, id).await?;
        let groups = FailureGroups::read(store, id, report.unlisted.clone()).await?;
        let coverage = match is_cluster {
            true => Some(WorkerCoverage::load(store, &report.batch).await?),
            false => None,
        };
        let client = Client::new(settings.client()?, CredentialEnvironment::from_process());
        let rate_limit_messages = rate_limit_messages(store, &report.batch, &client).await?;
        Ok(BatchDetails { store, report, groups, coverage, rate_limit_messages })
    }

    /// Returns the batch as JSON, with its failure groups, and with every failure on request.
    pub(super) async fn to_json(&self, failures: bool) -> Result<Value> {
        let mut shown = view_to_json(&self.report.batch_view());
        shown["rate_limit_messages"] = json!(self.rate_limit_messages);
        shown["failed_by_kind"] = json!(self.groups.by_kind);
        shown["failed_by_registry"] = json!(self.groups.by_registry);
        shown["unlisted"] = json!(self.groups.unlisted);
        if let Some(coverage) = &self.coverage {
            shown["workers"] = json!(coverage.workers);
            shown["problems"] = json!(coverage.problems());
        }
        if failures {
            let mut rows = Vec::new();
            self.for_each_failure(|row| rows.push(row)).await?;
            shown["failures"] = json!(rows);
        }
        Ok(shown)
    }

    /// Prints the batch as text, starting with its failures by error kind and registry.
    pub(super) async fn print(&self, failures: bool, printer: &Printer) -> Result<()> {
        self.print_groups(printer);
        let mut text = Vec::new();
        report::write_text(&self.report, ReportLevel::Totals, TextStyle::Current, &mut text).await?;
        printer.text(String::from_utf8_lossy(&text).trim_end());
        self.print_rules(printer);
        if let Some(priority) = self.priority() {
            printer.text(&format!("Priority: {priority}"));
        }
        if failures && self.groups.failed > 0 {
            printer.text("Failed images:");
            self.for_each_failure(|row| _ = printer.text(&format!("  {}", row.to_text()))).await?;
        }
        for unlisted in &self.groups.unlisted {
            printer.text(&format!("Not listed: {}\n    {}: {}", unlisted.repository, unlisted.kind, unlisted.error));
        }
        for wait in &self.rate_limit_messages {
            printer.text(&format!("Rate limited: {wait}"));
        }
        if let Some(coverage) = &self.coverage {
            print_coverage(self.report.batch.id, coverage, printer);
        }
        Ok(())
    }

    /// Returns the priority of the batch, unless it is normal.
    fn priority(&self) -> Option<Priority> {
        let options = BatchOptions::decode(&self.report.batch.options, "a batch").ok()?;
        Some(options.priority()).filter(|priority| !priority.is_normal())
    }

    /// Returns the names of the rules.
    fn rules(&self) -> Vec<&str> {
        self.report.options.rules.iter().map(|rule| rule.name.as_str()).collect()
    }

    /// Prints the rules, unless the title of the report names them all.
    fn print_rules(&self, printer: &Printer) {
        let rules = self.rules();
        if rules.join(", ") == self.report.title {
            return;
        }
        let more = match rules.len().saturating_sub(MAX_RULES) {
            0 => String::new(),
            more => format!(" and {} more", group_digits(more as u64)),
        };
        if !rules.is_empty() {
            printer.text(&format!("All rules: {}{more}", rules[..rules.len().min(MAX_RULES)].join(", ")));
        }
    }

    fn print_groups(&self, printer: &Printer) {
        if self.groups.failed == 0 {
            return;
        }
        printer.text(&format!("{} failed:", pluralize(self.groups.failed, "image", "images")));
        for group in &self.groups.by_kind {
            printer.text(&format!("  {:>6}  {}: {}", group_digits(group.failed), group.kind, group.advice));
            printer.text(&format!("          such as {}", group.example.to_text().replace('\n', "\n          ")));
        }
        for group in self.groups.by_registry.iter().take(MAX_REGISTRIES) {
            printer.text(&format!("  {:>6}  registry {}", group_digits(group.failed), group.registry));
        }
        let more = self.groups.by_registry.len().saturating_sub(MAX_REGISTRIES);
        if more > 0 {
            printer.text(&format!("          and {}", pluralize(more as u64, "more registry", "more registries")));
        }
        let id = self.report.batch.id;
        printer.text(&format!(
            "`imgsync batch show {id} --failures` lists all; `imgsync batch requeue {id}` requeues them"
        ));
    }

    async fn for_each_failure(&self, mut with: impl FnMut(FailureRow)) -> Result<()> {
        let mut from = 0;
        loop {
            let page = self.store.failures(self.report.batch.id, from, FAILURE_PAGE_SIZE).await?;
            let Some(last) = page.last() else { return Ok(()) };
            from = last.task.index.saturating_add(1);
            page.iter().map(FailureRow::new).for_each(&mut with);
        }
    }
}

/// Prints the workers, their running tasks, and the problems that block the batch.
fn print_coverage(id: BatchId, coverage: &WorkerCoverage, printer: &Printer) {
    let slots: u32 = coverage.workers.iter().map(|worker| worker.slots).sum();
    let running: usize = coverage.workers.iter().map(|worker| worker.running.len()).sum();
    let (slots, workers) = (u64::from(slots), coverage.workers.len() as u64);
    printer.text(&format!(
        "Workers: {}, {} of {} busy",
        group_digits(workers),
        group_digits(running as u64),
        pluralize(slots, "slot", "slots")
    ));
    for (worker, source, target) in coverage.running_tasks(id).take(MAX_RUNNING_TASKS) {
        printer.text(&format!("  {worker}: {source} -> {target}"));
    }
    for problem in coverage.problems() {
        printer.text(&format!("Problem: {problem}"));
    }
}

pub(super) fn view_to_json(view: &BatchView) -> serde_json::Value {
    let batch = &view.batch;
    // A list shows what it can; commands on a single batch report options that cannot be decoded.
    let options = BatchOptions::decode(&batch.options, "a batch").unwrap_or_default();
    json!({
        "batch": batch.id,
        "state": view.state,
        "title": options.title,
        "rules": options.rules.iter().map(|rule| &rule.name).collect::<Vec<_>>(),
        "owner": view.owner,
        "resume": view.resume_command(),
        "priority": options.priority(),
        "counts": batch.counts,
        "bytes": batch.usage.bytes,
        "requests": batch.usage.requests,
        "started": batch.created_at.to_string(),
        "planned": batch.plan_completed_at.map(|time| time.to_string()),
        "ended": batch.ended_at.map(|time| time.to_string()),
        "run": batch.run,
        "supersedes": batch.supersedes,
    })
}
