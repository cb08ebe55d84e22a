//! The `crr` command: parse, run, print once.

fn main() -> std::process::ExitCode {
    crr::cli::main()
}
