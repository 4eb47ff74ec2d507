//! The program `imgsync-worker`: a worker of the cluster.

mod program;

use std::process::ExitCode;

fn main() -> ExitCode {
    program::main()
}
