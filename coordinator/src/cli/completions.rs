//! `imgsync completions` and `imgsync man`: generated from the command lines of both programs.

use std::path::{Path, PathBuf};

use clap::{Args, CommandFactory as _, ValueEnum};
use clap_complete::Shell;
use clap_mangen::Man;
use imgsync_oci::error::{Error, ErrorKind, Result};

use super::Cli;
use super::exit::{Exit, fail};
use super::printer::Printer;

/// Prints a completion script, to be saved where the shell looks for it.
///
/// bash: ~/.local/share/bash-completion/completions/imgsync; zsh: _imgsync in a folder of $fpath; fish:
/// ~/.config/fish/completions/imgsync.fish.
#[derive(Debug, Args)]
pub(crate) struct CompletionsArgs {
    /// Shell to complete for
    #[arg(value_name = "SHELL")]
    pub(crate) shell: Shell,
    /// Program to complete
    #[arg(value_name = "PROGRAM", default_value = "imgsync")]
    pub(crate) program: Program,
}

/// Prints the manual page of imgsync; with a folder, writes one page per command and one for the worker into it.
#[derive(Debug, Args)]
pub(crate) struct ManArgs {
    /// Folder to write to, such as /usr/local/share/man/man1
    #[arg(value_name = "DIR")]
    pub(crate) folder: Option<PathBuf>,
}

/// One of the two programs.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Program {
    Imgsync,
    ImgsyncWorker,
}

impl Program {
    /// Returns its command line.
    pub(crate) fn command(self) -> clap::Command {
        match self {
            Program::Imgsync => Cli::command(),
            Program::ImgsyncWorker => imgsync_worker::cli::command(),
        }
    }
}

/// Runs `imgsync completions`.
pub(crate) fn completions(args: &CompletionsArgs, printer: &Printer) -> Exit {
    let mut command = args.program.command();
    let name = command.get_name().to_owned();
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, name, &mut script);
    printer.data(String::from_utf8_lossy(&script).trim_end());
    Exit::Done
}

/// Runs `imgsync man`.
pub(crate) fn man(args: &ManArgs, printer: &Printer) -> Exit {
    let Some(folder) = &args.folder else {
        let mut page = Vec::new();
        return match Man::new(Cli::command()).render(&mut page) {
            Ok(()) => {
                printer.data(String::from_utf8_lossy(&page).trim_end());
                Exit::Done
            }
            Err(error) => fail(&Error::new(ErrorKind::Local, "making the manual page", error.to_string()), printer),
        };
    };
    match write_man_pages(folder) {
        Ok(()) => {
            printer.line(&format!("manual pages written to {}", folder.display()));
            Exit::Done
        }
        Err(error) => fail(&error, printer),
    }
}

fn write_man_pages(folder: &Path) -> Result<()> {
    let operation = format!("writing the manual pages into {}", folder.display());
    let failed = |error: std::io::Error| Error::new(ErrorKind::Local, &operation, error.to_string()).with_source(error);
    std::fs::create_dir_all(folder).map_err(failed)?;
    for program in [Program::Imgsync, Program::ImgsyncWorker] {
        clap_mangen::generate_to(program.command(), folder).map_err(failed)?;
    }
    Ok(())
}
