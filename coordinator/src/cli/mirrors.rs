//! `imgsync mirrors`: writes the configuration that makes nodes pull from the mirror.

mod output_folder;

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::humanize::{group_digits, pluralize};

use self::output_folder::OutputFolder;
use super::backend;
use super::exit::{Exit, fail};
use super::global::GlobalArgs;
use super::printer::Printer;
use super::rule_selection::select_rules;
use super::settings::Settings;
use crate::mirrors::{
    FileKind, MirrorFormat, NameOrigin, OutputFile, RenderedMirrors, UnreachableName, collect_names, render,
};

/// More names with the same reason are counted instead of named.
const MAX_NAMED: usize = 20;
/// Names with more reasons are counted instead of named.
const MAX_REASONS: usize = 20;

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
    /// Also write mirrors in which images of several sources have the same name
    #[arg(long)]
    pub(crate) shared_names: bool,
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
    let mut names = collect_names(&settings.config, settings.folder(), store.as_deref()).await?;
    names.allows_shared_names = args.shared_names;
    if let Some(whole) = &settings.unlimited {
        let mut others = (**whole).clone();
        others.rules.retain(|rule| !settings.config.rules.contains(rule));
        match collect_names(&others, settings.folder(), store.as_deref()).await {
            Ok(others) => names.add_other_rules(others),
            Err(error) if !args.shared_names => {
                return Err(error.with_hint(
                    "other rules may write the same names to the mirrors, and nodes would pull these images for others; \
                     --shared-names ignores that",
                ));
            }
            Err(error) => printer.warning(&format!(
                "names that other rules write to the mirrors are not known, and nodes may pull them for others: {error}"
            )),
        }
    }
    for (rule, origin) in &names.origins {
        printer.line(&match origin {
            NameOrigin::Store { copied, not_copied } => {
                let repositories = pluralize(*copied as u64, "repository", "repositories");
                let more = match not_copied {
                    0 => String::new(),
                    more => {
                        let names = pluralize(*more as u64, "name", "names");
                        format!(", and {names} from the rule of which nothing was copied yet")
                    }
                };
                format!("{rule}: {repositories}, from what was copied{more}")
            }
            NameOrigin::Rule if args.from_rules => format!("{rule}: names from the rule"),
            NameOrigin::Rule => format!("{rule}: names from the rule, nothing was copied yet"),
        });
    }
    let format = MirrorFormat::from(args.format);
    let rendered = render(&names, format)?;
    match &args.out {
        Some(folder) => {
            let folder = OutputFolder::new(folder);
            for file in &rendered.files {
                let path = folder.write(file)?;
                printer.line(&format!("written: {}", path.display()));
            }
            if args.rules.is_empty() {
                for path in folder.stale_files(format, &rendered.files) {
                    let path = path.display();
                    printer.warning(&format!("{path} is of an earlier run, and this run did not write it"));
                }
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
    let mut groups = rendered.unreachable.chunk_by(|a, b| a.reason == b.reason);
    for group in groups.by_ref().take(MAX_REASONS) {
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
    let more = groups.map(<[_]>::len).sum::<usize>();
    if more > 0 {
        printer.line(&format!("not reachable: {} more, for other reasons", group_digits(more as u64)));
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
