//! Files that stay outside: that they can be told apart, and are what their keys say.

use super::{Check, ensure, inside};
use crate::resource::external::Key;
use images::external::{External, ExternalKind};
use images::file::{Files, Target};
use std::collections::BTreeSet;

pub(super) fn check(files: &Files) -> Check {
    let open: BTreeSet<u32> = (files.descriptions.iter())
        .filter_map(|description| match description.target {
            Target::External(id) => Some(id),
            _ => None,
        })
        .collect();
    let mut keys = BTreeSet::new();
    for (index, external) in (0..).zip(&files.externals) {
        let what = format_args!("external#{index}");
        ensure!(keys.insert(&external.key), "{what}: has the key of another one, {}", external.key);
        ensure!(open.contains(&index), "{what}: has no description");
        check_one(external).map_err(inside(what))?;
    }
    Ok(())
}

fn check_one(external: &External) -> Check {
    let known = external.key.parse::<Key>().ok().filter(|key| key.to_string() == external.key);
    let Some(key) = known else { return Err(format!("has the key {:?}", external.key)) };
    let fits = match (key, external.kind) {
        (Key::Pipe(_), kind) => kind == ExternalKind::Pipe,
        (Key::UnixSocket(_), kind) => matches!(kind, ExternalKind::UnixSocket(_)),
        (Key::Terminal(..), kind) => kind == ExternalKind::Terminal,
        (Key::File(..), ExternalKind::File(bits)) => bits != 0 && bits & !libc::S_IFMT == 0,
        (Key::File(..), kind) => kind == ExternalKind::Pipe,
    };
    ensure!(fits, "is a {:?} by the key {key}", external.kind);
    Ok(())
}
