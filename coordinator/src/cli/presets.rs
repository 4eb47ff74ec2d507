//! `imgsync presets`: lists the presets and what they expand to; parses preset arguments.

use clap::Args;
use imgsync_config::{Preset, RuleSource};
use imgsync_model::select::TagSelection;
use imgsync_oci::error::Result;
use serde::Serialize;
use serde_json::json;

use super::exit::{Exit, fail};
use super::printer::Printer;
use crate::presets::{self, SourceSelector, TargetNamePatterns, source_selectors};

/// `imgsync presets`.
#[derive(Debug, Args)]
pub(crate) struct PresetsArgs {
    /// Preset to show, optionally with a version range: "kubeadm >=1.30"
    #[arg(value_name = "PRESET", value_parser = parse_preset)]
    pub(crate) preset: Option<Preset>,
    /// Print a JSON array, including former locations
    #[arg(long)]
    pub(crate) json: bool,
}

/// A preset in the output of `--json`.
#[derive(Debug, Serialize)]
struct PresetOutput<'a> {
    preset: &'a str,
    about: &'a str,
    /// Whether it takes a version range.
    versions: bool,
    sources: Vec<PresetSourceOutput>,
}

#[derive(Debug, Serialize)]
struct PresetSourceOutput {
    from: String,
    /// As in a rule's `format_tags`; empty for all tags.
    tags: serde_json::Value,
    target: String,
    /// Target name with `naming: original`.
    original: String,
    /// Former locations, newest first.
    former_locations: Vec<String>,
}

/// Runs the command.
pub(crate) fn run(args: &PresetsArgs, printer: &Printer) -> Exit {
    match print_presets(args, printer) {
        Ok(()) => Exit::Done,
        Err(error) => fail(&error, printer),
    }
}

fn print_presets(args: &PresetsArgs, printer: &Printer) -> Result<()> {
    let named = match &args.preset {
        Some(preset) => vec![preset.clone()],
        None => presets::all().iter().map(|known| Preset { name: known.name.clone(), versions: None }).collect(),
    };
    let mut rows = vec![["PRESET", "READS", "TAGS", "TARGET", "WITH naming: original"].map(str::to_owned)];
    let mut shown = Vec::new();
    for preset in &named {
        let known = presets::find(preset)?;
        let parts = source_selectors(&RuleSource::Preset(preset.clone()))?;
        if args.preset.is_some() {
            printer.line(&format!("{}: {}", known.name, known.about));
        }
        for part in &parts {
            let TargetNamePatterns { target, original } = part.target_name_patterns();
            rows.push([preset.name.clone(), part.pattern.to_string(), format_tags(&part.selection), target, original]);
        }
        let sources = parts.iter().map(source_output).collect();
        shown.push(PresetOutput { preset: &known.name, about: &known.about, versions: known.has_versions(), sources });
    }
    if args.json {
        printer.data(&serde_json::to_string(&shown).unwrap_or_default());
        return Ok(());
    }
    let widths: Vec<usize> =
        (0..4).map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0)).collect();
    for row in &rows {
        let padded: Vec<String> = row[..4].iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        if !printer.text(&format!("{}  {}", padded.join("  "), row[4])) {
            break;
        }
    }
    Ok(())
}

fn source_output(part: &SourceSelector) -> PresetSourceOutput {
    let TargetNamePatterns { target, original } = part.target_name_patterns();
    let TagSelection { include, exclude, range, .. } = &part.selection;
    let mut tags = json!({});
    for (key, patterns) in [("include", include), ("exclude", exclude)] {
        if !patterns.is_empty() {
            tags[key] = patterns.iter().map(ToString::to_string).collect();
        }
    }
    if let Some(range) = range {
        tags["semver"] = range.as_str().into();
    }
    PresetSourceOutput {
        from: part.pattern.to_string(),
        tags,
        target,
        original,
        former_locations: part.former_locations(),
    }
}

/// Formats the selected tags; `*` for all.
fn format_tags(selection: &TagSelection) -> String {
    let mut patterns: Vec<String> = selection.include.iter().map(ToString::to_string).collect();
    patterns.extend(selection.range.as_ref().map(ToString::to_string));
    if patterns.is_empty() { "*".to_owned() } else { patterns.join(", ") }
}

/// Parses a preset with an optional version range: `kubeadm`, `kubeadm >=1.30`.
pub(crate) fn parse_preset(text: &str) -> std::result::Result<Preset, String> {
    let preset: Preset = text.parse()?;
    presets::find(&preset).map(|_| preset).map_err(|error| match error.hint() {
        Some(hint) => format!("{} ({hint})", error.message()),
        None => error.message().to_owned(),
    })
}
