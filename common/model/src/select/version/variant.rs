//! Suffix of a version's numbers: words that name a variant, and numbers that order it.

/// Names whose numbers are part of the name and not an order.
const INDIVISIBLE_NAMES: [&str; 33] = [
    "amd", "arm", "arm32v", "arm64v", "armv", "i", "mips", "ppc", "riscv", "x", "x86_", "s", "cuda", "cudnn", "go",
    "golang", "java", "jdk", "jre", "ltsc", "node", "openjdk", "php", "py", "python", "pg", "postgres", "mysql",
    "ruby", "rocm", "scala", "otp", "gcc",
];

/// Words of build metadata, which Helm and others write with `_` for SemVer's `+`: `1.4.0_up0.9.1` is another build of
/// 1.4.0, not a variant.
const BUILD_METADATA_WORDS: [&str; 5] = ["b", "build", "ci", "rev", "up"];

/// Splits `alpine3.19` into `alpine` and 3, 19; `debian-11-slim` into `debian-slim` and 11; `eksbuild.12` into
/// `eksbuild` and 12. Commits are dropped.
pub(super) fn split_variant(variant: &str) -> (String, Vec<u64>) {
    let mut names = Vec::new();
    let mut order = Vec::new();
    for segment in variant.split('-').filter(|segment| !segment.is_empty()) {
        if INDIVISIBLE_NAMES.contains(&segment.trim_end_matches(|c: char| c.is_ascii_digit() || c == '.')) {
            names.push(segment.to_owned());
            continue;
        }
        let mut words: Vec<&str> = Vec::new();
        for part in segment.split('.').filter(|part| !part.is_empty() && !is_commit(part)) {
            let word = part.trim_end_matches(|c: char| c.is_ascii_digit());
            match (parse_timestamp(part), part[word.len()..].parse()) {
                (Some(moment), _) => order.push(moment),
                _ if INDIVISIBLE_NAMES.contains(&word) => words.push(part),
                (None, Ok(number)) => {
                    order.push(number);
                    words.extend((!word.is_empty()).then_some(word));
                }
                (None, Err(_)) => words.push(part),
            }
        }
        if !words.is_empty() {
            names.push(words.join("."));
        }
    }
    (names.join("-"), order)
}

/// Parses build metadata into its numbers: `up0.9.1`, `build.4`.
pub(super) fn parse_build(segment: &str) -> Option<Vec<u64>> {
    let word = segment.trim_end_matches(|c: char| c.is_ascii_digit() || c == '.');
    let known = BUILD_METADATA_WORDS.contains(&word.to_ascii_lowercase().as_str());
    super::parse_dotted_numbers(segment[word.len()..].trim_start_matches('.')).filter(|_| known)
}

/// Whether a segment is a commit: `1a2b3c4`, or `g1a2b3c4` as in `git describe`.
pub(super) fn is_commit(segment: &str) -> bool {
    let marked = segment.strip_prefix('g').filter(|hash| hash.len() >= 7);
    let hash = marked.unwrap_or(segment);
    (7..=40).contains(&hash.len())
        && hash.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        // Letters alone may form a word, and digits alone a number.
        && (marked.is_some() || hash.bytes().any(|b| b.is_ascii_digit()) && hash.bytes().any(|b| b.is_ascii_lowercase()))
}

/// Parses `20250301T103000Z` into a number.
fn parse_timestamp(part: &str) -> Option<u64> {
    let (date, time) = part.trim_end_matches(['Z', 'z']).split_once(['T', 't'])?;
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    (date.len() == 8 && time.len() <= 6 && digits(date) && digits(time))
        .then(|| format!("{date}{time:0<6}").parse().ok())?
}
