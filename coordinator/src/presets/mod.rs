//! Presets: well-known sources as data (`presets.toml`), and the repositories and tags that a rule reads: those of a
//! preset, or the rule's pattern. Only [`parts`] looks into a preset.

mod catalog;
mod part;
mod versions;

pub use catalog::{Known, all, find, known, of_original, original_of};
pub use part::{Names, Part, is_of_preset, parts};

#[cfg(test)]
mod tests;
