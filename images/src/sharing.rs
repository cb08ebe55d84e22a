//! Kernel objects that tasks share without being threads of each other.

use crate::id::Pid;
use serde::{Deserialize, Serialize};

/// A kind of object that clone(2) can have parent and child share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Object {
    /// The address space (CLONE_VM).
    Memory,
    /// The table of file descriptors (CLONE_FILES).
    Files,
    /// Current and root directory, umask (CLONE_FS).
    Directories,
    /// Signal actions (CLONE_SIGHAND).
    Handlers,
}

impl Object {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Memory, Self::Files, Self::Directories, Self::Handlers];
}

/// With whom a task shares: for each object the first task of the tree that has it, if that is not the task itself.
/// What the object holds is recorded with that one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shares {
    /// The address space.
    pub memory: Option<Pid>,
    /// The table of file descriptors.
    pub files: Option<Pid>,
    /// Current and root directory, umask.
    pub directories: Option<Pid>,
    /// Signal actions.
    pub handlers: Option<Pid>,
}

impl Shares {
    /// Whose object of a kind it has, if it is not its own.
    #[must_use]
    pub const fn of(&self, object: Object) -> Option<Pid> {
        match object {
            Object::Memory => self.memory,
            Object::Files => self.files,
            Object::Directories => self.directories,
            Object::Handlers => self.handlers,
        }
    }

    /// Notes whose object of a kind it has.
    pub fn set(&mut self, object: Object, holder: Option<Pid>) {
        let field = match object {
            Object::Memory => &mut self.memory,
            Object::Files => &mut self.files,
            Object::Directories => &mut self.directories,
            Object::Handlers => &mut self.handlers,
        };
        *field = holder;
    }
}
