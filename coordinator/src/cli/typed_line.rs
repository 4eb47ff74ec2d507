//! The words of a command line as they were typed, to show a better one.

use clap::{CommandFactory as _, Parser as _};

use super::Cli;

/// Options whose value is a secret, or an address that may contain one.
const SECRET_OPTIONS: [&str; 4] = ["--password", "--telegram-token", "--broker", "--store"];
/// Options of every command that take a value.
const GLOBAL_OPTIONS_WITH_VALUE: [&str; 5] = ["-c", "--config", "--broker", "--store", "--log-format"];

/// The words of a command line, without the program's name.
pub(super) struct TypedLine {
    pub(super) words: Vec<String>,
    /// Position of the command, if there is one.
    command: Option<usize>,
}

impl TypedLine {
    /// Finds the command among the words.
    pub(super) fn new(words: Vec<String>) -> TypedLine {
        let mut at = 0;
        while let Some(word) = words.get(at) {
            match word.starts_with('-') {
                true if GLOBAL_OPTIONS_WITH_VALUE.contains(&word.as_str()) => at += 2,
                true => at += 1,
                false => break,
            }
        }
        let command = (at < words.len()).then_some(at);
        TypedLine { words, command }
    }

    /// Returns the position of the command.
    pub(super) fn command_position(&self) -> Option<usize> {
        self.command
    }

    /// Returns the command as typed.
    pub(super) fn command(&self) -> &str {
        self.command.map_or("", |at| &self.words[at])
    }

    /// Returns the words after the command that are no options, as far as that can be seen without knowing which take
    /// a value.
    pub(super) fn arguments(&self) -> impl Iterator<Item = &str> {
        let from = self.command.map_or(0, |at| at + 1);
        self.words[from..].iter().map(String::as_str).filter(|word| !word.starts_with('-'))
    }

    /// Parses the line. `None` if the program does not take it.
    pub(super) fn parse(&self) -> Option<Cli> {
        let program = std::iter::once("imgsync");
        Cli::try_parse_from(program.chain(self.words.iter().map(String::as_str))).ok()
    }

    /// Formats the line as it is typed into a shell, without secrets. `None` if the program does not take it.
    pub(super) fn to_shell(&self) -> Option<String> {
        self.parse()?;
        let mut shown = vec!["imgsync".to_owned()];
        let mut is_secret = false;
        for word in &self.words {
            let option = word.split_once('=').map_or(word.as_str(), |(option, _)| option);
            let hides = SECRET_OPTIONS.contains(&option);
            shown.push(match (is_secret, hides && option != word) {
                (true, _) => "'***'".to_owned(),
                (false, true) => format!("{option}='***'"),
                (false, false) => quote(word),
            });
            is_secret = hides && option == word;
        }
        Some(shown.join(" "))
    }
}

/// Quotes a word for a shell if it needs that.
pub(super) fn quote(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=@,+%".contains(c);
    match !word.is_empty() && word.chars().all(is_plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', "'\\''")),
    }
}

/// Returns whether a command knows an option.
pub(super) fn knows_option(command: &str, option: &str) -> bool {
    let mut program = Cli::command();
    program.build();
    let Some(command) = program.find_subcommand(command) else { return false };
    command.get_arguments().any(|known| {
        let longs = known.get_long_and_visible_aliases().unwrap_or_default();
        let short = known.get_short().map(|short| format!("-{short}"));
        longs.iter().any(|long| option == format!("--{long}")) || short.as_deref() == Some(option)
    })
}
