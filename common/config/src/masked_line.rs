//! Lines of a configuration in error messages, without their secrets.

use std::ops::Range;

/// Replacement for a secret, whatever its length.
const MASK: &str = "***";

/// A line whose secrets are replaced by `***`. Names of variables stay: `${PASSWORD}` is no secret.
pub(super) struct MaskedLine<'a> {
    text: &'a str,
    line: Range<usize>,
    /// Disjoint and sorted, at character boundaries.
    hidden: Vec<Range<usize>>,
}

impl<'a> MaskedLine<'a> {
    /// Masks the parts of a line of `text` that are in `secrets`, and passwords in its URLs.
    pub(super) fn new(text: &'a str, line: Range<usize>, secrets: &[Range<usize>]) -> MaskedLine<'a> {
        let mut ranges: Vec<Range<usize>> =
            secrets.iter().map(|secret| secret.start.max(line.start)..secret.end.min(line.end)).collect();
        ranges.extend(url_passwords(text, &line));
        let variables = variables(text, &line);
        let mut hidden: Vec<Range<usize>> = Vec::new();
        let mut at = line.start;
        for (offset, c) in text[line.clone()].char_indices() {
            let byte = line.start + offset;
            let is_hidden = ranges.iter().any(|range| range.contains(&byte))
                && !variables.iter().any(|variable| variable.contains(&byte));
            match hidden.last_mut() {
                Some(last) if is_hidden && last.end == at => last.end = byte + c.len_utf8(),
                _ if is_hidden => hidden.push(byte..byte + c.len_utf8()),
                _ => {}
            }
            at = byte + c.len_utf8();
        }
        MaskedLine { text, line, hidden }
    }

    /// Returns the line.
    pub(super) fn show(&self) -> String {
        self.render(self.line.clone())
    }

    /// Returns what is shown before an offset; a secret around it is not included.
    pub(super) fn before(&self, offset: usize) -> String {
        self.render(self.line.start..self.around(offset).map_or(offset, |secret| secret.start))
    }

    /// Returns what is shown between two offsets, with the secrets around them.
    pub(super) fn between(&self, start: usize, end: usize) -> String {
        let first = self.around(start).map_or(start, |secret| secret.start);
        let last = self.around(end.saturating_sub(1)).map_or(end, |secret| secret.end);
        self.render(first..last.max(first))
    }

    fn around(&self, offset: usize) -> Option<&Range<usize>> {
        self.hidden.iter().find(|secret| secret.contains(&offset))
    }

    /// Renders a range that does not begin or end inside a secret. Control characters but tabs are replaced.
    fn render(&self, range: Range<usize>) -> String {
        let mut shown = String::with_capacity(range.len());
        let mut at = range.start;
        for secret in self.hidden.iter().filter(|secret| secret.start >= range.start && secret.end <= range.end) {
            shown.push_str(&self.text[at..secret.start]);
            shown.push_str(MASK);
            at = secret.end;
        }
        shown.push_str(&self.text[at..range.end.max(at)]);
        shown.chars().map(|c| if c.is_control() && c != '\t' { '\u{fffd}' } else { c }).collect()
    }
}

/// Returns the passwords of URLs.
fn url_passwords(text: &str, line: &Range<usize>) -> Vec<Range<usize>> {
    let (first, text) = (line.start, &text[..line.end]);
    let mut found = Vec::new();
    for (scheme, _) in text[first..].match_indices("://") {
        let start = first + scheme + 3;
        let end =
            text[start..].find(|c: char| c.is_whitespace() || "\"'".contains(c)).map_or(text.len(), |end| start + end);
        if let Some(at) = text[start..end].rfind('@')
            && let Some(colon) = text[start..start + at].find(':')
        {
            found.push(start + colon + 1..start + at);
        }
    }
    found
}

/// Returns the variables without a default: `${NAME}`.
fn variables(text: &str, line: &Range<usize>) -> Vec<Range<usize>> {
    let shown = &text[line.clone()];
    let variable = |(at, _): (usize, &str)| {
        let name = &shown[at + 2..];
        let end = name.find(|c: char| !c.is_ascii_alphanumeric() && c != '_')?;
        let is_closed = end > 0 && name[end..].starts_with('}');
        is_closed.then(|| line.start + at..line.start + at + 2 + end + 1)
    };
    shown.match_indices("${").filter_map(variable).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn masked(line: &str, secrets: &[&str]) -> String {
        let range = |secret: &&str| line.find(*secret).map(|at| at..at + secret.len()).unwrap();
        MaskedLine::new(line, 0..line.len(), &secrets.iter().map(range).collect::<Vec<_>>()).show()
    }

    #[test]
    fn a_secret_is_three_stars_whatever_its_length_and_a_variable_stays() {
        assert_eq!(masked("password: x", &["x"]), "password: ***");
        assert_eq!(masked("password: correct horse", &["correct horse"]), "password: ***");
        assert_eq!(masked("{password: ${X}}", &["$"]), "{password: ${X}}");
        assert_eq!(masked("token: ab${X}cd", &["ab${X}cd"]), "token: ***${X}***");
        assert_eq!(masked("token: ${X:-default}", &["${X:-default}"]), "token: ***");
        assert_eq!(masked("broker: amqp://me:secret@h", &[]), "broker: amqp://me:***@h");
        assert_eq!(masked("broker: amqp://me:${PASSWORD}@h", &[]), "broker: amqp://me:${PASSWORD}@h");
        assert_eq!(masked("a: 镜像, b", &["镜像"]), "a: ***, b");
    }

    #[test]
    fn offsets_are_those_of_what_is_shown() {
        let line = "a: secret, b: c";
        let masked = MaskedLine::new(line, 0..line.len(), std::slice::from_ref(&(3..9)));
        assert_eq!((masked.before(14), masked.between(14, 15)), ("a: ***, b: ".to_owned(), "c".to_owned()));
        assert_eq!((masked.before(5), masked.between(5, 6)), ("a: ".to_owned(), "***".to_owned()));
    }
}
