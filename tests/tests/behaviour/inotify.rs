//! inotify.

use tests::case::Workload;

const fn inotify(case: &'static str) -> Workload {
    Workload::new("inotify", case)
}

tests::survives! {
    all => inotify("all");
    flags => inotify("flags");
    renamed => inotify("renamed");
    deleted => inotify("deleted");
    layers => inotify("layers");
    quiet => inotify("quiet");
    unread_events => inotify("unread_events");
    read_in_progress => inotify("read_in_progress");
    signals_and_messages => inotify("signals_and_messages");
    between_abis => inotify("between_abis");
    many => inotify("many");
}
