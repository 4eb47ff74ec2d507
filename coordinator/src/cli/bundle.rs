//! `imgsync bundle`: carries images between machines without a network between them.

mod create;
mod inventory;
mod load;
mod show;
mod work;
mod write;

use std::io::Read;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use imgsync_bundle::{BundleStream, OpenedBundle, PartReader, PublicKey};
use imgsync_layout::{PipeReader, PipeTimeout, PipeTimeouts};
use imgsync_oci::error::{Error, ErrorKind, Result};
use tokio_util::sync::CancellationToken;

use self::create::CreateArgs;
use self::inventory::InventoryArgs;
use self::load::LoadArgs;
use self::show::{BundleDiffArgs, BundleListArgs, BundleVerifyArgs};
use super::exit::Exit;
use super::global::GlobalArgs;
use super::printer::Printer;
use super::stdin::open_pipe;
use super::stdin_archive::START_TIMEOUT;

const OPENING: &str = "opening a bundle";

/// `imgsync bundle`.
#[derive(Debug, Args)]
pub(crate) struct BundleArgs {
    #[command(subcommand)]
    pub(crate) action: BundleAction,
}

#[derive(Debug, Subcommand)]
pub(crate) enum BundleAction {
    /// Make a bundle of the images that the rules select
    ///
    /// The rules' `to` is not used: `bundle load --to` takes its place, and names are those below it. Run the same command again
    /// after an interruption: it goes on behind the last byte. Reports and exit codes are those of `run`.
    Create(Box<CreateArgs>),
    /// Load a bundle into a registry
    ///
    /// Checks before anything is pushed that all content is in the bundle or at the target. Run the same command again after an
    /// interruption: what is at the target is not pushed again. Reports and exit codes are those of `run`.
    Load(Box<LoadArgs>),
    /// Check the parts, the signature and all content of a bundle
    Verify(BundleVerifyArgs),
    /// List the tags of a bundle
    List(BundleListArgs),
    /// Compare the tags of two bundles
    Diff(BundleDiffArgs),
    /// Write a file with what a registry has, for `bundle create --have`
    ///
    /// Reads manifests and referrers, and no blob.
    Inventory(InventoryArgs),
}

/// Runs the command.
pub(crate) async fn run(args: BundleArgs, global: &GlobalArgs, printer: &Printer) -> Exit {
    match args.action {
        BundleAction::Create(args) => create::run(*args, global, printer).await,
        BundleAction::Load(args) => load::run(*args, global, printer).await,
        BundleAction::Verify(args) => show::verify(&args, printer).await,
        BundleAction::List(args) => show::list(&args, printer),
        BundleAction::Diff(args) => show::diff(&args, printer),
        BundleAction::Inventory(args) => inventory::run(&args, global, printer).await,
    }
}

/// Maximum size of the file of a key. One of RSA with 8192 bits has 2 KiB.
pub(super) const MAX_KEY_BYTES: u64 = 64 << 10;

/// Reads a file whole, within a limit.
pub(super) fn read_file(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let operation = format!("reading {}", path.display());
    let failed =
        |error: std::io::Error| Error::new(ErrorKind::Invalid, &operation, error.to_string()).with_source(error);
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(failed)?;
    // A pipe says nothing of its length.
    file.take(limit + 1).read_to_end(&mut bytes).map_err(failed)?;
    match bytes.len() as u64 > limit {
        true => Err(Error::new(ErrorKind::Invalid, &operation, format!("it has more than {limit} bytes"))),
        false => Ok(bytes),
    }
}

/// Reads a public key, if one is named.
fn read_public_key(path: Option<&PathBuf>) -> Result<Option<PublicKey>> {
    let Some(path) = path else { return Ok(None) };
    let text = read_file(path, MAX_KEY_BYTES)?;
    PublicKey::from_pem(&String::from_utf8_lossy(&text), &path.display().to_string()).map(Some)
}

/// Name of stdin as a bundle.
const STDIN: &str = "-";

/// Whether the bundle comes from stdin, which is then all of it.
fn is_stdin(paths: &[PathBuf]) -> Result<bool> {
    let is_named = paths.iter().any(|path| path == Path::new(STDIN));
    if is_named && paths.len() > 1 {
        let error =
            Error::new(ErrorKind::Invalid, OPENING, "stdin is a whole bundle, and other paths are named beside it");
        return Err(error.with_hint("join the parts in their order: `cat bundle.tar.0* | imgsync bundle …`"));
    }
    Ok(is_named)
}

/// Opens a bundle in files, and says whether its signature was verified.
fn open_bundle(paths: &[PathBuf], key: Option<&PathBuf>, printer: &Printer) -> Result<OpenedBundle> {
    if is_stdin(paths)? {
        return Err(Error::new(ErrorKind::Invalid, OPENING, "this command does not read a bundle from stdin")
            .with_hint("save it to a file first: `cat > bundle.tar`"));
    }
    open_parts(PartReader::open(paths)?, key, printer)
}

fn open_parts(reader: PartReader, key: Option<&PathBuf>, printer: &Printer) -> Result<OpenedBundle> {
    let key = read_public_key(key)?;
    let bundle = OpenedBundle::open(reader, key.as_ref())?;
    print_signature(key.is_some(), bundle.signature.is_some(), printer);
    Ok(bundle)
}

/// Saves a bundle from stdin to a file without a name, and opens it.
async fn open_spooled_bundle(
    spool: &Path,
    timeouts: PipeTimeouts,
    key: Option<&PathBuf>,
    printer: &Printer,
) -> Result<OpenedBundle> {
    // Nothing waits for the end of a signal: it ends the program, and the file with it.
    let file = super::stdin::spool("a bundle", spool, timeouts, &CancellationToken::new()).await?;
    open_parts(PartReader::open_nameless(file, STDIN)?, key, printer)
}

/// Opens a bundle that is read forward, and says whether its signature was verified.
fn open_stream(
    input: Box<dyn Read + Send>,
    key: Option<&PathBuf>,
    printer: &Printer,
) -> Result<BundleStream<Box<dyn Read + Send>>> {
    let key = read_public_key(key)?;
    let bundle = tokio::task::block_in_place(|| BundleStream::open(input, STDIN, key.as_ref()))?;
    print_signature(key.is_some(), bundle.signature.is_some(), printer);
    Ok(bundle)
}

/// Opens stdin for reading forward, with time limits.
fn open_input() -> Result<Box<dyn Read + Send>> {
    let stdin = open_pipe(OPENING, "a bundle")?;
    let limit = PipeTimeout { limit: START_TIMEOUT, option: None };
    let timeouts = PipeTimeouts { start: limit, stall: limit };
    let reader = PipeReader::start(stdin, timeouts, CancellationToken::new());
    let reader = reader.map_err(|error| Error::new(ErrorKind::Local, OPENING, error.to_string()).with_source(error))?;
    Ok(Box::new(reader))
}

fn print_signature(is_verified: bool, is_signed: bool, printer: &Printer) {
    match (is_verified, is_signed) {
        (true, _) => printer.line("signature verified"),
        (false, true) => printer.warning("the signature is not verified: pass --public-key FILE to verify it"),
        (false, false) => printer.warning("the bundle is not signed, and so not verified"),
    }
}
