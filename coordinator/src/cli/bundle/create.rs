//! `imgsync bundle create`: collects the images of the rules by an ordinary run, then writes them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use bytesize::ByteSize;
use clap::Args;
use imgsync_archive::WriteFailure;
use imgsync_bundle::{
    BUNDLE_REGISTRY, BundleCollector, BundleFiles, BundleHeader, BundleIndex, BundleSigningKey, Have, Inventory,
    MAX_INDEX_BYTES, OpenedBundle, PROGRAM_MEMBER, PartReader,
};
use imgsync_config::RuleTarget;
use imgsync_model::batch::{BatchId, TaskState};
use imgsync_model::naming::TargetBase;
use imgsync_oci::Digest;
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::humanize::pluralize;
use imgsync_store::Store;
use imgsync_worker::copy::BundleSide;

use super::super::backend::state_dir;
use super::super::exit::{Exit, fail, for_copy_error};
use super::super::global::GlobalArgs;
use super::super::printer::Printer;
use super::super::rule_selection::select_rules;
use super::super::run::{RunContext, StartOutcome, build_notifier};
use super::super::run_args::{ResumeArgs, RunArgs};
use super::super::settings::Settings;
use super::work::{CollectedPlan, WorkFolder};
use super::write::{BundleOutput, write_bundle};
use super::{MAX_KEY_BYTES, read_file};
use crate::bundle::{WantedTag, build_index, split_by_content};
use crate::orchestrator::{Backend, fingerprint};

/// Maximum size of a file that says what the receiver has.
const MAX_HAVE_BYTES: u64 = 1 << 30;
/// Maximum size of a program.
const MAX_PROGRAM_BYTES: u64 = 256 << 20;
/// Smallest part, in bytes.
const MIN_PART_BYTES: u64 = 4096;
/// Name of a bundle in a folder.
const DEFAULT_NAME: &str = "bundle.tar";
/// Maximum number of images that a message names.
const MAX_NAMED: usize = 5;
/// Rows of the ledger read at once.
const PAGE: usize = 2_000;

/// `imgsync bundle create`.
#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// File, folder (the name is then bundle.tar), or - for stdout
    #[arg(long, value_name = "FILE")]
    pub(crate) out: PathBuf,
    /// Cut the bundle into parts of at most this size (4GiB, 650MB): FILE.001, FILE.002 …
    #[arg(long, value_name = "SIZE", value_parser = parse_part_size)]
    pub(crate) part_size: Option<u64>,
    /// Leave out what the receiver has: an inventory, or an earlier bundle or its index; may be repeated
    #[arg(long, value_name = "FILE")]
    pub(crate) have: Vec<PathBuf>,
    /// Sign the bundle with this private key (PKCS#8 PEM, Ed25519 or P-256)
    #[arg(long, value_name = "FILE")]
    pub(crate) key: Option<PathBuf>,
    /// Carry this program, a static imgsync for the receiver's machine, as the file `imgsync`
    #[arg(long, value_name = "FILE")]
    pub(crate) with_program: Option<PathBuf>,
    /// Only this rule: its name, id or number, from 1; may be repeated
    #[arg(long, value_name = "RULE")]
    pub(crate) rule: Vec<String>,
    /// Replace a bundle of the same name
    #[arg(long)]
    pub(crate) overwrite: bool,
    /// Drop what an interrupted call has done, instead of going on
    #[arg(long, hide_short_help = true)]
    pub(crate) restart: bool,
    /// State folder [default: $XDG_STATE_HOME/imgsync, else ~/.local/state/imgsync]
    #[arg(long, value_name = "DIR", hide_short_help = true)]
    pub(crate) state: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) run: ResumeArgs,
}

fn parse_part_size(text: &str) -> std::result::Result<u64, String> {
    let size = text.parse::<ByteSize>().map_err(|error| format!("expected a size such as 4GiB: {error}"))?;
    match size.as_u64() {
        size if size < MIN_PART_BYTES => Err(format!("must be at least {MIN_PART_BYTES} bytes")),
        size => Ok(size),
    }
}

/// Runs the command.
pub(super) async fn run(args: CreateArgs, global: &GlobalArgs, printer: &Printer) -> Exit {
    let mut settings = match Settings::load(global, printer) {
        Ok(settings) => settings,
        Err(exit) => return exit,
    };
    if settings.config.rules.is_empty() {
        let hint = "write some in imgsync.yaml, or name a file with -c (examples/quickstart.yaml is one)";
        printer.error("there are no rules to make a bundle of", Some(hint));
        return Exit::Usage;
    }
    let prepared = prepare_rules(&args.rule, &mut settings).and_then(|()| Inputs::read(&args));
    match prepared {
        Ok(inputs) => match create(args, inputs, &settings, printer).await {
            Ok(exit) => exit,
            Err(error) => fail(&error, printer),
        },
        Err(error) => fail(&error, printer),
    }
}

/// Limits the rules, and makes the bundle their target.
fn prepare_rules(wanted: &[String], settings: &mut Settings) -> Result<()> {
    if !wanted.is_empty() {
        select_rules(settings, wanted)?;
    }
    let registry = BUNDLE_REGISTRY.parse().expect("a constant name parses");
    let target = RuleTarget::Registry(TargetBase { registry, prefix: None });
    for rule in &mut settings.config.rules {
        if rule.sparse {
            let detail = "`sparse: true` leaves out children of an index, and a bundle is complete";
            return Err(Error::new(ErrorKind::Invalid, format!("making a bundle of {}", rule.label()), detail)
                .with_hint("remove `sparse`, so that `platforms` makes a smaller index"));
        }
        rule.naming = rule.to.first().map(|to| rule.style_at(to)).or(rule.naming.take());
        rule.to = vec![target.clone()];
        // These are about the target, which is not known here.
        (rule.backup, rule.prune) = (None, None);
    }
    Ok(())
}

/// Files that a bundle is made from, besides the images.
struct Inputs {
    have: Have,
    have_digests: Vec<String>,
    key: Option<BundleSigningKey>,
    key_digest: Option<String>,
    program: Option<Vec<u8>>,
}

impl Inputs {
    fn read(args: &CreateArgs) -> Result<Inputs> {
        let (mut have, mut have_digests) = (Have::default(), Vec::new());
        for path in &args.have {
            have_digests.push(add_have(&mut have, path)?);
        }
        let key = args.key.as_ref().map(|path| Ok::<_, Error>((path, read_file(path, MAX_KEY_BYTES)?))).transpose()?;
        let key_digest = key.as_ref().map(|(_, bytes)| Digest::sha256(bytes).to_string());
        let key = match key {
            Some((path, bytes)) => {
                Some(BundleSigningKey::from_pem(&String::from_utf8_lossy(&bytes), &path.display().to_string())?)
            }
            None => None,
        };
        let program = args.with_program.as_ref().map(|path| read_file(path, MAX_PROGRAM_BYTES)).transpose()?;
        Ok(Inputs { have, have_digests, key, key_digest, program })
    }
}

/// Adds what a file says that the receiver has. Returns its digest.
fn add_have(have: &mut Have, path: &Path) -> Result<String> {
    let label = path.display().to_string();
    let head = read_head(path);
    if Inventory::is_inventory(&head) {
        let bytes = read_file(path, MAX_HAVE_BYTES)?;
        have.add_inventory(&Inventory::decode(&bytes, &label)?);
        return Ok(Digest::sha256(&bytes).to_string());
    }
    if BundleIndex::is_index(&head) {
        let bytes = read_file(path, MAX_HAVE_BYTES)?;
        have.add_bundle(&BundleIndex::decode(&bytes, &label)?);
        return Ok(Digest::sha256(&bytes).to_string());
    }
    let bundle =
        OpenedBundle::open(PartReader::open(&[path.to_owned()])?, None).map_err(|error| match error.kind() {
            ErrorKind::Corrupt | ErrorKind::Invalid => error
                .with_kind(ErrorKind::Invalid)
                .with_hint("--have takes a file of `bundle inventory`, the index of an earlier bundle, or that bundle"),
            _ => error,
        })?;
    have.add_bundle(&bundle.index);
    Ok(Digest::sha256(&bundle.index_bytes).to_string())
}

/// Bytes that tell what a file is.
pub(super) const HEAD_BYTES: u64 = 64;

pub(super) fn read_head(path: &Path) -> Vec<u8> {
    use std::io::Read as _;
    let mut head = Vec::new();
    let _ = std::fs::File::open(path).and_then(|file| file.take(HEAD_BYTES).read_to_end(&mut head));
    head
}

/// Returns where the bundle is written.
fn find_output(args: &CreateArgs) -> Result<BundleOutput> {
    if args.out == Path::new("-") {
        if args.part_size.is_some() {
            let error = Error::new(ErrorKind::Invalid, "writing the bundle", "stdout cannot be cut into parts");
            return Err(error.with_hint("leave out --part-size, or write to a file"));
        }
        return Ok(BundleOutput::Stdout);
    }
    let is_folder = args.out.is_dir() || args.out.as_os_str().as_encoded_bytes().ends_with(b"/");
    let (folder, name) = match is_folder {
        true => (args.out.clone(), DEFAULT_NAME.to_owned()),
        false => {
            let folder = args.out.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
            (folder.to_owned(), args.out.file_name().unwrap_or_default().to_string_lossy().into_owned())
        }
    };
    let failed = |error: std::io::Error| {
        let detail = format!("{}: {error}", folder.display());
        Error::new(ErrorKind::Invalid, "writing the bundle", detail).with_source(error)
    };
    if is_folder {
        std::fs::create_dir_all(&folder).map_err(failed)?;
    }
    let folder = std::fs::canonicalize(&folder).map_err(failed)?;
    Ok(BundleOutput::Files(BundleFiles { folder, name, part_size: args.part_size }))
}

/// Refuses to replace a bundle, unless it is what an interrupted call has written, or an incomplete one of the same rules,
/// which `title` names. Another program is never replaced.
fn check_existing(output: &BundleOutput, work: &WorkFolder, program: Option<&[u8]>, title: &str) -> Result<()> {
    let BundleOutput::Files(files) = output else { return Ok(()) };
    let bundle = [files.list(), files.folder.join(&files.name), files.index(), files.checksums()];
    let mut existing = bundle.iter().find(|path| path.exists() && !work.has_written()).cloned();
    if existing.is_some() {
        let index = std::fs::read(files.index()).ok().and_then(|bytes| BundleIndex::decode(&bytes, "it").ok());
        if index.is_some_and(|index| index.header.missing_count > 0 && index.header.title == title) {
            existing = None;
        }
    }
    if let Some(program) = program {
        let path = files.folder.join(PROGRAM_MEMBER);
        if path == bundle[1] {
            let detail = format!("{} is the name of the program of --with-program", path.display());
            return Err(Error::new(ErrorKind::Invalid, "writing the bundle", detail).with_hint("choose another --out"));
        }
        // The same program may be there already, such as the one that runs.
        let is_other = || std::fs::read(&path).ok().as_deref() != Some(program);
        if path.exists() && !work.has_written() && is_other() {
            existing = Some(path);
        }
    }
    match existing {
        Some(existing) => {
            let detail = format!("{} exists", existing.display());
            Err(Error::new(ErrorKind::Invalid, "writing the bundle", detail)
                .with_hint("choose another --out, or pass --overwrite to replace it"))
        }
        None => Ok(()),
    }
}

async fn create(args: CreateArgs, inputs: Inputs, settings: &Settings, printer: &Printer) -> Result<Exit> {
    let output = find_output(&args)?;
    let parameters = serde_json::json!([
        env!("CARGO_PKG_VERSION"),
        fingerprint(&settings.config, None).to_string(),
        args.part_size,
        inputs.have_digests,
        inputs.key_digest,
        inputs.program.as_ref().map(|program| Digest::sha256(program).to_string()),
    ]);
    let parameters = Digest::sha256(parameters.to_string().as_bytes());
    let state = state_dir(args.state.as_ref())?;
    let work = WorkFolder::open(&state, &output.to_string(), &parameters, args.restart)?;
    let overwrite = args.overwrite;
    let run_args = RunArgs::from(args.run);
    let name = run_args.report.report_name.as_deref();
    let title = name.map_or_else(|| crate::report::rules_title(&settings.config), str::to_owned);
    if !overwrite {
        check_existing(&output, &work, inputs.program.as_deref(), &title)?;
    }
    let collector = BundleCollector::open(&work.file("collected"), inputs.have)?;
    let backend = Backend::embedded(&work.file("store")).await?;
    let options = run_args.report.resolve(settings)?;
    if matches!(output, BundleOutput::Stdout) && (options.on_stdout || run_args.json) {
        let error = Error::new(ErrorKind::Invalid, "writing the bundle", "a report on stdout would be in the bundle");
        return Err(error.with_hint("write the report to a file: --report=FILE"));
    }
    let context =
        RunContext::new(&run_args, settings, &backend, printer)?.with_bundle(BundleSide::Collect(collector.clone()));
    let (mut plan, mut index) = match work.read_plan() {
        Some((plan, index)) => {
            printer.line("going on with a bundle whose images are already chosen; --restart chooses them again");
            (plan, index)
        }
        None => {
            let notifier = build_notifier(&run_args, settings, printer)?;
            let StartOutcome::Created(mut made) = context.start(None).await? else {
                return Err(Error::new(ErrorKind::Local, "making the bundle", "another process is making it"));
            };
            let _lock = made.lock.take();
            let id = made.id;
            let ended = context.follow(id, &notifier, async |run| run.list_and_run(*made).await).await?;
            let exit = context.report(&ended, (&options, name), false, &notifier, printer).await?;
            if matches!(exit, Exit::Interrupted | Exit::CouldNotStart) {
                return Ok(exit);
            }
            let chosen = ChosenImages::read(&*backend.store, id, exit != Exit::Done).await?;
            if chosen.wanted.is_empty() {
                printer.error(
                    "no bundle is made: no image was found",
                    Some("`imgsync run --dry-run` shows what the rules select"),
                );
                return Ok(Exit::Failed);
            }
            let header = BundleHeader {
                created: jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
                imgsync: env!("CARGO_PKG_VERSION").to_owned(),
                title,
                have: collector.have().labels().to_vec(),
                program: inputs.program.as_ref().map(|program| Digest::sha256(program)),
                missing_count: 0,
                missing: Vec::new(),
            };
            let (plan, index) = make_plan(&collector, id, chosen, header, inputs.key.as_ref(), BTreeMap::new())?;
            work.write_plan(&plan, &index)?;
            (plan, index)
        }
    };
    let summary = loop {
        let (stop, program) = (context.stop_token(), inputs.program.clone());
        let written =
            write_bundle(&collector, &output, &work, (&plan, &index), program, context.client(), stop, printer);
        let WriteFailure { error, blob } = match Box::pin(written).await {
            Ok(summary) => break summary,
            Err(failure) => failure,
        };
        let Some(blob) =
            blob.filter(|blob| matches!(output, BundleOutput::Files(_)) && !plan.bad_blobs.contains_key(blob))
        else {
            printer.failure(&error);
            if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Corrupt) {
                printer.line(
                    "a chosen image cannot be read from its source any more: if its tag has moved, --restart chooses \
                     again; otherwise, leave it out by `tags` of its rule",
                );
            }
            return Ok(for_copy_error(&error, true));
        };
        // The index comes first, and it does not fit any more.
        printer.warning(&format!("{error}; writing the bundle again without the images that need it"));
        let mut bad_blobs = plan.bad_blobs.clone();
        bad_blobs.insert(blob, error.to_string());
        let header = BundleIndex::decode(&index, "the index of the bundle")?.header;
        let chosen = ChosenImages::read(&*backend.store, plan.batch, plan.is_incomplete).await?;
        (plan, index) = make_plan(&collector, plan.batch, chosen, header, inputs.key.as_ref(), bad_blobs)?;
        work.write_plan(&plan, &index)?;
    };
    printer.line(&summary.to_string());
    if run_args.json {
        let report = crate::report::Report::load(&*backend.store, plan.batch).await?;
        let mut text = Vec::new();
        crate::report::write_json(&report, options.shape.level(), &mut text).await?;
        let report: serde_json::Value = serde_json::from_slice(&text).unwrap_or_default();
        printer.data(&serde_json::json!({"report": report, "bundle": summary}).to_string());
    }
    drop(context);
    drop((backend, collector));
    work.remove()?;
    if !plan.left_out.is_empty() {
        let count = pluralize(plan.left_out.len() as u64, "image", "images");
        printer.error(
            &format!("the bundle is incomplete: {count} could not be read: {}", name_first(&plan.left_out)),
            Some("push them to their source again, and run the same command again"),
        );
    }
    Ok(if plan.is_incomplete || !plan.left_out.is_empty() { Exit::Failed } else { Exit::Done })
}

/// What a batch has chosen.
struct ChosenImages {
    /// Tags whose images were collected.
    wanted: Vec<WantedTag>,
    /// Whether the batch has not collected all that its rules select.
    is_incomplete: bool,
    /// What it has not collected, as far as it has names.
    missing: Vec<String>,
}

impl ChosenImages {
    async fn read(store: &dyn Store, batch: BatchId, is_incomplete: bool) -> Result<ChosenImages> {
        let (mut wanted, mut missing, mut from) = (Vec::new(), Vec::new(), 0);
        for unlisted in store.listing_failures(batch).await? {
            missing.push(unlisted.repository);
        }
        loop {
            let rows = store.tasks(batch, None, from, PAGE).await?;
            let Some(last) = rows.last() else { return Ok(ChosenImages { wanted, is_incomplete, missing }) };
            from = last.task.index + 1;
            for row in &rows {
                let (source, target) = (&row.task.spec.source, &row.task.spec.target);
                let is_collected = matches!(row.state, TaskState::Copied | TaskState::Unchanged);
                match target.repository.registry() {
                    Some((_, path)) if is_collected => wanted.push(WantedTag {
                        path,
                        tag: target.tag.clone(),
                        source: source.repository.to_string(),
                        source_tag: source.tag.clone(),
                    }),
                    _ => missing.push(source.to_string()),
                }
            }
        }
    }
}

/// Makes the plan of a bundle and its index, without the images that need blobs which turned out to be bad.
fn make_plan(
    collector: &BundleCollector,
    batch: BatchId,
    chosen: ChosenImages,
    mut header: BundleHeader,
    key: Option<&BundleSigningKey>,
    bad_blobs: BTreeMap<Digest, String>,
) -> Result<(CollectedPlan, Vec<u8>)> {
    let ChosenImages { wanted, is_incomplete, missing } = chosen;
    let (wanted, lacking) = split_by_content(collector, wanted, &bad_blobs.keys().cloned().collect())?;
    if wanted.is_empty() {
        let detail = "no image can be read from its source";
        return Err(Error::new(ErrorKind::NotFound, "making the bundle", detail));
    }
    let left_out: Vec<String> = lacking.iter().map(|tag| format!("{}:{}", tag.source, tag.source_tag)).collect();
    header.set_missing(missing.into_iter().chain(left_out.iter().cloned()));
    let index = build_index(collector, &wanted, header)?.encode();
    if index.len() as u64 > MAX_INDEX_BYTES {
        let detail = format!("its index would have {}", ByteSize(index.len() as u64));
        return Err(Error::new(ErrorKind::Refused, "making the bundle", detail).with_hint(format!(
            "at most {} can be read: make several bundles, with --rule",
            ByteSize(MAX_INDEX_BYTES)
        )));
    }
    let signature = key.map(|key| key.sign(&index)).transpose()?;
    let digest = Digest::sha256(&index);
    Ok((CollectedPlan { batch, is_incomplete, index: digest, signature, bad_blobs, left_out }, index))
}

fn name_first(names: &[String]) -> String {
    let named = names[..names.len().min(MAX_NAMED)].join(", ");
    match names.len().saturating_sub(MAX_NAMED) {
        0 => named,
        more => format!("{named} and {more} more"),
    }
}
