//! The program `imgsync-worker`: a worker of the cluster.

// A copy is a deep nest of futures, which the compiler works out.
#![recursion_limit = "256"]

mod program;

use std::process::ExitCode;

fn main() -> ExitCode {
    program::main()
}
