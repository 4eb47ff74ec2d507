//! The known sources, as data (`presets.toml`), and what a rule reads: a preset's repositories with the tags that it asks
//! for, or the one pattern that was written. [`parts`] makes one of the other; nobody else looks at what a preset holds.

mod catalog;
mod part;
mod versions;

pub use catalog::{Known, all, find, known, of_original, original_of};
pub use part::{Names, Part, is_of_preset, parts};

#[cfg(test)]
mod tests;
