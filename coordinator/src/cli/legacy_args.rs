//! Command lines of imgsync 2.1 as values, for `config import`.

use clap::Parser as _;
use imgsync_config::RuleTarget;

use super::legacy::LegacyArgs;
use super::{Cli, Command};
use crate::presets;

/// A parsed command line of imgsync 2.1. It contains secrets: do not print it.
pub(crate) struct LegacyCommand {
    pub(crate) source: LegacySource,
    pub(crate) user: Option<String>,
    /// As typed: a secret, or the variable that contains it.
    pub(crate) password: Option<String>,
    pub(crate) to: Vec<String>,
    pub(crate) naming: Option<String>,
    pub(crate) concurrency: Option<u16>,
    pub(crate) timeout: Option<String>,
    /// Token, group and API URL.
    pub(crate) telegram: Option<(String, String, Option<String>)>,
    pub(crate) report: Option<String>,
    pub(crate) report_level: Option<u8>,
    /// Flags without a counterpart in a configuration, as typed.
    pub(crate) ignored_flags: Vec<String>,
}

/// Source of the copy.
#[derive(Debug)]
pub(crate) enum LegacySource {
    Preset(String),
    Pattern(String),
}

impl LegacyCommand {
    /// Parses the words with the current command line. Errors show flags, but no other typed text.
    pub(crate) fn parse_words(words: &[String]) -> Result<LegacyCommand, String> {
        // With or without the program's name or path.
        let rest = match words.first().map(|first| first.rsplit('/').next().unwrap_or_default()) {
            Some("imgsync") => &words[1..],
            _ => words,
        };
        let typed = std::iter::once("imgsync").chain(rest.iter().map(String::as_str));
        let cli = Cli::try_parse_from(typed).map_err(|error| {
            let context = |kind| error.get(kind).map(ToString::to_string);
            let what = context(clap::error::ContextKind::InvalidArg)
                .or_else(|| context(clap::error::ContextKind::InvalidSubcommand))
                .unwrap_or_else(|| "the command".to_owned());
            format!("{what} is not valid; see `imgsync gcr --help`")
        })?;
        match cli.command {
            Some(Command::Gcr(args)) => {
                let namespace = args.namespace.trim_matches('/');
                let home = if args.kubeadm { "k8s.gcr.io".to_owned() } else { format!("gcr.io/{namespace}") };
                let source = match presets::find_by_original(&home) {
                    Some(known) => LegacySource::Preset(known.name.clone()),
                    None => LegacySource::Pattern(format!("{home}/**")),
                };
                Ok(LegacyCommand::from_args(source, &args.legacy, rest))
            }
            Some(Command::Flannel(args)) => {
                let known = presets::find_by_original("quay.io/coreos").map(|known| known.name.clone());
                Ok(LegacyCommand::from_args(LegacySource::Preset(known.unwrap_or_default()), &args, rest))
            }
            Some(Command::Sync(_)) => Err("`imgsync sync` copies one image, and needs no configuration".to_owned()),
            _ => Err("it is neither `imgsync gcr` nor `imgsync flannel`".to_owned()),
        }
    }

    fn from_args(source: LegacySource, args: &LegacyArgs, words: &[String]) -> LegacyCommand {
        let LegacyArgs { run, target } = args;
        let secret = |secret: &Option<imgsync_oci::secret::Secret>| {
            secret.as_ref().map(|secret| secret.expose().to_owned()).filter(|text| !text.is_empty())
        };
        let shown = |to: &RuleTarget| to.to_string();
        // Only typed values: variables of this environment are not part of the command line.
        let typed = |flag: &str| words.iter().any(|word| word == flag || word.starts_with(&format!("{flag}=")));
        let value = |flag: &str| {
            let at = words.iter().position(|word| word == flag || word.starts_with(&format!("{flag}=")))?;
            words[at].split_once('=').map(|(_, value)| value.to_owned()).or_else(|| words.get(at + 1).cloned())
        };
        let telegram = match (secret(&run.notify.telegram_token), run.notify.telegram_group.clone()) {
            (Some(token), Some(group)) if typed("--telegram-token") && typed("--telegram-group") => {
                let api = run.notify.telegram_api.as_ref().filter(|_| typed("--telegram-api"));
                Some((token, group, api.map(ToString::to_string)))
            }
            _ => None,
        };
        let report = run.report.report.clone().flatten().map(|path| path.display().to_string());
        let mut ignored_flags = Vec::new();
        for flag in [
            "--download-manifests",
            "--force",
            "--dry-run",
            "--json",
            "--events",
            "--detach",
            "--debug",
            "--password-stdin",
        ] {
            if typed(flag) {
                ignored_flags.push(flag.to_owned());
            }
        }
        for flag in ["--manifests", "--query-limit", "--batch-size", "--batch-number", "--report-name", "--state"] {
            if let Some(value) = value(flag) {
                ignored_flags.push(format!("{flag} {value}"));
            }
        }
        if report.is_none() {
            if typed("--report") {
                ignored_flags.push("--report".to_owned());
            }
            if let Some(level) = run.report.report_level {
                ignored_flags.push(format!("--report-level {level}"));
            }
        }
        LegacyCommand {
            source,
            user: target.user.clone(),
            password: secret(&target.password),
            to: target.to.iter().map(shown).collect(),
            naming: target.naming.as_ref().map(ToString::to_string),
            concurrency: run.concurrency.or(run.process_limit),
            timeout: run.timeout.and_then(|_| value("--timeout")),
            telegram,
            report,
            report_level: run.report.report_level,
            ignored_flags,
        }
    }
}
