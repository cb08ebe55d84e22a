//! Tasks that have ended before the dump, and are waited for only after the restore.

use tests::case::Workload;

const fn zombies(case: &'static str) -> Workload {
    Workload::new("zombies", case)
}

tests::survives! {
    ends => zombies("ends");
    pending => zombies("pending");
    leaders => zombies("leaders");
    ignored => zombies("ignored");
}
