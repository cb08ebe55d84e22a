//! Tasks in which nothing can be mapped, or no code.

use tests::case::Workload;

const fn room(case: &'static str) -> Workload {
    Workload::new("room", case)
}

tests::survives! {
    limit => room("limit");
    limit_below => room("limit_below");
    limit_threads => room("limit_threads");
    limit_answers => room("limit_answers");
    no_code => room("no_code");
    no_code_inherited => room("no_code_inherited");
    no_code_not_inherited => room("no_code_not_inherited");
    no_code_locked => room("no_code_locked");
    no_code_threads => room("no_code_threads");
    confined => room("confined");
}
