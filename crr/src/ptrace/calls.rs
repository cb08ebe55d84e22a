//! System calls that stopped threads are set up for.
//!
//! A thread runs nothing but the one instruction: an interrupt is asked for on entry, so that it stops again on its way out,
//! before it could run what follows. From there everything goes on as if it had not been.

use super::regs::{self, Field};
use super::{Error, Patience, Seized, Stopped};

/// Has a thread make the call that its registers are set up for. With it comes what the call answered.
///
/// # Errors
/// Everything of [`Error`].
pub fn make_call(thread: Stopped, patience: &Patience) -> Result<(Stopped, i64), Error> {
    leave(pass(thread.cont_to_syscall(0)?, patience)?, patience)
}

/// A thread among others.
enum Stage {
    /// It makes no call.
    Still(Stopped),
    Calling(Seized),
}

/// As [`make_call`], by those of several threads that are set up for a call (`true`), all at the same time. They come back in the
/// same order.
///
/// # Errors
/// As [`make_call`].
pub fn make_calls(
    threads: Vec<(Stopped, bool)>,
    patience: &Patience,
) -> Result<Vec<(Stopped, Option<i64>)>, Error> {
    let enter = |(thread, calls): (Stopped, bool)| match calls {
        true => thread.cont_to_syscall(0).map(Stage::Calling),
        false => Ok(Stage::Still(thread)),
    };
    let pass = |stage| match stage {
        Stage::Calling(thread) => pass(thread, patience).map(Stage::Calling),
        still @ Stage::Still(_) => Ok(still),
    };
    let leave = |stage| match stage {
        Stage::Calling(thread) => leave(thread, patience).map(|(stopped, answer)| (stopped, Some(answer))),
        Stage::Still(thread) => Ok((thread, None)),
    };
    let entering: Vec<Stage> = threads.into_iter().map(enter).collect::<Result<_, _>>()?;
    let leaving: Vec<Stage> = entering.into_iter().map(pass).collect::<Result<_, _>>()?;
    leaving.into_iter().map(leave).collect()
}

/// From the entry of a call on.
fn pass(entering: Seized, patience: &Patience) -> Result<Seized, Error> {
    let entered = entering.wait_stop(patience)?;
    entered.interrupt()?;
    entered.cont(0)
}

fn leave(leaving: Seized, patience: &Patience) -> Result<(Stopped, i64), Error> {
    let stopped = leaving.wait_stop(patience)?.settle(patience)?;
    let answer = regs::get_signed(&stopped.regs()?, Field::Ax);
    Ok((stopped, answer))
}
