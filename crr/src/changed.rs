//! The one kind of failure that is not "nothing happened": the command failed and the target was changed.

use std::fmt;

/// Marks an error, as its context, when the tasks are not as they were before; the exit code tells (3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changed {
    /// What became of the tasks: `task 41 was killed`, `the tree is left stopped`.
    pub how: String,
}

impl fmt::Display for Changed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.how)
    }
}

impl std::error::Error for Changed {}
