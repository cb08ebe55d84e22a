//! Every way a file can be named.

use tests::case::Workload;

const fn names(case: &'static str) -> Workload {
    Workload::new("names", case)
}

tests::survives! {
    path_only => names("path_only");
    path_only_deleted => names("path_only_deleted");
    views => names("views");
    devices => names("devices");
}
