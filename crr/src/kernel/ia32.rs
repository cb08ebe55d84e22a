//! The 32-bit side of this kernel, as the helper found it by trying.

use super::Feature;
use crate::machine::{self, Live, SPECIAL_NAMES};
use nix::errno::Errno;
use shared::proto::ProbeReport;

/// Runs the helper and puts its answers into words.
#[must_use]
pub(super) fn probe() -> Vec<Feature> {
    match machine::probe() {
        Ok((live, report, survived)) => features(&live, &report, survived),
        Err(error) => {
            vec![feature("ia32", Err(format!("{error:#}")), "ia32 tasks cannot be dumped or restored")]
        }
    }
}

fn feature(name: &'static str, found: Result<String, String>, cost: &'static str) -> Feature {
    Feature {
        name,
        present: found.is_ok(),
        detail: found.unwrap_or_else(|reason| reason),
        cost,
        // A machine without ia32 still serves 64-bit trees.
        required: false,
    }
}

/// A value that is an error number when negative.
fn answer(value: i64, good: impl FnOnce(i64) -> String) -> Result<String, String> {
    if value >= 0 {
        return Ok(good(value));
    }
    Err(Errno::from_raw(i32::try_from(-value).unwrap_or(0)).desc().to_lowercase())
}

fn features(live: &Live, report: &ProbeReport, survived: bool) -> Vec<Feature> {
    let moved =
        if survived { answer(report.move_each, |_| "area by area".to_owned()) } else { Err(DIED.to_owned()) };
    let entry = if survived && report.moved_call > 0 {
        Ok("a call through it came back".to_owned())
    } else {
        Err(if live.image.is_empty() { "there is none".to_owned() } else { DIED.to_owned() })
    };
    let vdso = if live.image.is_empty() { Err("tasks get none".to_owned()) } else { Ok(layout(live)) };
    let whole = answer(report.move_whole, |_| "by one call".to_owned());
    vec![
        feature("ia32", Ok("helper32 ran".to_owned()), "ia32 tasks cannot be dumped or restored"),
        feature("ia32-vdso", vdso, "ia32 tasks dumped with a vDSO cannot be restored"),
        feature(
            "ia32-vdso-move",
            moved,
            "code that stands in leads ia32 tasks to the vDSO where exec put it",
        ),
        feature("ia32-vdso-entry", entry, "the same: system calls through a moved vDSO would kill the task"),
        feature("ia32-vdso-move-whole", whole, "nothing: it is moved area by area"),
        feature(
            "ia32-mmap-low",
            answer(report.mmap_at, |at| format!("chose {at:#x}")),
            "mappings of ia32 tasks may lie out of their reach",
        ),
        feature(
            "ia32-robust-list",
            answer(report.robust_list, |_| "set and read back".to_owned()),
            "robust futexes of ia32 tasks are lost",
        ),
        feature(
            "ia32-tls",
            answer(report.tls_entry, |entry| format!("GDT entry {entry}")),
            "ia32 tasks cannot have thread-local storage",
        ),
        feature(
            "ia32-rseq",
            answer(report.rseq, |_| "registered".to_owned()),
            "ia32 tasks with rseq cannot be restored",
        ),
        feature(
            "ia32-mm-map",
            answer(report.mm_map_size, |size| format!("PR_SET_MM_MAP takes {size} bytes")),
            "heap, arguments and the exe link of ia32 tasks cannot be set",
        ),
    ]
}

const DIED: &str = "the helper died trying";

fn layout(live: &Live) -> String {
    let mut areas: Vec<_> =
        live.special.iter().zip(SPECIAL_NAMES).filter(|(area, _)| area.len != 0).collect();
    areas.sort_by_key(|(area, _)| area.offset);
    let areas: Vec<String> = areas.iter().map(|(area, name)| format!("{name} {}", area.len / 4096)).collect();
    format!("pages by rising address: {}", areas.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_feature_works_on_a_kernel_of_today() {
        for feature in probe() {
            let optional = feature.name == "ia32-vdso-move-whole";
            assert!(feature.present || optional, "{}: {}", feature.name, feature.detail);
        }
    }

    #[test]
    fn a_dead_helper_is_told() {
        let live = Live { image: vec![0; 4096], ..Live::default() };
        let found = features(&live, &ProbeReport::default(), false);
        let entry = found.iter().find(|feature| feature.name == "ia32-vdso-entry").unwrap();
        assert!(!entry.present && entry.detail.contains("died"));
    }
}
