//! The command line: what is printed where, exit codes, bad input.

mod bad_input;
mod output;
mod reach;
