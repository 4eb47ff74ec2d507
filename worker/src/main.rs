//! Program `imgsync-worker`: a worker of the cluster.

// The compiler needs a higher limit for the deeply nested futures of a copy.
#![recursion_limit = "256"]

mod app;

use std::process::ExitCode;

fn main() -> ExitCode {
    app::main()
}
