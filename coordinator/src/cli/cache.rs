//! `imgsync cache export|import`: copies the digest cache between stores.

use std::error::Error as _;
use std::fs::File;
use std::io::{BufReader, BufWriter, Write as _};
use std::path::{Path, PathBuf};

use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::humanize::pluralize;
use imgsync_store::{DigestCache, export_cache, import_cache, private_files};

use super::backend;
use super::exit::{Exit, fail};
use super::global::GlobalArgs;
use super::printer::Printer;
use super::settings::Settings;
use clap::{Args, Subcommand};

/// Exports and imports the digest cache: the source digest of each target tag, and when the tag was last seen.
#[derive(Debug, Args)]
pub(crate) struct CacheArgs {
    /// State folder to use even if a cluster is configured [default: the cluster's store, else the default state
    /// folder]
    #[arg(long, value_name = "DIR", global = true)]
    pub(crate) state: Option<PathBuf>,
    #[command(subcommand)]
    pub(crate) action: CacheAction,
}

#[derive(Debug, Subcommand)]
pub(crate) enum CacheAction {
    /// Write the digest cache as JSON lines
    Export {
        /// File to write [default: stdout]
        #[arg(value_name = "FILE")]
        file: Option<PathBuf>,
    },
    /// Read the output of `export`; newer entries in the cache are kept
    Import {
        /// File to read [default: stdin]
        #[arg(value_name = "FILE")]
        file: Option<PathBuf>,
    },
}

/// Runs the command.
pub(crate) async fn run(args: CacheArgs, global: &GlobalArgs, printer: &Printer) -> Exit {
    let settings = match Settings::load(global, printer) {
        Ok(settings) => settings,
        Err(exit) => return exit,
    };
    match execute(&args, &settings, printer).await {
        Ok(exit) => exit,
        Err(error) => fail(&error, printer),
    }
}

async fn execute(args: &CacheArgs, settings: &Settings, printer: &Printer) -> Result<Exit> {
    let store = backend::open_store(settings, args.state.as_ref()).await?;
    let cache: &dyn DigestCache = &*store;
    match &args.action {
        CacheAction::Export { file } => {
            let tags = match file.as_deref().filter(|file| *file != Path::new("-")) {
                Some(file) => match export_to(cache, file).await {
                    Ok(tags) => tags,
                    Err(error) => {
                        printer.report_file_error(&error);
                        return Ok(Exit::OutputLost);
                    }
                },
                None => match export_cache(cache, &mut std::io::stdout()).await {
                    Ok(tags) => tags,
                    Err(error) => match error.source().and_then(|below| below.downcast_ref::<std::io::Error>()) {
                        Some(unwritten) => {
                            printer.report_stdout_error(unwritten);
                            return Ok(Exit::Done);
                        }
                        None => return Err(error),
                    },
                },
            };
            printer.line(&pluralize(tags, "tag", "tags"));
            Ok(Exit::Done)
        }
        CacheAction::Import { file } => {
            let imported = match file.as_deref().filter(|file| *file != Path::new("-")) {
                Some(file) => {
                    let open = File::open(file).map_err(|error| {
                        Error::new(ErrorKind::Invalid, format!("reading {}", file.display()), error.to_string())
                    })?;
                    import_cache(cache, &mut BufReader::new(open)).await?
                }
                None => import_cache(cache, &mut BufReader::new(std::io::stdin())).await?,
            };
            printer.line(&pluralize(imported.tags, "tag", "tags"));
            for (line, reason) in &imported.refused {
                printer.warning(&format!("line {line} is invalid: {reason}"));
            }
            Ok(if imported.refused.is_empty() { Exit::Done } else { Exit::Failed })
        }
    }
}

/// Writes the cache to a file, readable only by its owner unless the file exists: it names private repositories.
async fn export_to(cache: &dyn DigestCache, file: &Path) -> Result<u64> {
    let failed = |error: std::io::Error| {
        Error::new(ErrorKind::Local, format!("writing {}", file.display()), error.to_string()).with_source(error)
    };
    // A temporary file, so that a failed export keeps an earlier one.
    let part = PathBuf::from(format!("{}.part", file.display()));
    let mut out = BufWriter::new(private_files::create_or_truncate(&part).map_err(failed)?);
    let tags = export_cache(cache, &mut out).await?;
    out.flush().map_err(failed)?;
    if let Ok(before) = std::fs::metadata(file) {
        std::fs::set_permissions(&part, before.permissions()).map_err(failed)?;
    }
    std::fs::rename(&part, file).map_err(failed)?;
    Ok(tags)
}
