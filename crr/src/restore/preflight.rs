//! Whatever would make a restore fail, found before the first fork, all of it at once.

use super::environment::Environment;
use super::{Options, numbers, unchanged};
use crate::dump::room;
use crate::kernel;
use crate::refusal::{Refusal, Refusals};
use crate::resource::creds::CAP_SYS_RESOURCE;
use crate::resource::external::given::Given;
use crate::resource::terminal::recreate;
use crate::resource::unix_socket::bind;
use crate::resource::{
    aio, attribute, bpf, fanotify, hugetlb, mqueue, packet, pipe, pkey, seccomp, sysv, task_file, xstate,
};
use crate::store::Checkpoint;
use crate::sys::process;
use anyhow::Result;
use images::{Abi, Pid};
use shared::plan::tree::{OUTSIDE, Role, Schedule};
use std::collections::BTreeSet;
use std::fs;

/// Collects everything that stands in the way, beside what is known already.
///
/// # Errors
/// If this machine does not tell what is there.
pub(super) fn preflight(
    mut refusals: Refusals,
    checkpoint: &Checkpoint,
    schedule: &Schedule,
    environment: &Environment,
    given: &Given,
    options: &Options,
) -> Result<Refusals> {
    session(&mut refusals, checkpoint, options);
    pids(&mut refusals, checkpoint, schedule);
    sibling(&mut refusals, schedule, options);
    processor(&mut refusals, checkpoint, environment);
    files(&mut refusals, checkpoint, given, options)?;
    given.preflight(&checkpoint.files, &mut refusals);
    privileges(&mut refusals, checkpoint, environment);
    seccomp::preflight(&mut refusals, &checkpoint.tree, environment);
    attribute::preflight(&mut refusals, checkpoint, &environment.attributes);
    mqueue::recreate::preflight(&mut refusals, &checkpoint.files, environment.creds.cap_effective)?;
    bpf::recreate::preflight(&mut refusals, &checkpoint.files.bpf_maps, environment.creds.cap_effective)?;
    fanotify::recreate::preflight(&checkpoint.files, &mut refusals)?;
    room::too_many_areas(&checkpoint.tree, &checkpoint.memory.spaces, &mut refusals)?;
    task_file::preflight(&mut refusals, &checkpoint.files);
    packet::preflight(&checkpoint.files.packet_sockets, &mut refusals)?;
    hugetlb::preflight(&checkpoint.memory, &checkpoint.files, &mut refusals)?;
    aio::preflight(&checkpoint.memory, &mut refusals)?;
    pkey::preflight(&mut refusals, checkpoint);
    sysv::recreate::preflight(&mut refusals, &checkpoint.memory)?;
    sysv::objects::preflight(&checkpoint.inventory, &checkpoint.tree.ipc, environment, &mut refusals)?;
    numbers::check(&mut refusals, &checkpoint.tree, &checkpoint.files, &checkpoint.memory);
    Ok(refusals)
}

fn refuse(refusals: &mut Refusals, object: String, reason: impl Into<String>, hint: Option<&str>) {
    refusals.push(Refusal { task: None, object, reason: reason.into(), hint: hint.map(str::to_owned) });
}

fn session(refusals: &mut Refusals, checkpoint: &Checkpoint, options: &Options) {
    if let (Some(job), false) = (checkpoint.tree.shell_job, options.shell_job) {
        refuse(
            refusals,
            format!("session {}", job.sid),
            "was led by a shell outside of the tree",
            Some("--shell-job gives the tree the session and terminal of this command"),
        );
    }
}

fn pids(refusals: &mut Refusals, checkpoint: &Checkpoint, schedule: &Schedule) {
    let limit =
        fs::read_to_string("/proc/sys/kernel/pid_max").ok().and_then(|text| text.trim().parse::<Pid>().ok());
    let hint = Some("end it, or restore with --new-pidns");
    if let Err(reason) = kernel::can_choose_pids() {
        let reason = format!("no process or thread can be given its id: {reason}");
        refuse(refusals, "this kernel".to_owned(), reason, Some("crr check tells what it lacks"));
    }
    let threads = checkpoint.tree.tasks.iter().flat_map(|task| &task.threads).map(|thread| thread.tid);
    let zombies = checkpoint.tree.zombies.iter().map(|zombie| zombie.pid);
    let ids: BTreeSet<Pid> = threads.chain(zombies).chain(schedule.dead_leaders()).collect();
    process::outlive_threads(&ids);
    for tid in ids {
        let object = format!("pid {tid}");
        if limit.is_some_and(|limit| tid >= limit) {
            refuse(refusals, object, "is beyond kernel.pid_max", Some("raise kernel.pid_max"));
        } else if process::exists(tid) {
            let comm = fs::read_to_string(format!("/proc/{tid}/comm")).unwrap_or_default();
            refuse(refusals, object, format!("is taken by {}", comm.trim_end()), hint);
        } else if nix::sys::signal::killpg(nix::unistd::Pid::from_raw(tid), None).is_ok() {
            refuse(refusals, object, "is the id of a process group that is still in use", hint);
        }
    }
}

/// A dead leader of the root's session is a child of the root's parent for a moment, which has to wait for it.
fn sibling(refusals: &mut Refusals, schedule: &Schedule, options: &Options) {
    let first = schedule.processes[OUTSIDE].after.first();
    if let (Some(Role::Session(sid)), true) =
        (first.map(|birth| schedule.processes[birth.process].role), options.sibling)
    {
        let hint = Some("restore without --restore-sibling");
        refuse(refusals, format!("session {sid}"), "its dead leader cannot come back as crr's sibling", hint);
    }
}

fn processor(refusals: &mut Refusals, checkpoint: &Checkpoint, environment: &Environment) {
    let inventory = &checkpoint.inventory;
    let (from, to) = (&inventory.xstate_layout, &environment.xstate_layout);
    for bit in xstate::misfits(inventory.xfeatures_in_use, from, to) {
        let name = match bit {
            2 => "AVX",
            3 | 4 => "MPX",
            5..=7 => "AVX-512",
            9 => "PKRU",
            17 | 18 => "AMX",
            _ => "unknown",
        };
        let object = format!("processor state {name} (component {bit})");
        refuse(refusals, object, "is in use by a thread, and this processor does not have it", None);
    }
}

/// What other processes have of the tree's, and what has become of its files.
fn files(refusals: &mut Refusals, checkpoint: &Checkpoint, given: &Given, options: &Options) -> Result<()> {
    pipe::preflight(&checkpoint.files, refusals);
    for (object, reason, hint) in recreate::obstacles(&checkpoint.files.ptys) {
        refuse(refusals, object, reason, Some(hint));
    }
    for (object, reason, hint) in bind::obstacles(&checkpoint.files.unix_sockets) {
        refuse(refusals, object, reason, Some(hint));
    }
    unchanged::preflight(refusals, checkpoint, given, options.validation)
}

fn privileges(refusals: &mut Refusals, checkpoint: &Checkpoint, environment: &Environment) {
    let own = &environment.creds;
    let limits: Vec<(u64, u64)> = super::prepare::own_limits().unwrap_or_default();
    let may_raise = own.cap_effective & CAP_SYS_RESOURCE != 0;
    for task in &checkpoint.tree.tasks {
        let comm = String::from_utf8_lossy(&task.threads[0].comm).into_owned();
        let who = (task.pid, comm.as_str());
        for (resource, (own, wanted)) in limits.iter().zip(&task.rlimits).enumerate() {
            if wanted.1 > own.1 && !may_raise {
                let object = format!("hard limit {resource} (RLIMIT_*) of {}", wanted.1);
                let reason =
                    format!("is above this process's own ({}), and CAP_SYS_RESOURCE is missing", own.1);
                refusals.task(who, object, reason, Some("raise the hard limit of the shell that runs crr"));
            }
        }
        if task.oom_score_adj < environment.oom_score_adj && !may_raise {
            let reason = "is below this process's own, and CAP_SYS_RESOURCE is missing";
            refusals.task(who, format!("oom_score_adj {}", task.oom_score_adj), reason, None);
        }
        let missing: BTreeSet<u32> = task
            .threads
            .iter()
            .map(|thread| &thread.creds)
            .flat_map(|creds| {
                bits((creds.cap_permitted & !own.cap_permitted) | (creds.cap_bounding & !own.cap_bounding))
            })
            .collect();
        for capability in missing {
            refusals.task(who, format!("capability {capability}"), "crr does not have it to give", None);
        }
    }
}

fn bits(set: u64) -> impl Iterator<Item = u32> {
    (0..64).filter(move |bit| set & (1 << bit) != 0)
}

/// ABIs that this kernel has to run.
#[must_use]
pub(super) fn abis(checkpoint: &Checkpoint) -> BTreeSet<Abi> {
    checkpoint.tree.tasks.iter().map(|task| task.abi).collect()
}
