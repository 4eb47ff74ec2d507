//! Presets: well-known sources as data (`presets.toml`), and the repositories and tags that a rule reads: those of a
//! preset, or the rule's pattern. Only [`source_selectors`] looks into a preset.

mod catalog;
mod selector;
mod version_table;
mod versions;

pub use catalog::{PresetDefinition, all, find, find_by_original, known_presets, original_name};
pub use selector::{SourceSelector, TargetNamePatterns, preset_contains, source_selectors};

#[cfg(test)]
mod tests;
