//! Files of `/proc/PID` and of namespaces.

use tests::case::Workload;

const fn task_files(case: &'static str) -> Workload {
    Workload::new("task_files", case)
}

tests::survives! {
    own => task_files("own");
    elsewhere => task_files("elsewhere");
    memory => task_files("memory");
    directories => task_files("directories");
    relatives => task_files("relatives");
    threads => task_files("threads");
    between_abis => task_files("between_abis");
    namespaces => task_files("namespaces");
}
