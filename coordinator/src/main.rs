//! The program `imgsync`.

use std::process::ExitCode;

fn main() -> ExitCode {
    imgsync::cli::main()
}
