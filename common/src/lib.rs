//! What the programs of imgsync share.

pub mod printable;
pub mod registry;
pub mod secret;
