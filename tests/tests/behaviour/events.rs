//! Files that tell events, and signal-driven I/O.

use tests::case::Workload;

const fn events(case: &'static str) -> Workload {
    Workload::new("events", case)
}

const fn epolls(case: &'static str) -> Workload {
    Workload::new("epolls", case)
}

tests::survives! {
    counters => events("counters");
    counters_waited_for => events("counters_waited_for");
    counters_between_abis => events("counters_between_abis");
    timers => events("timers");
    expired => events("expired").busy();
    signals => events("signals");
    owners => events("owners");
    owner_of_terminal => events("owner_of_terminal");
    epoll_kinds => epolls("kinds");
    epoll_edges_told => epolls("edges_told");
    epoll_edges_not_told => epolls("edges_not_told");
    epoll_one_shot => epolls("one_shot");
    epoll_moved => epolls("moved");
    epoll_shared => epolls("shared");
    epoll_nested => epolls("nested");
    epoll_signals => epolls("signals");
    epoll_signals_of_cloned => epolls("signals_of_cloned");
    epoll_in_flight => epolls("in_flight");
    epoll_waiting => epolls("waiting");
    epoll_between_abis => epolls("between_abis");
    epoll_many => epolls("many");
}
