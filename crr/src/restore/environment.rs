//! What this process passes on to the tasks it forks, so that only differences are restored.

use crate::resource::task::NO_LOGIN;
use crate::resource::{attribute, thread};
use crate::sys::{process, xsave};
use anyhow::{Context, Result};
use images::inventory::StateComponent;
use images::thread::{Creds, Sched};
use std::fmt::Display;
use std::fs;
use std::io::ErrorKind;

/// The coordinator's own attributes, and facts about the kernel and processor.
#[derive(Clone, Debug)]
pub(crate) struct Environment {
    /// What a task has after fork and exec of a program without file capabilities.
    pub creds: Creds,
    /// Scheduling.
    pub sched: Sched,
    /// `/proc/self/oom_score_adj`.
    pub oom_score_adj: i32,
    /// `/proc/self/coredump_filter`.
    pub coredump_filter: u32,
    /// `/proc/self/loginuid`.
    pub login_uid: u32,
    /// `/proc/self/personality`.
    pub personality: u32,
    /// Its seccomp mode: 0 if it has none.
    pub seccomp: u32,
    /// Further settings.
    pub attributes: attribute::Inherited,
    /// Where enabled state components lie.
    pub xstate_layout: Vec<StateComponent>,
    /// Bytes of NT_X86_XSTATE.
    pub xstate_size: usize,
}

impl Environment {
    /// Reads it.
    ///
    /// # Errors
    /// If /proc does not answer.
    pub(crate) fn read() -> Result<Self> {
        let number = |path: &str, radix: u32| -> Result<i64> {
            let text = fs::read_to_string(path).with_context(|| path.to_owned())?;
            i64::from_str_radix(text.trim(), radix).with_context(|| path.to_owned())
        };
        let status = fs::read_to_string("/proc/self/status").context("/proc/self/status")?;
        Ok(Self {
            creds: creds(&status)?,
            seccomp: field(&status, "Seccomp").parse().unwrap_or(0),
            sched: thread::dump_sched(0)?,
            oom_score_adj: i32::try_from(number("/proc/self/oom_score_adj", 10)?)?,
            coredump_filter: u32::try_from(number("/proc/self/coredump_filter", 16)?)?,
            login_uid: login_uid("self")?,
            personality: u32::try_from(number("/proc/self/personality", 16)?)?,
            attributes: attribute::inherited()?,
            xstate_layout: xsave::layout(process::enabled_xfeatures()),
            // The regset holds all components that the kernel has enabled (fpu_user_cfg.max_size).
            xstate_size: xsave::size_for(process::enabled_xfeatures()),
        })
    }
}

/// `/proc/PID/loginuid`; no login where there is no such file, or no such process.
///
/// # Errors
/// Those of reading it.
pub(crate) fn login_uid(pid: impl Display) -> Result<u32> {
    let path = format!("/proc/{pid}/loginuid");
    match fs::read_to_string(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(NO_LOGIN),
        text => text.and_then(|text| text.trim().parse().map_err(std::io::Error::other)).context(path),
    }
}

/// A line of `/proc/self/status`, empty where the kernel has none.
fn field<'a>(status: &'a str, name: &str) -> &'a str {
    status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap_or_default().trim()
}

/// Credentials after exec, capabilities(7): root gains what the bounding and inheritable sets allow; ambient
/// capabilities go.
fn creds(status: &str) -> Result<Creds> {
    let field = |name: &str| field(status, name);
    let set = |name: &str| {
        u64::from_str_radix(field(name), 16).with_context(|| format!("{name} in /proc/self/status"))
    };
    let ids = |name: &str| -> Result<[u32; 4]> {
        let ids: Vec<u32> = field(name).split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
        ids.try_into().ok().with_context(|| format!("{name} in /proc/self/status"))
    };
    let groups = field("Groups").split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
    let (inheritable, bounding) = (set("CapInh")?, set("CapBnd")?);
    let uid = ids("Uid")?;
    // Saved and file-system ids follow the effective one at exec.
    let after_exec = |[real, effective, _, _]: [u32; 4]| [real, effective, effective, effective];
    let full = if uid[1] == 0 { inheritable | bounding } else { set("CapAmb")? };
    Ok(Creds {
        uid: after_exec(uid),
        gid: after_exec(ids("Gid")?),
        groups,
        cap_inheritable: inheritable,
        cap_permitted: full,
        cap_effective: full,
        cap_bounding: bounding,
        cap_ambient: if uid[1] == 0 { 0 } else { set("CapAmb")? },
        securebits: process::securebits(),
        no_new_privs: field("NoNewPrivs") == "1",
    })
}
