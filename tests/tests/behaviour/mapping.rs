//! File mappings and shared memory.

use tests::case::Workload;

const fn mapping(case: &'static str) -> Workload {
    Workload::new("mapping", case)
}

tests::survives! {
    private_file => mapping("private_file");
    shared_file => mapping("shared_file");
    zero_device => mapping("zero_device");
    file_tail => mapping("file_tail");
    shared_anonymous => mapping("shared_anonymous");
    shared_twice => mapping("shared_twice");
    shared_sparse => mapping("shared_sparse");
    copy_on_write => mapping("copy_on_write");
}
