//! `imgsync mirrors`: writes the configuration that makes nodes pull from the mirror.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::humanize::{group_digits, pluralize};

use super::backend;
use super::exit::{Exit, fail};
use super::global::GlobalArgs;
use super::printer::Printer;
use super::rule_selection::select_rules;
use super::settings::Settings;
use crate::mirrors::{
    FileKind, MirrorFormat, NameOrigin, OutputFile, RenderedMirrors, UnreachableName, WRITTEN_BY, collect_names, render,
};

/// More names with the same reason are counted instead of named.
const MAX_NAMED: usize = 20;

/// A consumer, and where to write its files.
#[derive(Debug, Args)]
pub(crate) struct MirrorsArgs {
    /// Consumer of the files
    #[arg(long, value_name = "FORMAT")]
    pub(crate) format: FormatArg,
    /// Write the files to this folder [default: print them]
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// Only this rule: its name, id or number from 1 (repeatable)
    #[arg(long = "rule", value_name = "RULE")]
    pub(crate) rules: Vec<String>,
    /// Take all names from the rules, without the store
    #[arg(long, conflicts_with = "state")]
    pub(crate) from_rules: bool,
    /// State folder [default: $XDG_STATE_HOME/imgsync, else ~/.local/state/imgsync]
    #[arg(long, value_name = "DIR")]
    pub(crate) state: Option<PathBuf>,
}

/// `--format`.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum FormatArg {
    /// containerd: hosts.toml for each registry, the tree of /etc/containerd/certs.d
    Containerd,
    /// CRI-O, podman, buildah, skopeo: a file of /etc/containers/registries.conf.d
    #[value(name = "registries.conf")]
    RegistriesConf,
    /// Docker: registry-mirrors of daemon.json, for docker.io alone
    Docker,
    /// K3s and RKE2: registries.yaml
    K3s,
    /// OpenShift: ImageDigestMirrorSet and ImageTagMirrorSet
    Openshift,
    /// Kyverno: a policy that changes the images of Pods
    Kyverno,
    /// kustomize: a component with `images`
    Kustomize,
}

impl From<FormatArg> for MirrorFormat {
    fn from(format: FormatArg) -> MirrorFormat {
        match format {
            FormatArg::Containerd => MirrorFormat::Containerd,
            FormatArg::RegistriesConf => MirrorFormat::RegistriesConf,
            FormatArg::Docker => MirrorFormat::Docker,
            FormatArg::K3s => MirrorFormat::K3s,
            FormatArg::Openshift => MirrorFormat::OpenShift,
            FormatArg::Kyverno => MirrorFormat::Kyverno,
            FormatArg::Kustomize => MirrorFormat::Kustomize,
        }
    }
}

/// Runs the command.
pub(crate) async fn run(args: MirrorsArgs, global: &GlobalArgs, printer: &Printer) -> Exit {
    let mut settings = match Settings::load(global, printer) {
        Ok(settings) => settings,
        Err(exit) => return exit,
    };
    match execute(&args, &mut settings, printer).await {
        Ok(exit) => exit,
        Err(error) => fail(&error, printer),
    }
}

async fn execute(args: &MirrorsArgs, settings: &mut Settings, printer: &Printer) -> Result<Exit> {
    if !args.rules.is_empty() {
        select_rules(settings, &args.rules)?;
    }
    if settings.config.rules.is_empty() {
        let error =
            Error::new(ErrorKind::Invalid, "collecting the names of the rules", "the configuration has no rules");
        return Err(error.with_hint("name a configuration with rules after -c"));
    }
    let store = match args.from_rules {
        true => None,
        false => {
            Some(backend::open_store(settings, args.state.as_ref()).await.map_err(|error| match error.hint() {
                Some(_) => error,
                None => error.with_hint("--from-rules takes all names from the rules, without the store"),
            })?)
        }
    };
    let names = collect_names(&settings.config, settings.folder(), store.as_deref()).await?;
    for (rule, origin) in &names.origins {
        printer.line(&match origin {
            NameOrigin::Store(repositories) => {
                let repositories = pluralize(*repositories as u64, "repository", "repositories");
                format!("{rule}: {repositories}, from what was copied")
            }
            NameOrigin::Rule if args.from_rules => format!("{rule}: names from the rule"),
            NameOrigin::Rule => format!("{rule}: names from the rule, nothing was copied yet"),
        });
    }
    let rendered = render(&names, args.format.into())?;
    match &args.out {
        Some(folder) => {
            for file in &rendered.files {
                write_file(folder, file)?;
                printer.line(&format!("written: {}", folder.join(&file.path).display()));
            }
            if args.rules.is_empty() {
                warn_of_stale_files(folder, &rendered.files, printer);
            }
        }
        None => print_files(&rendered.files, printer),
    }
    print_remarks(&rendered, printer);
    Ok(match rendered.unreachable.is_empty() && !rendered.files.is_empty() {
        true => Exit::Done,
        false => Exit::Failed,
    })
}

/// Prints the files: one alone as it is, for a pipe; several with their names. Certificates are printed only beside files
/// that refer to them by a relative path.
fn print_files(files: &[OutputFile], printer: &Printer) {
    let main = files.iter().filter(|file| file.kind == FileKind::Main).count();
    let is_tree = files.iter().any(|file| file.kind == FileKind::Main && file.path.contains('/'));
    for file in files.iter().filter(|file| is_tree || file.kind == FileKind::Main) {
        if is_tree || main > 1 {
            printer.data(&format!("# {}", file.path));
        }
        printer.data(file.text.trim_end());
    }
}

/// Prints what cannot be reached, remarks and totals.
fn print_remarks(rendered: &RenderedMirrors, printer: &Printer) {
    for group in rendered.unreachable.chunk_by(|a, b| a.reason == b.reason) {
        for UnreachableName { name, .. } in group.iter().take(MAX_NAMED) {
            printer.line(&format!("not reachable: {name}"));
        }
        if let Some(more) = group.len().checked_sub(MAX_NAMED).filter(|more| *more > 0) {
            printer.line(&format!("not reachable: {} more", group_digits(more as u64)));
        }
        if let Some(UnreachableName { reason, .. }) = group.first() {
            printer.line(&format!("  because {reason}"));
        }
    }
    for note in &rendered.notes {
        match note.strip_prefix("warning: ") {
            Some(warning) => printer.warning(warning),
            None => printer.line(note),
        }
    }
    let names = pluralize(rendered.reachable as u64, "name", "names");
    let unreachable = group_digits(rendered.unreachable.len() as u64);
    printer.line(&format!("{names} (repositories or patterns) reachable in the mirror, {unreachable} not"));
}

/// Writes a file as a whole. A file that somebody else wrote is kept.
fn write_file(folder: &Path, file: &OutputFile) -> Result<()> {
    let path = folder.join(&file.path);
    let failed = |error: std::io::Error| {
        Error::new(ErrorKind::Local, format!("writing {}", path.display()), error.to_string()).with_source(error)
    };
    match std::fs::read(&path) {
        Ok(found) if found == file.text.as_bytes() => return Ok(()),
        Ok(found) if !found.starts_with(WRITTEN_BY.as_bytes()) => {
            let error = Error::new(
                ErrorKind::Invalid,
                format!("writing {}", path.display()),
                "the file exists with other content, and nothing in it says that this command wrote it",
            );
            return Err(error.with_hint("remove it, or write to another folder and merge the files"));
        }
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(failed)?;
    }
    // A temporary file, so that a consumer never reads half of it.
    let mut part = path.clone().into_os_string();
    part.push(".part");
    std::fs::write(&part, &file.text).map_err(failed)?;
    std::fs::rename(&part, &path).map_err(failed)
}

/// Warns of files of an earlier run, in a tree of folders, that this run did not write.
fn warn_of_stale_files(folder: &Path, files: &[OutputFile], printer: &Printer) {
    let Some(name) = files.iter().find_map(|file| file.path.split_once('/').map(|(_, name)| name)) else { return };
    let written: Vec<PathBuf> = files.iter().map(|file| folder.join(&file.path)).collect();
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    let mut stale: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path().join(name)))
        .filter(|path| !written.contains(path))
        .filter(|path| std::fs::read(path).is_ok_and(|found| found.starts_with(WRITTEN_BY.as_bytes())))
        .collect();
    stale.sort();
    for path in stale {
        printer.warning(&format!("{} is of an earlier run, and this run did not write it", path.display()));
    }
}
