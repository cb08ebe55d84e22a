//! Attributes, limits, credentials and scheduling of tasks.

use tests::case::Workload;

const fn identity(case: &'static str) -> Workload {
    Workload::new("identity", case)
}

tests::survives! {
    attributes => identity("attributes");
    undumpable => identity("undumpable");
    limits => identity("limits");
    scheduling => identity("scheduling");
    deadline => identity("deadline");
    credentials => identity("credentials");
    many_groups => identity("many_groups");
    locked_securebits => identity("locked_securebits");
    thread_credentials => identity("thread_credentials");
    chrooted => identity("chrooted");
    arguments => identity("arguments");
    personality => identity("personality");
    personality_of_threads => identity("personality_of_threads");
    personality_of_one_thread => identity("personality_of_one_thread");
    page_zero => identity("page_zero");
    three_gigabytes => identity("three_gigabytes");
}
