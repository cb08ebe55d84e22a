//! FORMAT.md describes all that is recorded: a field that is added without a word there is noticed here.

use std::collections::BTreeSet;

const DESCRIPTION: &str = include_str!("../FORMAT.md");

const RECORDS: [&str; 17] = [
    include_str!("../src/attribute.rs"),
    include_str!("../src/event.rs"),
    include_str!("../src/inventory.rs"),
    include_str!("../src/task.rs"),
    include_str!("../src/sharing.rs"),
    include_str!("../src/thread.rs"),
    include_str!("../src/seccomp.rs"),
    include_str!("../src/signal.rs"),
    include_str!("../src/file.rs"),
    include_str!("../src/inet.rs"),
    include_str!("../src/interface.rs"),
    include_str!("../src/netlink.rs"),
    include_str!("../src/memory.rs"),
    include_str!("../src/packet.rs"),
    include_str!("../src/socket.rs"),
    include_str!("../src/socket_option.rs"),
    include_str!("../src/terminal.rs"),
];

/// `pub name: Type,` in the sources.
fn fields() -> BTreeSet<&'static str> {
    let field = |line: &'static str| Some(line.trim().strip_prefix("pub ")?.split_once(": ")?.0);
    RECORDS
        .iter()
        .flat_map(|source| source.lines())
        .filter_map(field)
        .filter(|name| !name.contains(' '))
        .collect()
}

#[test]
fn every_field_is_described() {
    let described: BTreeSet<&str> =
        DESCRIPTION.split(|character: char| !character.is_alphanumeric() && character != '_').collect();
    let fields = fields();
    assert!(fields.contains("xcomp_permission") && fields.contains("first_page"), "{fields:?}");
    let missing: Vec<_> = fields.difference(&described).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn every_file_is_described() {
    for kind in images::Kind::ALL {
        let row = format!("| `{}`", kind.file_name());
        let described = DESCRIPTION.lines().find(|line| line.starts_with(&row)).unwrap_or_default();
        assert!(described.contains(&format!("| {} ", kind.code())), "{row}: {described}");
    }
}
