//! Command lines of imgsync 2.1 (`gcr`, `flannel`), parsed by the parser of today's legacy commands.

use imgsync_config::YamlText;
use serde_saphyr::FlowMap;

use super::draft::{ConfigDraft, DraftNotify, DraftReport, DraftRule, DraftTelegram, parse_variable};
use crate::cli::{LegacyCommand, LegacySource};

pub(super) fn read_command(line: &str) -> Result<ConfigDraft, String> {
    let words = split_words(line)?;
    let original = LegacyCommand::parse_words(&words)?;
    let mut draft = ConfigDraft::default();
    let hub = "docker.io";
    let mut rule = DraftRule::default();
    match &original.source {
        LegacySource::Preset(name) => rule.preset = Some(name.clone()),
        LegacySource::Pattern(pattern) => rule.from = pattern.clone(),
    }
    rule.naming = Some(original.naming.clone().unwrap_or_else(|| "original".to_owned()));
    if rule.preset.is_none() && rule.naming.as_deref() == Some("original") {
        // Without a preset, the original names are the flat ones.
        rule.naming = Some("flat".to_owned());
    }
    rule.to = original.to.clone();
    if let Some(user) = &original.user {
        draft.set_username(hub, user);
        if rule.to.is_empty() && parse_variable(user).is_none() {
            rule.to = vec![format!("{hub}/{}", user.to_ascii_lowercase())];
        }
    }
    if let Some(password) = &original.password {
        draft.set_secret(hub, "password", password);
    }
    draft.settings.concurrency = original.concurrency.map(u32::from);
    draft.settings.timeout = original.timeout.as_ref().map(YamlText::new);
    if let Some((token, group, api)) = &original.telegram {
        let token = parse_variable(token).unwrap_or_else(|| {
            draft.require_variable("IMGSYNC_TELEGRAM_TOKEN", "the token of the Telegram bot");
            "IMGSYNC_TELEGRAM_TOKEN".to_owned()
        });
        let telegram = DraftTelegram {
            token: YamlText::variable(&token),
            group: YamlText::new(group),
            api: api.as_ref().map(YamlText::new),
        };
        draft.settings.notify = Some(FlowMap(DraftNotify { telegram }));
    }
    draft.settings.report = original.report.as_ref().map(|file| {
        let level = original.report_level;
        FlowMap(DraftReport { file: YamlText::new(file), level })
    });
    for flag in &original.ignored_flags {
        draft.add_note(format!("{flag} remains a flag: imgsync run {flag}"));
    }
    if rule.to.is_empty() {
        draft.add_note("no target: set `to:` in the rule, or a `username` for docker.io");
    }
    draft.add_rule(rule);
    Ok(draft)
}

/// Splits a command line into words like a shell: quotes and backslashes, no expansion.
fn split_words(line: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote: Option<char> = None;
    let mut letters = line.chars();
    while let Some(letter) = letters.next() {
        match (quote, letter) {
            (Some(open), letter) if letter == open => quote = None,
            (Some('"') | None, '\\') => match letters.next() {
                // A line continuation.
                Some('\n') => {}
                Some(next) => word.get_or_insert_default().push(next),
                None => return Err("the command ends within an escape".to_owned()),
            },
            (Some(_), letter) => word.get_or_insert_default().push(letter),
            (None, '"' | '\'') => {
                quote = Some(letter);
                word.get_or_insert_default();
            }
            (None, letter) if letter.is_whitespace() => words.extend(word.take()),
            (None, letter) => word.get_or_insert_default().push(letter),
        }
    }
    if quote.is_some() {
        return Err("the command ends within quotes".to_owned());
    }
    words.extend(word);
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::split_words;

    #[test]
    fn a_command_is_split_as_a_shell_splits_it() {
        let split = |line: &str| split_words(line).unwrap();
        assert_eq!(split("  imgsync gcr  --user me"), ["imgsync", "gcr", "--user", "me"]);
        assert_eq!(split(r#"a "b c" 'd "e' f\ g "h\"i""#), ["a", "b c", "d \"e", "f g", "h\"i"]);
        assert_eq!(split("a \\\n  b ''"), ["a", "b", ""]);
        assert!(split_words("a 'b").is_err() && split_words("a \\").is_err());
    }
}
