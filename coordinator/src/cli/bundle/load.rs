//! `imgsync bundle load`: checks that everything is there, then runs the images of the bundle as a rule.

use std::path::{Path, PathBuf};

use clap::Args;
use imgsync_bundle::{BundleImages, BundleTarget, OpenedBundle};
use imgsync_config::{Referrers, RuleSource, RuleTarget};
use imgsync_model::batch::{BatchId, ForeignLayers, RepositoryLocator};
use imgsync_model::naming::{NamingStyle, TargetBase};
use imgsync_model::select::TagSelection;
use imgsync_oci::Digest;
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::humanize::{group_digits, pluralize};
use imgsync_registry::Context;
use imgsync_store::Store;
use imgsync_worker::copy::BundleSide;

use super::super::backend::state_dir;
use super::super::exit::{Exit, fail};
use super::super::global::GlobalArgs;
use super::super::printer::Printer;
use super::super::run::{RunContext, StartOutcome, build_notifier};
use super::super::run_args::{ResumeArgs, RunArgs};
use super::super::settings::Settings;
use super::super::stdin_archive::pipe_timeouts;
use super::{is_stdin, open_bundle, open_spooled_bundle};
use crate::bundle::{Completeness, check_completeness};
use crate::orchestrator::Backend;

/// Maximum number of missing contents that are printed.
const MAX_PRINTED: usize = 20;

/// `imgsync bundle load`.
#[derive(Debug, Args)]
pub(crate) struct LoadArgs {
    /// The bundle: its folder, its list of parts (FILE.json), one of its parts, or its file; then other folders with parts;
    /// - is stdin, with --spool
    #[arg(value_name = "BUNDLE", required = true)]
    pub(crate) bundle: Vec<PathBuf>,
    /// Registry and path below which the images are put: registry.example.com/mirror
    #[arg(long, value_name = "TARGET", value_parser = parse_target)]
    pub(crate) to: TargetBase,
    /// Load only if the bundle is signed by the key of this public key (PEM)
    #[arg(long, value_name = "FILE", visible_alias = "verify-key")]
    pub(crate) public_key: Option<PathBuf>,
    /// Save a bundle from stdin (-) to a temporary file in this folder first; needed for stdin
    #[arg(long, value_name = "DIR", hide_short_help = true)]
    pub(crate) spool: Option<PathBuf>,
    /// State folder [default: $XDG_STATE_HOME/imgsync, else ~/.local/state/imgsync]
    #[arg(long, value_name = "DIR", hide_short_help = true)]
    pub(crate) state: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) run: ResumeArgs,
}

pub(super) fn parse_target(text: &str) -> std::result::Result<TargetBase, String> {
    imgsync_oci::strip_transport(text)
        .parse()
        .map_err(|error: imgsync_model::naming::TargetBaseError| error.to_string())
}

/// Runs the command.
pub(super) async fn run(args: LoadArgs, global: &GlobalArgs, printer: &Printer) -> Exit {
    let mut settings = match Settings::load(global, printer) {
        Ok(settings) => settings,
        Err(exit) => return exit,
    };
    match load(args, &mut settings, printer).await {
        Ok(exit) => exit,
        Err(error) => match error.kind() {
            ErrorKind::Insecure => {
                printer.failure(&error);
                Exit::Failed
            }
            _ => fail(&error, printer),
        },
    }
}

async fn load(args: LoadArgs, settings: &mut Settings, printer: &Printer) -> Result<Exit> {
    let bundle = open(&args, printer).await?;
    let header = &bundle.index.header;
    printer.line(&format!(
        "bundle `{}` made {} by imgsync {}: {}",
        imgsync_oci::sanitize::sanitize_within(&header.title, 200),
        imgsync_oci::sanitize::sanitize_within(&header.created, 40),
        imgsync_oci::sanitize::sanitize_within(&header.imgsync, 40),
        pluralize(bundle.index.tags().count() as u64, "tag", "tags")
    ));
    if let Some(missing) = header.describe_missing() {
        printer.warning(&format!("the bundle is incomplete: {missing}"));
    }
    let state = state_dir(args.state.as_ref())?;
    let target_text = args.to.to_string();
    let key = Digest::sha256(format!("{}\n{target_text}", Digest::sha256(&bundle.index_bytes)).as_bytes());
    let work = LoadFolder::open(&state, &key, &bundle)?;
    set_rule(settings, &work.location, &args.to);
    let backend = Backend::embedded(&work.store).await?;
    let run_args = RunArgs::from(args.run);
    let options = run_args.report.resolve(settings)?;
    let notifier = build_notifier(&run_args, settings, printer)?;
    let context = RunContext::new(&run_args, settings, &backend, printer)?;
    let target = BundleTarget {
        client: context.client().clone(),
        registry: args.to.registry.clone(),
        prefix: args.to.prefix.clone(),
    };
    let images = BundleImages::open(&bundle, Some(target.clone())).await?;
    let requests = Context { cancel: context.stop_token(), ..Context::default() };
    let checked = check_completeness(&images, &bundle.index, &target, &requests).await?;
    if checked.count > 0 {
        return Ok(report_missing(&checked, &bundle, printer));
    }
    for (path, blobs) in &checked.mountable {
        let holder = RepositoryLocator::in_registry(target.registry.clone(), &target.path(path)?);
        backend.store.record_blobs(&holder, blobs).await?;
    }
    printer.line("complete: everything is in the bundle or at the target");
    let context = context.with_bundle(BundleSide::Load { location: work.location.clone(), images });
    let StartOutcome::Created(mut made) = context.start(None).await? else {
        let error = Error::new(ErrorKind::Invalid, "loading the bundle", "another process is loading it");
        return Err(error.with_hint("wait for its end"));
    };
    let lock = made.lock.take();
    let ended = context.follow(made.id, &notifier, async |run| run.list_and_run(*made).await).await?;
    let name = run_args.report.report_name.as_deref();
    let exit = context.report(&ended, (&options, name), run_args.json, &notifier, printer).await?;
    match exit {
        Exit::Done => {
            drop(context);
            drop((lock, backend));
            work.remove();
        }
        Exit::Failed if bundle.reader.list().is_some() && has_damage(&*backend.store, ended.batch.id).await? => {
            name_damage(&bundle, printer)
        }
        _ => {}
    }
    Ok(exit)
}

/// Opens the bundle, which is saved first if it comes from stdin.
async fn open(args: &LoadArgs, printer: &Printer) -> Result<OpenedBundle> {
    let key = args.public_key.as_ref();
    match (is_stdin(&args.bundle)?, &args.spool) {
        (false, _) => open_bundle(&args.bundle, key, printer),
        (true, Some(folder)) => {
            let timeouts = pipe_timeouts(None, args.run.retry.stall_timeout);
            open_spooled_bundle(folder, timeouts, key, printer).await
        }
        (true, None) => {
            let detail =
                "whether a bundle is complete is checked before anything is pushed, and a pipe cannot be read twice";
            Err(Error::new(ErrorKind::Invalid, "loading a bundle from stdin", detail)
                .with_hint("give --spool DIR, a folder with space for the whole bundle, or save it to a file first"))
        }
    }
}

fn report_missing(checked: &Completeness, bundle: &OpenedBundle, printer: &Printer) -> Exit {
    for missing in checked.missing.iter().take(MAX_PRINTED) {
        printer.line(&format!("missing: {missing}"));
    }
    if checked.count > MAX_PRINTED as u64 {
        printer.line(&format!("and {} more", group_digits(checked.count - MAX_PRINTED as u64)));
    }
    let what = pluralize(checked.count, "content is missing", "contents are missing");
    let message = format!("the bundle {} is incomplete here: {what}; nothing was pushed", bundle.reader.label());
    let hint = match bundle.index.header.have.is_empty() {
        true => "carry the bundle over again",
        false => {
            "it leaves out what the target had: load the bundles before it first, or make it again with a new inventory \
             (`imgsync bundle inventory`)"
        }
    };
    printer.error(&message, Some(hint));
    Exit::Failed
}

/// Whether images failed because of content that cannot be read, or is not what it should be.
async fn has_damage(store: &dyn Store, batch: BatchId) -> Result<bool> {
    const MAX_FAILURES: usize = 1_000;
    let failures = store.failures(batch, 0, MAX_FAILURES).await?;
    Ok(failures.iter().any(|failed| {
        matches!(failed.failure.kind, ErrorKind::Corrupt | ErrorKind::InvalidResponse | ErrorKind::Local)
    }))
}

/// Names the damaged parts after a failure.
fn name_damage(bundle: &OpenedBundle, printer: &Printer) {
    printer.line("looking for damaged parts");
    for damage in tokio::task::block_in_place(|| bundle.reader.find_damage(|_| {})) {
        let message = format!("{} is damaged: {}", damage.path.display(), damage.detail);
        printer.error(&message, Some("carry this part over again, and run the same command again"));
    }
}

/// Makes the bundle the only rule. The protections of the configuration's defaults apply.
fn set_rule(settings: &mut Settings, location: &Path, to: &TargetBase) {
    let mut rule = settings.config.rule_from_defaults(RuleSource::Layout(location.to_owned()));
    rule.name = Some("bundle".to_owned());
    rule.to = vec![RuleTarget::Registry(to.clone())];
    rule.naming = Some(NamingStyle::Keep);
    rule.selection = TagSelection::default();
    (rule.platforms, rule.sparse) = (Vec::new(), false);
    (rule.referrers, rule.foreign_layers) = (Referrers::All, ForeignLayers::default());
    settings.config.rules = vec![rule];
}

/// State of a load, until it has succeeded.
struct LoadFolder {
    folder: PathBuf,
    store: PathBuf,
    /// The index: the location of the images for the tasks.
    location: PathBuf,
}

impl LoadFolder {
    fn open(state: &Path, key: &Digest, bundle: &OpenedBundle) -> Result<LoadFolder> {
        let folder = state.join("bundles").join(format!("load-{}", &key.hex()[..16]));
        let (store, index) = (folder.join("store"), folder.join("index"));
        let opened = std::fs::create_dir_all(&store)
            .and_then(|()| std::fs::write(&index, &*bundle.index_bytes))
            .and_then(|()| std::fs::canonicalize(&index));
        let location = opened.map_err(|error| {
            let detail = format!("{}: {error}", folder.display());
            Error::new(ErrorKind::Local, "loading the bundle", detail).with_source(error).with_hint("pass --state DIR")
        })?;
        Ok(LoadFolder { folder, store, location })
    }

    fn remove(self) {
        // What stays costs space alone.
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}
