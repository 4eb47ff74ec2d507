//! Lists of images, one a line, as Rancher, K3s and kubeadm print them.

use crate::recorder::{Certainty, Recorder};

/// Records the names of a list.
pub(crate) fn scan(text: &str, recorder: &mut Recorder) {
    for (at, line) in text.lines().enumerate() {
        if recorder.is_full() {
            return;
        }
        scan_line(line, at + 1, recorder);
    }
}

/// Records the name in a line, if it is no comment.
fn scan_line(line: &str, number: usize, recorder: &mut Recorder) {
    let line = line.trim();
    if line.is_empty() || line.starts_with('#') || line.starts_with("//") {
        return;
    }
    let mut words = line.split_whitespace();
    let word = words.next().unwrap_or_default();
    if words.next().is_some_and(|next| !next.starts_with('#') && !next.starts_with("//")) {
        recorder.undecided(line, Certainty::Sure, "a line of a list has one name", number, "");
        return;
    }
    let name = word.trim_end_matches(',').trim_matches(['"', '\'']);
    recorder.image_field(name, Certainty::Sure, number, "");
}
