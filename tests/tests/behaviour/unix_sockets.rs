//! Unix sockets.

use tests::case::Workload;

const fn sockets(case: &'static str) -> Workload {
    Workload::new("unix_sockets", case)
}

tests::survives! {
    pairs => sockets("pairs");
    full => sockets("full");
    empty_messages => sockets("empty_messages");
    closed_ends => sockets("closed_ends");
    shut_down => sockets("shut_down");
    unconnected => sockets("unconnected");
    options => sockets("options");
    descriptors_in_flight => sockets("descriptors_in_flight");
    descriptors_of_others => sockets("descriptors_of_others");
    descriptor_cycles => sockets("descriptor_cycles");
    senders => sockets("senders");
    out_of_band => sockets("out_of_band");
    filters => sockets("filters");
    makers => sockets("makers");
    between_abis => sockets("between_abis");
    receiver_waits => sockets("receiver_waits");
}
