//! The coordinator of imgsync, and the program's commands: decides what is copied, watches over it, shows how it went.

pub mod cli;
