//! Open files.

use tests::case::Workload;

const fn files(case: &'static str) -> Workload {
    Workload::new("files", case)
}

tests::survives! {
    regular => files("regular");
    descriptions => files("descriptions");
    close_on_exec => files("close_on_exec");
    numbers => files("numbers");
    many => files("many");
    crossed => files("crossed");
    directory => files("directory");
    devices => files("devices");
    standard => files("standard");
}
