//! `crr check`.

use super::{Format, Outcome, Usage, print};
use crate::fault::Point;
use crate::kernel::{self, Feature, Report};
use clap::Args;
use std::fmt::Write;
use std::process::ExitCode;

const EXAMPLES: &str = "\
Examples:
  crr check                           what works here and what the rest costs
  crr check --json
  crr check --feature pagemap-scan    exit 0 if it works here, 1 if not
  crr check --feature mseal --feature soft-dirty";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Check {
    #[command(flatten)]
    format: Format,

    /// Print nothing: exit 0 if this feature works here, 1 if not. May be repeated: 0 if all work.
    #[arg(long, value_name = "NAME", conflicts_with = "json")]
    feature: Vec<String>,

    /// List the faults that can be injected into a dump or a restore, for tests: CRR_FAULT=NAME[:COUNT][,NAME...].
    #[arg(long, conflicts_with_all = ["json", "feature"])]
    faults: bool,
}

impl Check {
    pub(super) fn run(&self, level: u8) -> Outcome {
        crate::log::start(None, level)?;
        if self.faults {
            return print(&faults());
        }
        let report = kernel::probe()?;
        if !self.feature.is_empty() {
            return self.has_features(&report);
        }
        print(&if self.format.json { serde_json::to_string_pretty(&report)? + "\n" } else { text(&report) })?;
        Ok(exit_code(report.usable()))
    }

    fn has_features(&self, report: &Report) -> Outcome {
        let mut all = true;
        for asked in &self.feature {
            // CRIU's features are spelled with underscores.
            let name = asked.replace('_', "-");
            let Some(feature) = report.all().find(|feature| feature.name == name) else {
                let names: Vec<_> = report.all().map(|feature| feature.name).collect();
                return Err(Usage(format!(
                    "there is no feature `{asked}`\n  hint: features are {}",
                    names.join(", ")
                ))
                .into());
            };
            all &= feature.present;
        }
        Ok(exit_code(all))
    }
}

/// The name of each fault, and what it does.
fn faults() -> String {
    Point::ALL.iter().map(|point| format!("{:<28}{}\n", point.name(), point.what())).collect()
}

fn exit_code(good: bool) -> ExitCode {
    if good { ExitCode::SUCCESS } else { ExitCode::from(super::FAILED) }
}

/// Aligned text: what, whether, and the detail; for what lacks, the cost.
fn text(report: &Report) -> String {
    let mut out = format!("kernel {}\n", report.kernel_release);
    section(&mut out, "x86_64", &report.features);
    match &report.helper {
        Some(features) => section(&mut out, "ia32", features),
        None => out.push_str("\nia32: not probed\n"),
    }
    out.push_str("\ncapabilities\n");
    for capability in &report.capabilities {
        let detail = if capability.held { "" } else { capability.cost };
        line(&mut out, if capability.held { "yes" } else { "no" }, capability.name, detail);
    }
    let verdict = if report.usable() { "crr works here" } else { "crr does not work here" };
    let _ = writeln!(out, "\n{verdict}");
    out
}

fn section(out: &mut String, title: &str, features: &[Feature]) {
    let _ = writeln!(out, "\n{title}");
    for feature in features {
        let Feature { name, present, detail, cost, required } = feature;
        match (present, required) {
            (true, _) => line(out, "yes", name, detail),
            (false, true) => line(out, "NO", name, &format!("{detail}; needed: {cost}")),
            (false, false) => line(out, "no", name, &format!("{detail}; {cost}")),
        }
    }
}

fn line(out: &mut String, mark: &str, name: &str, detail: &str) {
    let _ = writeln!(out, "{}", format!("  {mark:<4}{name:<25}{detail}").trim_end());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::Capability;

    #[test]
    fn what_lacks_is_shown_with_its_cost() {
        let feature = |name, present, required| Feature {
            name,
            present,
            detail: "why".to_owned(),
            cost: "cost",
            required,
        };
        let report = Report {
            kernel_release: "6.1".to_owned(),
            features: vec![feature("kcmp", false, true), feature("mseal", false, false)],
            helper: Some(vec![feature("ia32-exec", true, true)]),
            capabilities: vec![Capability { name: "KILL", held: false, cost: "cost" }],
        };
        let expected = "kernel 6.1

x86_64
  NO  kcmp                     why; needed: cost
  no  mseal                    why; cost

ia32
  yes ia32-exec                why

capabilities
  no  KILL                     cost

crr does not work here
";
        assert_eq!(text(&report), expected);
    }
}
