//! Templates of Go, which regsync uses: texts with actions such as `{{ .Ref.Tag }}`.

/// Replaces each action by what `convert` returns for its content.
pub(super) fn replace_actions(written: &str, convert: impl Fn(&str) -> Option<&'static str>) -> Result<String, String> {
    let mut text = String::new();
    let mut rest = written;
    while let Some((before, after)) = rest.split_once("{{") {
        let (inside, after) = after.split_once("}}").ok_or("its template does not end")?;
        // Dashes trim the white space around an action.
        let inside = inside.trim_start_matches('-').trim_end_matches('-').trim();
        text.push_str(before);
        text.push_str(convert(inside).ok_or_else(|| format!("`{{{{{inside}}}}}` is not known"))?);
        rest = after;
    }
    text.push_str(rest);
    Ok(text)
}
