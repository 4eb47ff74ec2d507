//! Dockerfiles: `FROM`, `COPY --from`, `RUN --mount=from` and `# syntax`, with the defaults of `ARG`.

use std::collections::{HashMap, HashSet};

use crate::heredocs;
use crate::recorder::{Certainty, Recorder};
use crate::variables::expand;

/// Maximum number of here-documents without an end in a file.
const MAX_OPEN_HEREDOCS: usize = 16;

/// An instruction whose lines are joined.
struct Instruction {
    line: usize,
    text: String,
}

/// Records the images of a Dockerfile that begins after `first_line` lines of its file.
pub(crate) fn scan(text: &str, first_line: usize, path: &str, recorder: &mut Recorder) {
    let (syntax, escape) = read_directives(text);
    if let Some((line, image)) = syntax {
        recorder.image_field(&image, Certainty::Sure, first_line + line, path);
    }
    let mut file = Dockerfile { stages: HashSet::new(), stage_count: 0, args: HashMap::new(), path, recorder };
    let (instructions, problems) = join_lines(text, escape);
    for (line, reason) in problems {
        file.recorder.problem(reason, first_line + line, path);
    }
    for instruction in instructions {
        if file.recorder.is_full() {
            return;
        }
        file.read(&instruction.text, first_line + instruction.line);
    }
}

/// Reads the directives at the top: the image of the frontend with its line, and the escape character.
fn read_directives(text: &str) -> (Option<(usize, String)>, char) {
    let (mut syntax, mut escape) = (None, '\\');
    for (at, line) in text.lines().enumerate() {
        let Some((name, value)) = line.trim().strip_prefix('#').and_then(|line| line.split_once('=')) else { break };
        match name.trim().to_ascii_lowercase().as_str() {
            "syntax" => syntax = value.split_whitespace().next().map(|image| (at + 1, image.to_owned())),
            "escape" if value.trim() == "`" => escape = '`',
            "escape" | "check" => {}
            _ => break,
        }
    }
    (syntax, escape)
}

/// Joins continued lines, and drops comments and here-documents. Returns also the lines with here-documents that do not
/// end, and why these are problems; what follows them is read as instructions.
fn join_lines(text: &str, escape: char) -> (Vec<Instruction>, Vec<(usize, String)>) {
    let (mut instructions, mut problems) = (Vec::new(), Vec::new());
    let lines: Vec<&str> = text.lines().collect();
    let mut next = 0;
    while next < lines.len() {
        let at = next;
        let mut joined = String::new();
        while let Some(line) = lines.get(next) {
            next += 1;
            let trimmed = line.trim();
            // Comments and blank lines may stand between continued lines.
            if !(trimmed.starts_with('#') || trimmed.is_empty() && !joined.is_empty()) {
                match trimmed.strip_suffix(escape) {
                    Some(part) => {
                        joined.push_str(part);
                        joined.push(' ');
                    }
                    None => {
                        joined.push_str(trimmed);
                        break;
                    }
                }
            } else if joined.is_empty() {
                break;
            }
        }
        let mut after = next;
        for document in heredocs::find(&joined) {
            match lines[after..].iter().position(|line| document.is_end(line)) {
                Some(length) => after += length + 1,
                None => {
                    let reason = format!("the here-document does not end: no line is `{}`", document.end());
                    problems.push((at + 1, reason));
                    after = next;
                    break;
                }
            }
        }
        next = after;
        if !joined.trim().is_empty() {
            instructions.push(Instruction { line: at + 1, text: joined });
        }
        // Each of them has searched all lines.
        if problems.len() >= MAX_OPEN_HEREDOCS {
            problems.push((at + 1, "too many here-documents do not end: the rest of it is not read".to_owned()));
            break;
        }
    }
    (instructions, problems)
}

struct Dockerfile<'a> {
    /// Names of stages, in lower case.
    stages: HashSet<String>,
    stage_count: usize,
    /// Defaults of build arguments.
    args: HashMap<String, String>,
    path: &'a str,
    recorder: &'a mut Recorder,
}

impl Dockerfile<'_> {
    fn read(&mut self, instruction: &str, line: usize) {
        let mut words = instruction.split_whitespace();
        let mut keyword = words.next().unwrap_or_default().to_ascii_uppercase();
        if keyword == "ONBUILD" {
            keyword = words.next().unwrap_or_default().to_ascii_uppercase();
        }
        let words: Vec<&str> = words.collect();
        match keyword.as_str() {
            // Those of a stage hold for the stage alone, and no builder expands them in the names of images.
            "ARG" if self.stage_count == 0 => words.iter().for_each(|word| self.read_argument(word)),
            "FROM" => self.read_stage(&words, line),
            "COPY" | "ADD" => {
                for from in words.iter().map_while(|word| word.strip_prefix("--")) {
                    if let Some(image) = from.strip_prefix("from=") {
                        self.read_source(image, line);
                    }
                }
            }
            "RUN" => {
                for mount in words.iter().map_while(|word| word.strip_prefix("--")) {
                    let Some(options) = mount.strip_prefix("mount=") else { continue };
                    options
                        .split(',')
                        .filter_map(|option| option.strip_prefix("from="))
                        .for_each(|image| self.read_source(image, line));
                }
            }
            _ => {}
        }
    }

    /// Records the default of a build argument.
    fn read_argument(&mut self, word: &str) {
        let Some((name, value)) = word.split_once('=') else { return };
        let value = value.trim_matches(['"', '\'']);
        let expanded = expand(value, &|name| self.args.get(name).cloned());
        match expanded {
            Ok(value) => drop(self.args.insert(name.to_owned(), value)),
            Err(_) => drop(self.args.remove(name)),
        }
    }

    fn read_stage(&mut self, words: &[&str], line: usize) {
        let mut words = words.iter().skip_while(|word| word.starts_with("--"));
        let Some(image) = words.next() else { return };
        self.read_source(image, line);
        if words.next().is_some_and(|word| word.eq_ignore_ascii_case("as"))
            && let Some(name) = words.next()
        {
            self.stages.insert(name.to_ascii_lowercase());
        }
        self.stage_count += 1;
    }

    /// Records an image, unless it is an earlier stage or `scratch`.
    fn read_source(&mut self, written: &str, line: usize) {
        let written = written.trim_matches(['"', '\'']);
        let image = match expand(written, &|name| self.args.get(name).cloned()) {
            Ok(image) => image,
            Err(reason) => return self.recorder.undecided(written, Certainty::Sure, reason, line, self.path),
        };
        let is_stage = self.stages.contains(&image.to_ascii_lowercase())
            || image.parse::<usize>().is_ok_and(|number| number < self.stage_count);
        if is_stage || image == "scratch" {
            return;
        }
        match image.is_empty() {
            true => self.recorder.undecided(written, Certainty::Sure, "its variables are empty", line, self.path),
            false => self.recorder.image_field(&image, Certainty::Sure, line, self.path),
        }
    }
}
