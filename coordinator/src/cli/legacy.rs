//! The commands of imgsync 2.1 with their original meaning: one rule to `docker.io/<user>`, with the target names of
//! 2.1, executed like `imgsync run`.

use clap::Args;
use imgsync_config::{Preset, RuleSource};
use imgsync_model::naming::NamingStyle;
use imgsync_model::select::{RepositoryPattern, RepositoryPatternError};
use imgsync_oci::error::{Error, ErrorKind, Result};

use super::exit::{Exit, fail};
use super::global::GlobalArgs;
use super::printer::Printer;
use super::run::{self};
use super::run_args::RunArgs;
use super::settings::Settings;
use super::target::TargetArgs;
use crate::presets::{self, PresetDefinition};

/// `imgsync gcr`.
#[derive(Debug, Args)]
pub(crate) struct GcrArgs {
    /// Copy all repositories below this namespace of gcr.io
    #[arg(long, value_name = "NAMESPACE", default_value = "google-containers")]
    pub(crate) namespace: String,
    /// Copy registry.k8s.io (formerly k8s.gcr.io); ignores --namespace
    #[arg(long)]
    pub(crate) kubeadm: bool,
    #[command(flatten)]
    pub(crate) legacy: LegacyArgs,
}

/// Options of both commands.
#[derive(Debug, Args)]
pub(crate) struct LegacyArgs {
    #[command(flatten)]
    pub(crate) run: RunArgs,
    #[command(flatten)]
    pub(crate) target: TargetArgs,
}

/// Runs `imgsync gcr`.
pub(crate) async fn gcr(args: GcrArgs, global: &GlobalArgs, printer: &Printer) -> Exit {
    let namespace = args.namespace.trim_matches('/');
    let source = match args.kubeadm {
        true => Ok(preset_source("k8s.gcr.io", printer)),
        false => namespace_source(namespace, printer),
    };
    match source {
        Ok(source) => run_legacy(source, args.legacy, global, printer).await,
        Err(error) => fail(&error, printer),
    }
}

/// Runs `imgsync flannel`.
pub(crate) async fn flannel(args: LegacyArgs, global: &GlobalArgs, printer: &Printer) -> Exit {
    run_legacy(preset_source("quay.io/coreos", printer), args, global, printer).await
}

/// Returns the source of a namespace of gcr.io, or of its current location if it has moved.
fn namespace_source(namespace: &str, printer: &Printer) -> Result<RuleSource> {
    let home = format!("gcr.io/{namespace}");
    if presets::find_by_original(&home).is_some() {
        return Ok(preset_source(&home, printer));
    }
    let pattern: RepositoryPattern = format!("{home}/**").parse().map_err(|error: RepositoryPatternError| {
        Error::new(ErrorKind::Invalid, format!("taking the namespace {namespace}"), error.to_string())
    })?;
    Ok(RuleSource::Repositories(pattern))
}

/// Returns the preset for a location that imgsync 2.1 read, and prints where it has moved.
fn preset_source(home: &str, printer: &Printer) -> RuleSource {
    let known = presets::find_by_original(home).expect("the homes that are named in this file are in the catalog");
    let homes: Vec<&str> = known.homes().map(|(at, _)| at).filter(|at| *at != home).collect();
    if !homes.is_empty() {
        let verb = if homes.len() == 1 { "is" } else { "are" };
        let order = match known.homes().any(|(at, _)| at == home) {
            true => format!("first, and {home} for tags that only it has"),
            false => "instead".to_owned(),
        };
        printer.line(&format!(
            "{home} has moved: {} {verb} read {order}; target names stay the same (preset {})",
            homes.join(", "),
            known.name
        ));
    }
    let PresetDefinition { name, .. } = known;
    RuleSource::Preset(Preset { name: name.clone(), versions: None })
}

async fn run_legacy(source: RuleSource, args: LegacyArgs, global: &GlobalArgs, printer: &Printer) -> Exit {
    let mut settings = match Settings::load(global, printer) {
        Ok(settings) => settings,
        Err(exit) => return exit,
    };
    let set = args.target.set_rules(vec![source], Some(NamingStyle::Original), &mut settings, printer).await;
    if let Err(error) = set {
        return fail(&error, printer);
    }
    // Version 2.1 copied every tag of every platform, whatever the configuration's rules do.
    for rule in &mut settings.config.rules {
        rule.selection = Default::default();
        rule.platforms = Vec::new();
    }
    let run = RunArgs { legacy_report: true, ..args.run };
    run::run_rules(run, &settings, printer).await
}
