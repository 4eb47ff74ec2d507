//! Parses the `Link` header (RFC 8288) for pagination.

/// Returns the target of the first `rel="next"` as received: relative or absolute, with an opaque query. `headers` are
/// the values of all `Link` headers of a response. The caller decides which hosts may be followed.
///
/// ```
/// use imgsync_registry::link;
///
/// let header = r#"</v2/app/tags/list?n=100&last=v1>; rel="next""#;
/// assert_eq!(link::find_next([header]).as_deref(), Some("/v2/app/tags/list?n=100&last=v1"));
/// ```
pub fn find_next<'a>(headers: impl IntoIterator<Item = &'a str>) -> Option<String> {
    headers.into_iter().find_map(next_in)
}

fn next_in(header: &str) -> Option<String> {
    let mut rest = header;
    loop {
        // Without both brackets the end of a target is unknown: no link.
        let (_, after) = rest.split_once('<')?;
        let (target, after) = after.split_once('>')?;
        let (is_next, after) = parameters(after);
        let target = target.trim();
        if is_next && !target.is_empty() {
            return Some(target.to_owned());
        }
        rest = after;
    }
}

/// Parses the parameters of one link. Returns whether a `rel` contains `find_next`, and the rest after the link.
fn parameters(mut rest: &str) -> (bool, &str) {
    let mut is_next = false;
    loop {
        rest = rest.trim_start_matches(|c: char| c == ';' || c.is_whitespace());
        if rest.is_empty() || rest.starts_with([',', '<']) {
            return (is_next, rest);
        }
        let end = rest.find(['=', ';', ',', '<']).unwrap_or(rest.len());
        let name = rest[..end].trim();
        rest = &rest[end..];
        let Some(after) = rest.strip_prefix('=') else {
            continue;
        };
        let (value, after) = value(after.trim_start());
        rest = after;
        if name.eq_ignore_ascii_case("rel") {
            is_next |= value.split_whitespace().any(|relation| relation.eq_ignore_ascii_case("next"));
        }
    }
}

/// Returns a value, quoted or bare, and the rest after it. Keeps escapes: no relevant relation has any.
fn value(text: &str) -> (&str, &str) {
    match text.strip_prefix('"') {
        Some(quoted) => {
            let mut escaped = false;
            for (at, byte) in quoted.bytes().enumerate() {
                match byte {
                    _ if escaped => escaped = false,
                    b'\\' => escaped = true,
                    b'"' => return (&quoted[..at], &quoted[at + 1..]),
                    _ => {}
                }
            }
            (quoted, "")
        }
        None => {
            let ends = |c: char| matches!(c, ';' | ',' | '<') || c.is_whitespace();
            text.split_at(text.find(ends).unwrap_or(text.len()))
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn finds_next_however_it_is_written() {
        for header in [
            r#"</p?n=2>; rel="next""#,
            r#"</p?n=2>;rel=next"#,
            r#"</p?n=2>;REL=Next"#,
            r#"< /p?n=2 > ; title="a, b; rel=\"prev\" <x>" ; rel = "next""#,
            r#"</p?n=2>; rel="last next"; type="application/json""#,
            r#"</first>; rel="first", </p?n=2>; rel="next", </last>; rel="last""#,
            r#"</first>; rel=first </p?n=2>; rel=next"#,
            r#"</p?n=2>; rel="next"#,
            r#"</p?n=2>;; crossorigin; rel=next;"#,
            r#"</first>,</p?n=2>; rel=next"#,
        ] {
            assert_eq!(find_next([header]).as_deref(), Some("/p?n=2"), "{header}");
        }
    }

    #[test]
    fn looks_into_every_header() {
        assert_eq!(
            find_next([r#"</a>; rel="prev""#, r#"<https://r.example/b,c?x=<>; rel="next""#]).as_deref(),
            Some("https://r.example/b,c?x=<")
        );
    }

    #[test]
    fn what_is_no_link_to_a_next_page_is_none() {
        for header in [
            "",
            "</p?n=2",
            "/p?n=2; rel=next",
            "<>; rel=next",
            r#"</p>; rel="nextish""#,
            "</p>",
            r#"</p>; rev="next""#,
            r#"</p>; title="rel=next""#,
        ] {
            assert_eq!(find_next([header]), None, "{header}");
        }
        assert_eq!(find_next([]), None);
    }

    proptest! {
        #[test]
        fn never_panics(headers in prop::collection::vec(r#"([<>;,="\\ a]|rel|next|\PC){0,40}"#, 0..3)) {
            find_next(headers.iter().map(String::as_str));
        }

        #[test]
        fn a_target_comes_back_as_it_went_in(target in "[!-=?-~]{1,60}", before in "(</x>; rel=prev, )?") {
            let header = format!("{before}<{target}>; rel=\"next\"");
            prop_assert_eq!(find_next([header.as_str()]), Some(target));
        }
    }
}
