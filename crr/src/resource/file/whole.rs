//! What takes all descriptors of the tree to know.

use super::copies::Copies;
use super::links::Link;
use super::open::Open;
use super::{Table, Terminal};
use crate::proc::Dir;
use crate::refusal::Refusals;
use crate::resource::external::Key;
use crate::resource::path::{Paths, link_of};
use crate::resource::tree::Standing;
use crate::resource::unix_socket::half::HalfPolicy;
use crate::resource::{Refuse, bpf, event, fanotify, inet, inotify, interface, lock, pipe};
use anyhow::{Context, Result};
use images::file::Target;
use images::memory::{Backing, Space};
use images::task::{Task, Zombie};
use images::{DescriptionId, Pid};
use std::collections::HashSet;
use std::os::fd::{AsRawFd, BorrowedFd};

impl Table {
    /// Records the locks with the tasks that are to take them.
    pub(crate) fn give_locks(
        &mut self,
        tree: &HashSet<Pid>,
        tasks: &mut [Task],
        refusals: &mut Refusals,
    ) -> Result<()> {
        let locks = std::mem::take(&mut self.locks);
        let holder = |id: DescriptionId| self.holders.get(id.0 as usize).copied();
        locks.refuse_outsiders(tree, holder, refusals)?;
        locks.distribute(tasks, refusals);
        Ok(())
    }

    /// Refuses leases that nobody could take again.
    pub(crate) fn refuse_leases(&self, tasks: &[Task], spaces: &[Space], refusals: &mut Refusals) {
        let backings = || spaces.iter().flat_map(|space| &space.vmas).map(|vma| vma.backing);
        let maps = |path| {
            let of_it = |backing| matches!(backing, Backing::PrivateFile(of, _) | Backing::SharedFile(of, _) if of == path);
            backings().any(of_it) || tasks.iter().any(|task| task.exe == path)
        };
        let file = |id: DescriptionId| {
            let Target::Path(path) = self.descriptions.get(id.0 as usize)?.target else { return None };
            let (pid, fd) = *self.holders.get(id.0 as usize)?;
            let owner = Dir::task(pid).and_then(|dir| dir.stat(&format!("fd/{fd}"))).ok()?.st_uid;
            Some((path, owner))
        };
        lock::refuse_leases(tasks, file, maps, refusals);
    }

    /// Completes the pipes. All descriptions are known.
    pub(crate) fn finish_pipes(&mut self, refusals: &mut Refusals) -> Result<()> {
        self.pipes.finish(refusals)
    }

    /// Reads the queues of all unix sockets, and records what descriptions are on their way in them, sockets included. Whether connections
    /// not accepted yet can be given up goes with what becomes of those that reach out of the tree.
    pub(crate) fn dump_sockets(
        &mut self,
        paths: &mut Paths,
        terminal: Terminal,
        (half, skip_in_flight): (&HalfPolicy, bool),
        refusals: &mut Refusals,
    ) -> Result<()> {
        let own = nix::unistd::getpid().as_raw();
        let dir = Dir::task(own)?;
        let (fd_dir, info_dir) = (dir.dir("fd")?, dir.dir("fdinfo")?);
        loop {
            let arrived = self.sockets.read_queues(refusals)?;
            if arrived.is_empty() {
                return self.sockets.relate(half, skip_in_flight, refusals);
            }
            for one in arrived {
                let fd = one.fd.as_raw_fd().cast_unsigned();
                let link = Link { fd, target: link_of(&fd_dir, &fd.to_string())? };
                let mut open = Open::look(&link, &info_dir, &Copies::Own)?;
                open.queue_of = Some(one.holder.object.clone());
                let refuse = &mut Refuse::new(refusals, one.holder.pid, &one.holder.name);
                let id = self
                    .description(own, &mut open, &Copies::Own, paths, terminal, refuse)
                    .with_context(|| open.describe())?;
                if let Some(id) = id {
                    if self.descriptions[id.0 as usize].target.is_late() {
                        let reason = "cannot be on its way: it stands for a task, and the queue is filled before there are any";
                        refuse.with_hint(
                            open.describe(),
                            reason,
                            "have the program receive it before the dump",
                        );
                    }
                    self.sockets.found_description(&one, id);
                }
                // Later ones are compared with it.
                self.arrived.push(one.fd);
            }
        }
    }

    /// Refuses internet and packet sockets that cannot be had as they are, once all of the tree are known, and finds out about the interfaces that they
    /// have to do with.
    pub(crate) fn check_network_sockets(
        &mut self,
        policy: inet::Policy,
        refusals: &mut Refusals,
    ) -> Result<()> {
        self.packets.check(policy, refusals);
        self.inet.check(policy, refusals).context("look at internet sockets")?;
        let used = self.inet.interfaces().chain(self.packets.interfaces());
        self.interfaces = interface::dump(used, refusals)?;
        Ok(())
    }

    /// Whether there are TCP connections to be looked at.
    pub(crate) fn has_connections(&self) -> bool {
        self.inet.has_connections()
    }

    /// Looks at TCP connections, if nothing else is in the way of the dump.
    pub(crate) fn look_at_connections(&mut self, policy: inet::Policy) -> Result<inet::Silenced> {
        self.inet.look_at_connections(policy).context("look at TCP connections")
    }

    /// Finds out who else uses message queues, once all of the tree are known.
    pub(crate) fn relate_message_queues(
        &mut self,
        holders: &mut pipe::Holders,
        tree: &HashSet<Pid>,
        tasks: &[Task],
        refusals: &mut Refusals,
    ) -> Result<()> {
        self.message_queues.relate(holders, tree, tasks, refusals)
    }

    /// Whether there are messages in queues to be looked at.
    pub(crate) fn has_messages(&self) -> Result<bool> {
        self.message_queues.have_messages()
    }

    /// Looks what is in message queues, if nothing else is in the way of the dump.
    pub(crate) fn look_into_message_queues(&mut self) -> Result<()> {
        self.message_queues.look_into()
    }

    /// Finds out which BPF maps can be had again, once all of the tree are known.
    pub(crate) fn relate_bpf_maps(
        &mut self,
        tree: &HashSet<Pid>,
        tasks: &[Task],
        refusals: &mut Refusals,
    ) -> Result<()> {
        let trusted = bpf::trusted(tasks, &self.descriptions);
        self.bpf_maps.relate(tree, &trusted, refusals)
    }

    /// Looks what is in BPF maps, if nothing else is in the way of the dump.
    pub(crate) fn look_into_bpf_maps(&mut self) -> Result<()> {
        self.bpf_maps.look_into()
    }

    /// Completes what takes the whole tree to know. The tasks have their descriptors already.
    pub(crate) fn finish_events(
        &mut self,
        tasks: &[Task],
        zombies: &[Zombie],
        had_requests: bool,
        paths: &mut Paths,
        refusals: &mut Refusals,
    ) -> Result<()> {
        let (holders, inodes) = (&self.holders[..], &self.inodes[..]);
        let tree = event::Tree { tasks, zombies, holders, inodes, had_requests };
        self.pidfds.refuse_outsiders(tasks, zombies, refusals);
        self.task_files.refuse_outsiders(tasks, zombies, refusals);
        self.epolls = self.events.finish(&mut self.descriptions, &tree, refusals)?;
        self.inotifies = inotify::dump(self.events.inotifies(), paths, refusals)?;
        self.fanotifies = fanotify::dump(self.events.fanotifies(), tasks, paths, refusals)?;
        Ok(())
    }

    /// Notes which epolls have something to tell. The last look at files: what comes in by the network, or a timer, can do so
    /// at any moment.
    pub(crate) fn note_pending_events(&mut self) -> Result<()> {
        self.events.note_pending(&mut self.epolls, &self.descriptions)
    }

    /// Refuses what somebody outside of the tree could have a part in.
    pub(crate) fn refuse_outsiders(
        &self,
        holders: &mut pipe::Holders,
        tree: &HashSet<Pid>,
        refusals: &mut Refusals,
    ) -> Result<()> {
        holders.refuse_outsiders(tree, self.ends(), refusals)?;
        if !self.events.is_empty() {
            self.events.refuse_outsiders(holders.event_files(tree)?, refusals)?;
        }
        Ok(())
    }

    /// Everything that somebody outside of the tree may have an end of.
    fn ends(&self) -> impl Iterator<Item = (pipe::Object, Option<pipe::Ours<'_>>)> {
        let pipes = self.pipes.objects().map(|(pipe, ours)| (pipe, Some(ours)));
        let netlink = self.netlink.iter().map(|(socket, holder)| (socket.ino, holder));
        let others = self
            .inet
            .holders()
            .chain(netlink)
            .chain(self.packets.holders())
            .map(|(ino, holder)| (ino, holder, None));
        let unix = self.sockets.holders().map(|(ino, holder)| (ino, holder, Some(Key::UnixSocket(ino))));
        let sockets = unix
            .chain(others)
            .map(|(ino, holder, key)| (pipe::Object::Socket(ino), Some(pipe::Ours { holder, key })));
        pipes.chain(self.terminals.living().map(|(pty, _)| (pty, None))).chain(sockets)
    }

    /// The masters of pseudo terminals.
    pub(crate) fn masters(&self) -> impl Iterator<Item = (pipe::Object, BorrowedFd<'_>)> {
        self.terminals.living()
    }

    /// Finds out about pseudo terminals, once all descriptors are known: the device numbers of those that are complete.
    pub(crate) fn relate_terminals(
        &mut self,
        tasks: &[Standing],
        terminal: Terminal,
        guarded: bool,
        refusals: &mut Refusals,
    ) -> Result<Vec<u32>> {
        self.terminals.relate(tasks, terminal.is_some(), guarded, refusals)
    }

    /// Looks what is on its way through them, if nothing else is in the way of the dump.
    pub(crate) fn look_into_terminals(&mut self, refusals: &mut Refusals) -> Result<()> {
        self.terminals.look_into(refusals).context("look into pseudo terminals")
    }
}
