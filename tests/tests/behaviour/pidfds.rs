//! Process file descriptors.

use tests::case::Workload;

const fn pidfds(case: &'static str) -> Workload {
    Workload::new("pidfds", case)
}

tests::survives! {
    relatives => pidfds("relatives");
    zombies => pidfds("zombies");
    gone => pidfds("gone");
    threads => pidfds("threads");
    waiting => pidfds("waiting");
    watched => pidfds("watched");
    between_abis => pidfds("between_abis");
    confined => pidfds("confined");
    shared_table => pidfds("shared_table");
    shared_memory => pidfds("shared_memory");
    shared_memory_alone => pidfds("shared_memory_alone");
    other_signal => pidfds("other_signal");
    stopped => pidfds("stopped");
    leader_ended => pidfds("leader_ended");
}
