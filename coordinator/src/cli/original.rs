//! The commands of imgsync 2.1 with their original meaning: one rule to `docker.io/<user>`, with the target names of
//! 2.1, executed like `imgsync run`.

use clap::Args;
use imgsync_common::config::{Preset, Source};
use imgsync_common::error::{Class, Error, Result};
use imgsync_common::naming::Style;
use imgsync_common::select::{RepositoryPattern, RepositoryPatternError};

use super::args::{Global, RunArgs};
use super::exit::Exit;
use super::printer::Printer;
use super::run::{self, fail};
use super::settings::Settings;
use super::target::TargetArgs;
use crate::presets::{self, Known};

/// `imgsync gcr`.
#[derive(Debug, Args)]
pub(crate) struct GcrArgs {
    /// Copy all that is below this namespace of gcr.io
    #[arg(long, value_name = "NAMESPACE", default_value = "google-containers")]
    pub(crate) namespace: String,
    /// Copy what was k8s.gcr.io, and is registry.k8s.io today; the namespace does not matter then
    #[arg(long)]
    pub(crate) kubeadm: bool,
    #[command(flatten)]
    pub(crate) original: OriginalArgs,
}

/// What both commands take.
#[derive(Debug, Args)]
pub(crate) struct OriginalArgs {
    #[command(flatten)]
    pub(crate) run: RunArgs,
    #[command(flatten)]
    pub(crate) target: TargetArgs,
}

/// Runs `imgsync gcr`.
pub(crate) async fn gcr(args: GcrArgs, global: &Global, printer: &Printer) -> Exit {
    let namespace = args.namespace.trim_matches('/');
    let source = match args.kubeadm {
        true => Ok(of_preset("k8s.gcr.io", printer)),
        false => of_namespace(namespace, printer),
    };
    match source {
        Ok(source) => go(source, args.original, global, printer).await,
        Err(error) => fail(&error, printer),
    }
}

/// Runs `imgsync flannel`.
pub(crate) async fn flannel(args: OriginalArgs, global: &Global, printer: &Printer) -> Exit {
    go(of_preset("quay.io/coreos", printer), args, global, printer).await
}

/// Returns the source of a namespace of gcr.io, or of its current location if it has moved.
fn of_namespace(namespace: &str, printer: &Printer) -> Result<Source> {
    let home = format!("gcr.io/{namespace}");
    if presets::of_original(&home).is_some() {
        return Ok(of_preset(&home, printer));
    }
    let pattern: RepositoryPattern = format!("{home}/**").parse().map_err(|error: RepositoryPatternError| {
        Error::new(Class::Invalid, format!("taking the namespace {namespace}"), error.to_string())
    })?;
    Ok(Source::Repositories(pattern))
}

/// Returns the preset for a location that imgsync 2.1 read, and prints where it has moved.
fn of_preset(home: &str, printer: &Printer) -> Source {
    let known = presets::of_original(home).expect("the homes that are named in this file are in the catalog");
    let homes: Vec<&str> = known.homes().map(|(at, _)| at).filter(|at| *at != home).collect();
    if !homes.is_empty() {
        printer.line(&format!(
            "{home} has moved: {} {} read, and targets keep their names (preset {})",
            homes.join(", "),
            if homes.len() == 1 { "is" } else { "are" },
            known.name
        ));
    }
    let Known { name, .. } = known;
    Source::Preset(Preset { name: name.clone(), versions: None })
}

async fn go(source: Source, args: OriginalArgs, global: &Global, printer: &Printer) -> Exit {
    let mut settings = match Settings::load(global, printer) {
        Ok(settings) => settings,
        Err(exit) => return exit,
    };
    let set = args.target.set_rules(vec![source], Some(Style::Original), &mut settings, printer).await;
    if let Err(error) = set {
        return fail(&error, printer);
    }
    // Version 2.1 copied every tag of every platform, whatever the configuration's rules do.
    for rule in &mut settings.config.rules {
        rule.selection = Default::default();
        rule.platforms = Vec::new();
    }
    run::go(args.run, &settings, printer).await
}
