//! `docs/reference/cli.md`: every command and option of both programs, generated from their command lines. A test keeps it
//! current.

use std::fmt::Write as _;

use clap::{Arg, ArgAction, Command};

use super::completions::Program;

const PAGE_HEADER: &str = "# Commands and options

All commands of `imgsync`, and `imgsync-worker`. This page is generated from the programs
(`UPDATE_DOCS=1 cargo nextest run reference`), and contains what `--help` prints. Manual pages: `imgsync man DIR`;
completions: `imgsync completions SHELL`.

Data goes to stdout, messages go to stderr. Exit codes: 0 success · 1 some images failed · 2 wrong usage or
configuration · 3 cannot start (registry, broker or store unreachable), or output cannot be written · 4 interrupted, can
be resumed.
";

/// Renders the page.
fn render_page() -> String {
    let mut page = PAGE_HEADER.to_owned();
    for program in [Program::Imgsync, Program::ImgsyncWorker] {
        let mut command = program.command();
        command.build();
        write_section(&command, command.get_name(), &[], &mut page);
    }
    page
}

/// Writes a command and its subcommands. `above`: options described with a parent command.
fn write_section(command: &Command, name: &str, above: &[&str], page: &mut String) {
    let _ = writeln!(page, "\n## {name}\n");
    if let Some(about) = command.get_long_about().or(command.get_about()) {
        let _ = writeln!(page, "{}\n", escape_markdown(&about.to_string()));
    }
    let aliases: Vec<String> = command.get_visible_aliases().map(|alias| format!("`{alias}`")).collect();
    if !aliases.is_empty() {
        let _ = writeln!(page, "Also: {}\n", aliases.join(", "));
    }
    let usage = command.clone().render_usage().to_string();
    let usage = usage.trim_start_matches("Usage: ");
    let _ = writeln!(page, "```\n{usage}\n```");
    let arguments: Vec<&Arg> = command
        .get_arguments()
        .filter(|arg| !arg.is_hide_set() && !["help", "version"].contains(&arg.get_id().as_str()))
        .filter(|arg| !above.contains(&arg.get_id().as_str()))
        .collect();
    if !arguments.is_empty() {
        page.push('\n');
    }
    for arg in &arguments {
        let _ = writeln!(page, "* {}", format_argument(arg));
    }
    let global: Vec<&str> =
        command.get_arguments().filter(|arg| arg.is_global_set()).map(|arg| arg.get_id().as_str()).collect();
    let above = [above, &global].concat();
    for below in command.get_subcommands().filter(|below| below.get_name() != "help") {
        write_section(below, &format!("{name} {}", below.get_name()), &above, page);
    }
}

/// Formats an option: `--name VALUE`, its help, possible values and default.
fn format_argument(arg: &Arg) -> String {
    let value = arg.get_value_names().and_then(|names| names.first()).map(ToString::to_string);
    let takes = matches!(arg.get_action(), ArgAction::Set | ArgAction::Append);
    let mut spelled = match (arg.get_short(), arg.get_long()) {
        (Some(short), Some(long)) => format!("-{short}, --{long}"),
        (Some(short), None) => format!("-{short}"),
        (None, Some(long)) => format!("--{long}"),
        (None, None) => String::new(),
    };
    for alias in arg.get_visible_aliases().unwrap_or_default() {
        let _ = write!(spelled, ", --{alias}");
    }
    if takes && let Some(value) = value {
        // `--report[=FILE]`: the value is optional.
        let is_optional = arg.get_num_args().is_some_and(|number| number.min_values() == 0);
        spelled = match (spelled.is_empty(), is_optional) {
            (true, _) => value,
            (false, true) => format!("{spelled}[={value}]"),
            (false, false) => format!("{spelled} {value}"),
        };
    }
    let help = arg.get_long_help().or(arg.get_help()).map(ToString::to_string).unwrap_or_default();
    let mut words = escape_markdown(&help).replace("\n\n", " — ");
    let possible: Vec<String> = match takes {
        true => arg
            .get_possible_values()
            .iter()
            .filter(|value| !value.is_hide_set())
            .map(|value| value.get_name().to_owned())
            .collect(),
        false => Vec::new(),
    };
    if !possible.is_empty() {
        let _ = write!(words, ". One of: {}", possible.join(", "));
    }
    let default: Vec<String> =
        arg.get_default_values().iter().map(|value| value.to_string_lossy().into_owned()).collect();
    if takes && !default.is_empty() {
        let _ = write!(words, " (`{}`)", default.join(","));
    }
    if let Some(variable) = arg.get_env() {
        let _ = write!(words, ". Environment: `{}`", variable.to_string_lossy());
    }
    format!("`{spelled}`: {words}")
}

/// Escapes Markdown markup.
fn escape_markdown(text: &str) -> String {
    text.trim().replace('<', "\\<").replace('*', "\\*")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `UPDATE_DOCS=1 cargo nextest run reference` regenerates it.
    #[test]
    fn the_reference_of_commands_is_current() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/reference/cli.md");
        let current = render_page();
        if std::env::var_os("UPDATE_DOCS").is_some() {
            std::fs::write(path, &current).unwrap();
        }
        assert_eq!(std::fs::read_to_string(path).unwrap_or_default(), current, "run the tests with UPDATE_DOCS=1");
    }
}
