//! Splits text into Telegram messages, at lines where possible.

/// Returns the length of a text as Telegram counts it, in UTF-16 code units.
pub(super) fn utf16_length(text: &str) -> usize {
    text.encode_utf16().count()
}

/// Splits text into non-blank parts of at most `most` UTF-16 units. A longer line is split between characters.
pub(super) fn split(text: &str, most: usize) -> Vec<String> {
    let most = most.max(2);
    let mut parts = Vec::new();
    let mut part = String::new();
    let mut long = 0;
    for line in text.split_inclusive('\n') {
        let mut rest = line;
        while long + utf16_length(rest) > most {
            if long > 0 && utf16_length(rest) <= most {
                // The whole line goes to the next part.
                parts.push(std::mem::take(&mut part));
                long = 0;
                continue;
            }
            let cut = fitting_bytes(rest, most - long);
            part.push_str(&rest[..cut]);
            parts.push(std::mem::take(&mut part));
            (rest, long) = (&rest[cut..], 0);
        }
        part.push_str(rest);
        long += utf16_length(rest);
    }
    parts.push(part);
    let trimmed = parts.into_iter().map(|part| part.trim_end().to_owned());
    trimmed.filter(|part| !part.trim().is_empty()).collect()
}

/// Returns how many bytes of a text fit in `most` UTF-16 units.
fn fitting_bytes(text: &str, most: usize) -> usize {
    let mut units = 0;
    for (at, c) in text.char_indices() {
        units += c.len_utf16();
        if units > most {
            return at;
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_cut_at_lines_and_a_long_line_between_characters() {
        assert_eq!(split("a\nb\nc\n", 4), ["a\nb", "c"]);
        assert_eq!(split("short", 4096), ["short"]);
        assert!(split(" \n\n", 10).is_empty());
        // A whale is two units.
        assert_eq!(split("🐳🐳🐳", 4), ["🐳🐳", "🐳"]);
        assert_eq!(split("ab\n🐳🐳🐳🐳\nc", 5), ["ab\n🐳", "🐳🐳", "🐳\nc"]);
        let text: String = (0..3_000).map(|n| format!("line {n} 镜像 🐳\n")).collect();
        let parts = split(&text, 4096);
        assert!(parts.iter().all(|part| utf16_length(part) <= 4096 && !part.starts_with('\n')));
        assert_eq!(parts.join("\n"), text.trim_end());
    }
}
