//! `imgsync config`: checks and shows a configuration without running it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use imgsync_config::{Config, RuleSource};
use imgsync_oci::error::Error;
use imgsync_oci::humanize::pluralize;

use super::exit::{Exit, fail};
use super::global::GlobalArgs;
use super::import;
use super::import::ImportArgs;
use super::notify::NotifyArgs;
use super::printer::Printer;
use super::settings::Settings;
use crate::notify::{Notifier, TestedTarget};
use crate::report::{ReportFormat, ReportTemplate};
use clap::Subcommand;

/// Checks, shows, tests and imports configurations: the file of `-c`, else ./imgsync.yaml.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum ConfigAction {
    /// Print every error with its position; the exit code is 2 if there is one
    #[command(alias = "validate")]
    Check {
        /// Configuration to check, as after -c
        #[arg(value_name = "FILE")]
        file: Option<PathBuf>,
    },
    /// Print the configuration with defaults filled in and secrets masked
    Show {
        /// Configuration to show, as after -c
        #[arg(value_name = "FILE")]
        file: Option<PathBuf>,
    },
    /// Send a test message to the notification targets
    ///
    /// Prints for each target whether the message was sent; the exit code is 1 if one was not. Whatever `on` says,
    /// and without retries. Pings are requested only with `--only ping`: each counts as a successful batch.
    TestNotify {
        /// Configuration with the targets, as after -c
        #[arg(value_name = "FILE")]
        file: Option<PathBuf>,
        /// Only targets of this kind: telegram, webhook, slack, email …; may be repeated
        #[arg(long, value_name = "KIND")]
        only: Vec<String>,
        #[command(flatten)]
        notify: NotifyArgs,
    },
    /// Print the JSON Schema of configurations, for editors
    Schema,
    /// Convert a file of skopeo, regsync or image-syncer, or a command line of imgsync 2.1, into a configuration
    ///
    /// Prints the configuration on stdout, and lists on stderr what it cannot convert. Secrets are replaced by
    /// environment variables.
    Import(ImportArgs),
}

/// Runs the command.
pub(crate) async fn run(action: ConfigAction, global: &GlobalArgs, printer: &Printer) -> Exit {
    match action {
        ConfigAction::Schema => print(&format!("{:#}", Config::json_schema()), printer),
        ConfigAction::Import(args) => import::run(&args, printer),
        ConfigAction::Check { file } => with_settings(file, global, printer, |file, settings| {
            let wrong = check_references(settings);
            wrong.iter().for_each(|error| printer.failure(error));
            if !wrong.is_empty() {
                return Exit::Usage;
            }
            printer.line(&summary(file, &settings.config));
            Exit::Done
        }),
        ConfigAction::Show { file } => with_settings(file, global, printer, |_, settings| {
            print(settings.config.to_yaml_redacted().trim_end(), printer)
        }),
        ConfigAction::TestNotify { file, only, notify } => {
            let loaded = global.with_file(file, printer).and_then(|global| Settings::load(&global, printer));
            match loaded {
                Ok(settings) => test_notify(&settings, &only, &notify, printer).await,
                Err(exit) => exit,
            }
        }
    }
}

/// Sends a test message to the notification targets, and prints the result of each.
async fn test_notify(settings: &Settings, only: &[String], notify: &NotifyArgs, printer: &Printer) -> Exit {
    let configured = notify.resolve(&settings.config.notify, printer);
    let notifier = match Notifier::for_test(&configured, settings.folder()) {
        Ok(notifier) => notifier,
        Err(error) => return fail(&error, printer),
    };
    let kinds = notifier.kinds();
    if kinds.is_empty() {
        printer.error("no notification target is configured", Some("write one under `notify:` in the configuration"));
        return Exit::Usage;
    }
    if let Some(unknown) = only.iter().find(|kind| !kinds.contains(&kind.as_str())) {
        let hint = format!("the configured kinds are {}", kinds.join(", "));
        printer.error(&format!("no notification target of the kind `{unknown}` is configured"), Some(&hint));
        return Exit::Usage;
    }
    let mut exit = Exit::Done;
    for TestedTarget { kind, label, result } in notifier.send_test(only).await {
        match result {
            Some(Ok(())) => _ = printer.text(&format!("{kind} {label}: sent")),
            Some(Err(error)) => {
                let hint = format!("check `{kind}` under `notify:` in the configuration");
                printer.error(&format!("{kind} {label}: {error}"), Some(error.hint().unwrap_or(&hint)));
                exit = Exit::Failed;
            }
            None => {
                _ = printer.text(&format!(
                    "{kind} {label}: not requested, because it would count as a successful batch (--only {kind} does)"
                ));
            }
        }
    }
    exit
}

/// Loads a configuration, which has to exist, and applies the function to it.
fn with_settings(
    file: Option<PathBuf>,
    global: &GlobalArgs,
    printer: &Printer,
    apply: impl FnOnce(&Path, &Settings) -> Exit,
) -> Exit {
    let loaded = global.with_file(file, printer).and_then(|global| Settings::load(&global, printer));
    let settings = match loaded {
        Ok(settings) => settings,
        Err(exit) => return exit,
    };
    match &settings.file {
        Some(file) => apply(file, &settings),
        None => {
            printer.error("there is no imgsync.yaml in this folder", Some("name the configuration: FILE, or -c FILE"));
            Exit::Usage
        }
    }
}

/// Checks what parsing does not: the files that the configuration names, and its combination with flags and
/// environment. Sends no requests.
fn check_references(settings: &Settings) -> Vec<Error> {
    let template = settings.config.report.as_ref().and_then(|report| report.template.as_ref());
    let template = template.map_or(Ok(()), |path| {
        let path = settings.folder().join(path);
        ReportTemplate::read(&path, ReportFormat::from_template_path(&path)).map(drop)
    });
    let notifier = Notifier::new(&settings.config.notify, settings.folder(), Duration::ZERO);
    [settings.client().map(drop), settings.cluster().map(drop), notifier.map(drop), template]
        .into_iter()
        .filter_map(Result::err)
        .collect()
}

fn print(text: &str, printer: &Printer) -> Exit {
    printer.data(text);
    Exit::Done
}

/// Summarizes what was parsed, so that users can compare it with what they wrote.
fn summary(file: &Path, config: &Config) -> String {
    let count = |count: usize, one: &str, several: &str| match count {
        0 => format!("no {several}"),
        count => pluralize(count as u64, one, several),
    };
    let rules = count(config.rules.len(), "rule", "rules");
    let registries = match config.registries.len() {
        0 => "no registries".to_owned(),
        number => {
            let names: Vec<&str> = config.registries.keys().map(|name| name.as_str()).collect();
            format!("{} ({})", count(number, "registry", "registries"), names.join(", "))
        }
    };
    let presets = config.rules.iter().filter(|rule| matches!(rule.source, RuleSource::Preset(_))).count();
    let presets = if presets == 0 { String::new() } else { format!(" ({})", count(presets, "preset", "presets")) };
    let place = if config.cluster.is_some() { "a cluster" } else { "one process" };
    format!("{} is valid: {rules}{presets}, {registries}, {place}", file.display())
}
