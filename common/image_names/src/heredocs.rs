//! Here-documents of Dockerfiles, as BuildKit recognises them: a word `<<END` of `RUN`, `COPY` or `ADD`.

/// A here-document.
pub(crate) struct Heredoc {
    /// Line that ends it.
    end: String,
    /// Line that ends it for a shell, if another follows without a space: `<<END>file`.
    shell_end: Option<String>,
    /// Whether tabs may stand before the end: `<<-END`.
    is_indented: bool,
}

impl Heredoc {
    /// Returns whether a line ends it.
    pub(crate) fn is_end(&self, line: &str) -> bool {
        let line = if self.is_indented { line.trim_start_matches('\t') } else { line };
        line == self.end || self.shell_end.as_deref() == Some(line)
    }

    /// Returns the line that ends it.
    pub(crate) fn end(&self) -> &str {
        self.shell_end.as_deref().unwrap_or(&self.end)
    }
}

/// Returns the here-documents that an instruction opens.
pub(crate) fn find(instruction: &str) -> Vec<Heredoc> {
    let mut rest = instruction.trim_start();
    loop {
        let (keyword, after) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
        match keyword.to_ascii_uppercase().as_str() {
            "ONBUILD" => rest = after.trim_start(),
            "RUN" | "COPY" | "ADD" => break,
            _ => return Vec::new(),
        }
    }
    split_words(rest).into_iter().filter_map(parse).collect()
}

/// Parses a word such as `<<END`, `3<<-END` or `<<"END"`.
fn parse(word: &str) -> Option<Heredoc> {
    let rest = word.trim_start_matches(|c: char| c.is_ascii_digit()).strip_prefix("<<")?;
    let (rest, is_indented) = rest.strip_prefix('-').map_or((rest, false), |rest| (rest, true));
    // `<<<word` is a string for a shell.
    if rest.contains('<') {
        return None;
    }
    let end: String = rest.chars().filter(|c| !matches!(c, '"' | '\'' | '\\')).collect();
    let shell_end = rest
        .split_once(['>', '|', ';', '&', ')'])
        .map(|(end, _)| end.to_owned())
        .filter(|end| !end.is_empty() && !end.contains(['"', '\'', '\\']));
    (!end.is_empty()).then_some(Heredoc { end, shell_end, is_indented })
}

/// Splits a text at white space outside of quotes.
fn split_words(text: &str) -> Vec<&str> {
    let (mut words, mut start, mut quote, mut is_escaped) = (Vec::new(), 0, None, false);
    for (at, c) in text.char_indices() {
        match (c, quote) {
            _ if is_escaped => is_escaped = false,
            ('\\', None | Some('"')) => is_escaped = true,
            ('"' | '\'', None) => quote = Some(c),
            (_, Some(open)) if c == open => quote = None,
            (_, None) if c.is_whitespace() => {
                words.push(&text[start..at]);
                start = at + c.len_utf8();
            }
            _ => {}
        }
    }
    words.push(&text[start..]);
    words.retain(|word| !word.is_empty());
    words
}
