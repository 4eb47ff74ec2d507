//! Images named in files: reads files and folders, and prints rules for what they name.

mod search;

pub use search::ImageSearch;
