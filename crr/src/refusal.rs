//! Why something is not dumped or restored: one named object a refusal, all of them reported together.

use images::Pid;
use std::fmt;

/// One thing that stands in the way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The task it belongs to, with its command name, where it belongs to one.
    pub task: Option<(Pid, String)>,
    /// The object: `fd 5 (socket:[1234])`, `0x7f00…-0x7f01… (/memfd:x (deleted))`.
    pub object: String,
    /// Why it is in the way.
    pub reason: String,
    /// The way out, where there is one.
    pub hint: Option<String>,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some((pid, comm)) = &self.task {
            write!(f, "task {pid} ({comm}): ")?;
        }
        write!(f, "{}: {}", self.object, self.reason)?;
        if let Some(hint) = &self.hint {
            write!(f, "\n  hint: {hint}")?;
        }
        Ok(())
    }
}

/// All refusals of one command: an error that main prints line by line.
#[derive(Debug, PartialEq, Eq)]
pub struct Refused {
    /// `dump` or `restore`.
    pub what: &'static str,
    /// At least one.
    pub refusals: Vec<Refusal>,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} refused", self.what)?;
        for refusal in &self.refusals {
            write!(f, "\n{refusal}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Refused {}

/// Collects refusals while looking at a whole tree.
#[derive(Debug, Default)]
pub struct Refusals(Vec<Refusal>);

impl Refusals {
    /// Notes one.
    pub fn push(&mut self, refusal: Refusal) {
        if !self.0.contains(&refusal) {
            self.0.push(refusal);
        }
    }

    /// Notes one that belongs to a task.
    pub fn task(
        &mut self,
        task: (Pid, &str),
        object: impl Into<String>,
        reason: impl Into<String>,
        hint: Option<&str>,
    ) {
        self.push(Refusal {
            task: Some((task.0, task.1.to_owned())),
            object: object.into(),
            reason: reason.into(),
            hint: hint.map(str::to_owned),
        });
    }

    /// Whether nothing stands in the way so far.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Ends the collection.
    ///
    /// # Errors
    /// [`Refused`] with everything noted.
    pub fn finish(self, what: &'static str) -> Result<(), Refused> {
        if self.0.is_empty() { Ok(()) } else { Err(Refused { what, refusals: self.0 }) }
    }
}
