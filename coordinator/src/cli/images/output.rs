//! Output of `imgsync images`.

use std::collections::BTreeSet;

use imgsync_image_names::{Certainty, ListedImage, ScanProblem, UndecidedName};
use imgsync_oci::humanize::{group_digits, pluralize};
use imgsync_oci::{Digest, Reference};
use serde::Serialize;

use super::ImagesArgs;
use crate::cli::printer::Printer;
use crate::images::ImageSearch;

/// More remarks of a kind are counted instead of printed, without `--debug`.
const MAX_PRINTED_REMARKS: usize = 50;

/// A line of `--json`.
#[derive(Debug, Serialize)]
struct ImageOutput<'a> {
    image: &'a Reference,
    /// `sure` or `perhaps`.
    certainty: &'static str,
    /// Digests that run under this name.
    running: Vec<&'a Digest>,
    places: Vec<PlaceOutput<'a>>,
    /// Number of all places; only the first are listed.
    place_count: usize,
}

#[derive(Debug, Serialize)]
struct PlaceOutput<'a> {
    file: &'a str,
    /// `null` if it is unknown.
    line: Option<usize>,
    path: &'a str,
}

/// Prints images in order.
pub(super) fn print_images<'i>(
    args: &ImagesArgs,
    search: &ImageSearch,
    chosen: impl Iterator<Item = &'i Reference>,
    printer: &Printer,
) {
    for image in chosen {
        let Some(listed) = search.images.get(image) else { continue };
        if !print_image(args, image, &names(args, image, Some(listed)), listed, printer) {
            // The reader has closed the pipe: `| head`.
            return;
        }
    }
}

/// Prints an image, in text under the given names. Returns false if the output is closed.
pub(super) fn print_image(
    args: &ImagesArgs,
    image: &Reference,
    names: &[Reference],
    listed: &ListedImage,
    printer: &Printer,
) -> bool {
    if args.json {
        let places = listed.places.iter().map(|(_, place)| PlaceOutput {
            file: &place.file,
            line: Some(place.line).filter(|line| *line > 0),
            path: &place.path,
        });
        let line = ImageOutput {
            image,
            certainty: certainty_name(listed.certainty),
            running: listed.running.iter().collect(),
            places: places.collect(),
            place_count: listed.place_count,
        };
        // Texts and numbers always serialize.
        return printer.data(&serde_json::to_string(&line).unwrap_or_default());
    }
    let mut is_open = names.iter().all(|name| printer.data(&name.to_string()));
    if args.places {
        is_open &= listed.places.iter().all(|(_, place)| printer.data(&format!("  {place}")));
        let more = listed.place_count - listed.places.len();
        if more > 0 {
            is_open &= printer.data(&format!("  and {}", pluralize(more as u64, "other place", "other places")));
        }
    }
    is_open
}

/// Returns the names under which an image is printed: with the digests that run, if these are wanted and known.
pub(super) fn names(args: &ImagesArgs, image: &Reference, listed: Option<&ListedImage>) -> Vec<Reference> {
    match listed.filter(|listed| args.running && !listed.running.is_empty()) {
        Some(listed) => {
            let with = |digest: &Digest| Reference { digest: Some(digest.clone()), ..image.clone() };
            listed.running.iter().map(with).collect()
        }
        None => vec![image.clone()],
    }
}

fn certainty_name(certainty: Certainty) -> &'static str {
    match certainty {
        Certainty::Sure => "sure",
        Certainty::Perhaps => "perhaps",
    }
}

/// Prints everything that is not an image for sure, and the totals.
pub(super) fn print_remarks(
    args: &ImagesArgs,
    search: &ImageSearch,
    chosen: &BTreeSet<Reference>,
    debug: bool,
    printer: &Printer,
) {
    let limit = if debug { usize::MAX } else { MAX_PRINTED_REMARKS };
    let perhaps: Vec<String> = search
        .images
        .iter(Certainty::Perhaps)
        .filter(|(image, _)| !chosen.contains(*image))
        .map(|(image, listed)| {
            let place = listed.places.first().map(|(_, place)| format!(" at {place}")).unwrap_or_default();
            format!("perhaps {image}{place}")
        })
        .collect();
    // With --probe, the registries have answered.
    if !args.probe {
        print_some(&perhaps, limit, printer);
    }
    let elsewhere: Vec<String> = search.elsewhere.iter().map(|part| format!("elsewhere: {}", describe(part))).collect();
    print_some(&elsewhere, limit, printer);
    for certainty in [Certainty::Perhaps, Certainty::Sure] {
        let prefix = if certainty == Certainty::Sure { "" } else { "perhaps " };
        let lines = search.undecided(certainty).map(|UndecidedName { text, reason, place, .. }| {
            format!("{prefix}undecided: `{text}` at {place}: {reason}")
        });
        print_some(&lines.collect::<Vec<_>>(), limit, printer);
    }
    let problems: Vec<String> = search.problems.iter().map(|part| format!("not read: {}", describe(part))).collect();
    print_some(&problems, limit, printer);

    let of = |count: usize, one: &str, several: &str| pluralize(count as u64, one, several);
    let mut parts = vec![of(search.images.count(Certainty::Sure), "image", "images")];
    let mut add = |count: usize, text: String| {
        if count > 0 {
            parts.push(text);
        }
    };
    let count = search.images.count(Certainty::Perhaps);
    add(count, format!("{} perhaps", group_digits(count as u64)));
    let count = search.undecided(Certainty::Perhaps).count();
    add(count, format!("{} perhaps undecided", group_digits(count as u64)));
    let count = search.undecided(Certainty::Sure).count();
    add(count, format!("{} undecided", group_digits(count as u64)));
    add(search.problems.len(), format!("{} not read", of(search.problems.len(), "part", "parts")));
    add(search.omitted, format!("{} not listed", of(search.omitted, "remark", "remarks")));
    let mut line = format!("{} in {}", parts.join(", "), of(search.files, "file", "files"));
    if search.skipped > 0 {
        line.push_str(&format!("; {} skipped by name or type", of(search.skipped, "file", "files")));
    }
    if search.secrets > 0 {
        line.push_str(&format!("; {} not read", of(search.secrets, "Secret", "Secrets")));
    }
    printer.line(&line);
    if !perhaps.is_empty() && !args.probe && !args.perhaps {
        printer.line("hint: --probe asks the registries which of the strings are images, --perhaps takes all of them");
    }
}

fn describe(part: &ScanProblem) -> String {
    format!("{}: {}", part.place, part.reason)
}

/// Prints lines up to a limit, and counts the others.
fn print_some(lines: &[String], limit: usize, printer: &Printer) {
    lines.iter().take(limit).for_each(|line| printer.line(line));
    if lines.len() > limit {
        let word = lines[0].split([' ', ':']).next().unwrap_or_default();
        printer.line(&format!("{word}: {} more (--debug lists them)", group_digits((lines.len() - limit) as u64)));
    }
}
