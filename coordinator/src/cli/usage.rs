//! The typed command line: rewritten where another spelling is unambiguous, and explained where it is wrong.

use std::ffi::OsString;
use std::path::Path;

use clap::CommandFactory as _;
use clap::error::{ContextKind, Error, ErrorKind};

use super::typed_line::{TypedLine, quote};
use super::{Cli, foreign_usage};
use crate::presets;
use crate::report::ReportFormat;

/// Joins `--report FILE` to `--report=FILE` if FILE has the extension of a report. Otherwise the next word is an
/// argument of the command, for the value of `--report` is optional.
pub(super) fn join_report_file(typed: Vec<OsString>) -> Vec<OsString> {
    let mut words: Vec<OsString> = Vec::with_capacity(typed.len());
    let mut typed = typed.into_iter().peekable();
    while let Some(word) = typed.next() {
        let file = (word == "--report")
            .then(|| typed.next_if(|next| !next.to_string_lossy().starts_with('-') && is_report_file(Path::new(next))))
            .flatten();
        match file {
            Some(file) => {
                let mut joined = OsString::from("--report=");
                joined.push(file);
                words.push(joined);
            }
            None => words.push(word),
        }
    }
    words
}

fn is_report_file(path: &Path) -> bool {
    ReportFormat::from_path(path).is_some()
}

/// Returns what to type instead of a command line that the parser rejected.
pub(super) fn hint(error: &Error, typed: &[OsString]) -> Option<String> {
    let words = typed.iter().skip(1).map(|word| word.to_string_lossy().into_owned()).collect();
    let line = TypedLine::new(words);
    let context = |kind| error.get(kind).map(ToString::to_string).unwrap_or_default();
    match error.kind() {
        ErrorKind::InvalidSubcommand => {
            let word = context(ContextKind::InvalidSubcommand);
            let has_guess = error.get(ContextKind::SuggestedSubcommand).is_some();
            foreign_usage::hint_for_command(&word, &line)
                .or_else(|| if has_guess { None } else { hint_for_slip(&word, &line) })
                .or_else(|| hint_for_argument(&word, &line, has_guess))
        }
        ErrorKind::UnknownArgument => {
            let argument = context(ContextKind::InvalidArg);
            match argument.starts_with('-') {
                true => foreign_usage::hint_for_option(&line),
                false => hint_for_surplus(&line),
            }
        }
        ErrorKind::MissingRequiredArgument if line.command() == "verify" => {
            let file = line.arguments().find(|word| is_configuration(word))?;
            Some(format!("type `imgsync verify -c {}`", quote(file)))
        }
        ErrorKind::ValueValidation
            if ["sync", "copy", "cp"].contains(&line.command()) && context(ContextKind::InvalidValue).contains('*') =>
        {
            Some(
                "a pattern selects many images: write a rule (`from:`, `to:`) in imgsync.yaml and type `imgsync run`"
                    .to_owned(),
            )
        }
        ErrorKind::MissingRequiredArgument | ErrorKind::ValueValidation | ErrorKind::InvalidValue => {
            foreign_usage::hint_for_option(&line)
        }
        _ => None,
    }
}

/// Returns what to type for a command with one wrong, missing, surplus or transposed letter, such as `rnu`. The parser
/// guesses only from words that are longer or more alike.
fn hint_for_slip(word: &str, line: &TypedLine) -> Option<String> {
    let program = Cli::command();
    let at = line.words.iter().position(|typed| typed == word)?;
    let (parent, below) = match Some(at) == line.command_position() {
        true => (&program, String::new()),
        false => (program.find_subcommand(line.command())?, format!("{} ", line.command())),
    };
    let commands = parent.get_subcommands().filter(|command| !command.is_hide_set()).map(clap::Command::get_name);
    let meant = commands.into_iter().find(|name| strsim::damerau_levenshtein(name, word) == 1)?;
    // Without the other words, which may be secrets.
    Some(format!("did you mean `imgsync {below}{meant}`?"))
}

fn is_configuration(word: &str) -> bool {
    word.ends_with(".yaml") || word.ends_with(".yml")
}

/// Returns what to type if the first word is not a command, but an argument of one.
fn hint_for_argument(word: &str, line: &TypedLine, has_guess: bool) -> Option<String> {
    let at = line.command_position().filter(|at| line.words[*at] == word)?;
    let before = |command: &[&str]| {
        let mut words = line.words.clone();
        words.splice(at..at, command.iter().map(|word| (*word).to_owned()));
        TypedLine::new(words).to_shell().map(|line| format!("type `{line}`"))
    };
    let typed = match () {
        () if is_configuration(word) => before(&["run"]),
        () if word.contains(['/', ':']) && line.arguments().next().is_some() => before(&["sync"]),
        () if word.contains(['/', ':']) => before(&["inspect"]),
        () if word.parse().is_ok_and(|preset| presets::find(&preset).is_ok()) => before(&["run", "--preset"]),
        () => None,
    };
    typed.or_else(|| (!has_guess).then(|| "`imgsync --help` lists the commands".to_owned()))
}

/// Returns what to type if a command takes fewer arguments.
fn hint_for_surplus(line: &TypedLine) -> Option<String> {
    let arguments: Vec<&str> = line.arguments().collect();
    match (line.command(), &arguments[..]) {
        ("run" | "once", [source, target, ..]) if [source, target].iter().all(|word| word.contains(['/', ':'])) => {
            let mut words = line.words.clone();
            let at = line.command_position()?;
            words[at] = "sync".to_owned();
            TypedLine::new(words).to_shell().map(|line| format!("`run` runs rules; for one image type `{line}`"))
        }
        ("sync" | "copy" | "cp", [_, _, _, ..]) => Some(
            "`sync` copies one image to one target; a rule takes several (`to:`), see docs/reference/configuration.md"
                .to_owned(),
        ),
        ("gcr" | "flannel", [file, ..]) if is_configuration(file) => {
            Some(format!("name the configuration after -c: `imgsync {} -c {}`", line.command(), quote(file)))
        }
        _ => foreign_usage::hint_for_option(line),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::super::Cli;
    use super::*;

    fn words(line: &str) -> Vec<OsString> {
        line.split(' ').map(OsString::from).collect()
    }

    fn hint_for(line: &str) -> Option<String> {
        let typed = words(line);
        hint(&Cli::try_parse_from(join_report_file(typed.clone())).unwrap_err(), &typed)
    }

    #[test]
    fn the_file_of_a_report_may_follow_after_a_blank() {
        let joined = |line: &str| join_report_file(words(line)).join(std::ffi::OsStr::new(" "));
        assert_eq!(joined("imgsync run --report r.html -q"), "imgsync run --report=r.html -q");
        // Not a report: the configuration, a batch, the next option.
        for line in
            ["imgsync run --report a.yaml", "imgsync batch report --report 0190a", "imgsync run --report --json"]
        {
            assert_eq!(joined(line), line);
        }
    }

    #[test]
    fn arguments_without_a_command_are_recognized() {
        for (typed, wanted) in [
            ("imgsync a/imgsync.yaml", "type `imgsync run a/imgsync.yaml`"),
            ("imgsync -q gcr.io/a/b:1 r.example/b", "type `imgsync -q sync gcr.io/a/b:1 r.example/b`"),
            ("imgsync gcr.io/a/b:1", "type `imgsync inspect gcr.io/a/b:1`"),
            ("imgsync kubeadm", "type `imgsync run --preset kubeadm`"),
            ("imgsync nonsense", "`imgsync --help` lists the commands"),
            (
                "imgsync run gcr.io/a/b r.example/b",
                "`run` runs rules; for one image type `imgsync sync gcr.io/a/b r.example/b`",
            ),
            ("imgsync verify mirror.yaml", "type `imgsync verify -c mirror.yaml`"),
        ] {
            assert_eq!(hint_for(typed).as_deref(), Some(wanted), "{typed}");
        }
        // The parser's own guess is right.
        assert_eq!(hint_for("imgsync runn"), None);
    }

    #[test]
    fn secrets_are_not_repeated() {
        let line = "imgsync copy a r.example/b --all --user me --password hunter2 --broker=amqp://me:hunter3@h";
        let hint = hint_for(line).unwrap();
        assert!(!hint.contains("hunter") && hint.contains("--password '***'"), "{hint}");
        let hint = hint_for("imgsync copy a r.example/b --dest-creds me:hunter2 --src-creds=me:hunter3").unwrap();
        assert!(!hint.contains("hunter"), "{hint}");
    }
}
