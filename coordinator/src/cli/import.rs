//! `imgsync config import`: prints a configuration on stdout, and omissions and required variables on stderr.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use clap::Args;
use imgsync_config::{Config, ConfigFile};
use imgsync_model::naming::NamingStyle;
use imgsync_oci::humanize::pluralize;

use super::exit::Exit;
use super::printer::Printer;
use crate::import::{self, ConfigDraft, ImportFormat, ImportHints};
use crate::presets;

const MAX_FILE_BYTES: u64 = 16 << 20;

/// Converts the configuration of another program.
#[derive(Debug, Clone, Args)]
pub(crate) struct ImportArgs {
    /// skopeo's sync YAML, regsync's YAML, or image-syncer's images (YAML or JSON); - is stdin
    #[arg(value_name = "FILE", required_unless_present = "command")]
    pub(crate) file: Option<PathBuf>,
    /// A command line of imgsync 2.1, in quotes: "imgsync gcr --user me --namespace istio-release"
    #[arg(long, value_name = "COMMAND", conflicts_with_all = ["file", "auth", "format"])]
    pub(crate) command: Option<String>,
    /// Format of the file: skopeo, regsync or image-syncer [default: detected]
    #[arg(long, value_name = "PROGRAM", value_parser = |text: &str| text.parse::<ImportFormat>())]
    pub(crate) format: Option<ImportFormat>,
    /// Credentials file of image-syncer
    #[arg(long, value_name = "FILE")]
    pub(crate) auth: Option<PathBuf>,
    /// Target, which skopeo's file does not contain: registry.example.com/mirror
    #[arg(long, value_name = "TARGET")]
    pub(crate) to: Option<String>,
    /// Naming of the targets [default: as skopeo without --scoped; full: as with --scoped]
    #[arg(long, value_name = "STYLE", value_parser = |text: &str| text.parse::<NamingStyle>())]
    pub(crate) naming: Option<NamingStyle>,
}

/// Runs the command.
pub(crate) fn run(args: &ImportArgs, printer: &Printer) -> Exit {
    let draft = match build_draft(args, printer) {
        Ok(draft) => draft,
        Err(error) => {
            printer.error(&error, None);
            return Exit::Usage;
        }
    };
    let yaml = draft.to_yaml();
    printer.data(yaml.trim_end());
    for note in draft.notes() {
        printer.line(&format!("note: {note}"));
    }
    for (name, what) in draft.variables() {
        printer.line(&format!("set {name}: {what} (omitted from the configuration)"));
    }
    let is_right = check_draft(&yaml, printer);
    let left_out = draft.omissions();
    if left_out > 0 {
        let (what, is) = (pluralize(left_out as u64, "part", "parts"), if left_out == 1 { "is" } else { "are" });
        printer.error(
            &format!("{what} {is} left out: the result copies other images, tags, names or content than the original (see `left out`)"),
            None,
        );
        return Exit::Failed;
    }
    is_right
}

fn build_draft(args: &ImportArgs, printer: &Printer) -> Result<ConfigDraft, String> {
    if let Some(command) = &args.command {
        return import::import_command(command);
    }
    let path = args.file.as_deref().unwrap_or(Path::new("-"));
    let hints = ImportHints {
        to: args.to.clone(),
        naming: args.naming.as_ref().map(ToString::to_string),
        auth: args.auth.as_deref().map(read_file).transpose()?,
    };
    let (format, draft) = import::import_file(&read_file(path)?, args.format, &hints)
        .map_err(|error| format!("cannot import {}: {error}", path.display()))?;
    printer.line(&format!("reading {} as a file of {format}", path.display()));
    Ok(draft)
}

fn read_file(path: &Path) -> Result<String, String> {
    let failed = |error: std::io::Error| format!("cannot read {}: {error}", path.display());
    let mut text = String::new();
    match path == Path::new("-") {
        true => std::io::stdin().take(MAX_FILE_BYTES).read_to_string(&mut text),
        false => std::fs::File::open(path).map_err(failed)?.take(MAX_FILE_BYTES).read_to_string(&mut text),
    }
    .map_err(failed)?;
    Ok(text)
}

/// Validates the generated configuration, and prints what has to be fixed by hand.
fn check_draft(yaml: &str, printer: &Printer) -> Exit {
    let presets = presets::known_presets();
    let file = ConfigFile {
        name: "the configuration above",
        text: yaml,
        // The real values are set later.
        environment: &|_| Some("set-later".to_owned()),
        presets: Some(&presets),
    };
    match Config::read(&file) {
        Ok(_) => Exit::Done,
        Err(errors) => {
            printer.raw(&errors.to_string());
            printer.error("fix these errors before you use the configuration", None);
            Exit::Failed
        }
    }
}
