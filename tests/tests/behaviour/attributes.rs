//! Settings of address spaces and of threads that one system call makes and another reads.

use tests::case::Workload;

const fn attributes(case: &'static str) -> Workload {
    Workload::new("attributes", case)
}

tests::survives! {
    memory_settings => attributes("memory_settings");
    barriers => attributes("barriers");
    timer_ids => attributes("timer_ids");
    lock_future => attributes("lock_future");
    lock_future_on_fault => attributes("lock_future_on_fault");
    thread_policies => attributes("thread_policies");
    area_policies => attributes("area_policies");
    policies_of_many_areas => attributes("policies_of_many_areas");
    area_policies_under_another => attributes("area_policies_under_another");
    shared_policies => attributes("shared_policies");
    logins => attributes("logins");
    thread_settings => attributes("thread_settings");
    no_counter => attributes("no_counter");
}
