//! TCP connections, looked at in repair mode, and silent while their tree is killed.
//!
//! In repair mode a socket does not tell the other end that it is closed, which is what lets a connection outlive its tree. A
//! socket that is left in it does not work any more. So a keeper switches it off whatever happens, and lets traffic pass.
//!
//! Both ends of a connection can be in the tree, and then nothing is held: their kernel may send what was written all the
//! time. What an end has to send is read of all connections before what an end has received, so nothing that was received
//! can be missing where it came from.

use super::hold::Hold;
use super::urgent;
use crate::keeper::Keeper;
use crate::resource::socket::before::Before;
use crate::resource::socket::option;
use crate::sys::socket as sys;
use crate::sys::tcp::{self, Queue, Repair};
use anyhow::{Context, Result, bail};
use images::inet::{InetAddress, TcpAgreement, TcpConnection};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

const PEEK: i32 = libc::MSG_PEEK | libc::MSG_DONTWAIT;

/// What repair mode changes.
const CHANGED: [(i32, i32); 2] = [(libc::SOL_SOCKET, option::SO_REUSEADDR), urgent::CHANGED];

/// Switches repair mode off, without a word, and puts back what it has changed.
fn put_back(before: &Before<Rc<OwnedFd>>) {
    // It was possible before.
    let _ = tcp::repair(before.socket.as_fd(), Repair::OffSilently);
    before.put_back();
}

type PutBack = Box<dyn Fn()>;

/// Connections that say nothing more, as long as somebody has them open.
pub(crate) struct Silent(#[expect(dead_code, reason = "held, not looked at")] Rc<Vec<Before<Rc<OwnedFd>>>>);

/// Connections whose traffic is held. Dropped, it lets them go on.
pub(crate) struct Silenced {
    sockets: Rc<Vec<Before<Rc<OwnedFd>>>>,
    /// Those that come back closed.
    given_up: Vec<Rc<OwnedFd>>,
    hold: Option<Hold>,
    keeper: Option<Keeper<PutBack>>,
}

impl std::fmt::Debug for Silenced {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Silenced").field(&self.sockets).finish()
    }
}

impl Silenced {
    /// Holds the traffic of the connections that reach out of the tree (by their local and their other end).
    pub(super) fn new<'a>(
        sockets: impl Iterator<Item = &'a Rc<OwnedFd>>,
        given_up: impl Iterator<Item = &'a Rc<OwnedFd>>,
        hold: Option<Hold>,
        outside: &[(InetAddress, InetAddress)],
    ) -> Result<Self> {
        let before = sockets.map(|socket| Before::of(Rc::clone(socket), &CHANGED));
        let sockets = Rc::new(before.collect::<Result<Vec<_>>>()?);
        let given_up = given_up.map(Rc::clone).collect();
        if sockets.is_empty() {
            return Ok(Self { sockets, given_up, hold: None, keeper: None });
        }
        let (kept, table) = (Rc::clone(&sockets), hold.clone());
        let put_back: PutBack = Box::new(move || {
            kept.iter().for_each(put_back);
            if let Some(hold) = &table {
                let _ = hold.lift();
            }
        });
        let keeper = Keeper::new(put_back).context("keep TCP connections")?;
        if let Some(hold) = &hold {
            let _nft = keeper.waits_for_children().context("duplicate a descriptor")?;
            hold.place(outside)?;
        }
        Ok(Self { sockets, given_up, hold, keeper: Some(keeper) })
    }

    /// Looks at the connections, in order. An error names the one by its number.
    pub(super) fn look(&self, named: impl Fn(usize) -> String) -> Result<Vec<TcpConnection>> {
        let switch = |to| {
            self.sockets.iter().try_for_each(|one| tcp::repair(one.socket.as_fd(), to).context("TCP_REPAIR"))
        };
        switch(Repair::On)?;
        let looked = (|| {
            let mut found = Vec::with_capacity(self.sockets.len());
            for (number, one) in self.sockets.iter().enumerate() {
                found.push(look_at_outgoing(one.socket.as_fd()).with_context(|| named(number))?);
            }
            for (number, (one, connection)) in self.sockets.iter().zip(&mut found).enumerate() {
                look_at_incoming(one, connection).with_context(|| named(number))?;
            }
            Ok(found)
        })();
        self.sockets.iter().for_each(put_back);
        looked
    }

    /// Lets the connections go on.
    ///
    /// # Errors
    /// If their traffic cannot be let pass.
    pub(crate) fn let_go(mut self) -> Result<()> {
        let lifted = self.hold.as_ref().map_or(Ok(()), |hold| {
            hold.lift().or_else(|_| hold.lift()).with_context(|| {
                format!("their traffic is held until somebody calls nft delete table inet {}", hold.table())
            })
        });
        drop(self.keeper.take());
        lifted
    }

    /// The connections stay as they are, held, when their tree is killed. To be called right before; `doom` ties the tree to this
    /// process: from then on there is no way back, whoever is killed.
    ///
    /// # Errors
    /// If one does not take it; all of them go on then.
    pub(crate) fn outlive(mut self, doom: impl FnOnce() -> Result<()>) -> Result<Silent> {
        for one in self.sockets.iter() {
            tcp::repair(one.socket.as_fd(), Repair::On).context("TCP_REPAIR")?;
        }
        doom()?;
        for socket in &self.given_up {
            // Reset, not closed: one that is closed keeps its port until the other end has closed it, too. It is not worth a failure.
            let linger = [1i32.to_ne_bytes(), 0i32.to_ne_bytes()].concat();
            let _ = sys::set_option(socket.as_fd(), libc::SOL_SOCKET, libc::SO_LINGER, &linger);
        }
        if let Some(keeper) = self.keeper.take() {
            keeper.leave();
        }
        Ok(Silent(self.sockets))
    }
}

/// Whether the other end of a connection in this state has said that it sends no more.
pub(super) const fn has_ended_there(state: u8) -> bool {
    matches!(state, tcp::CLOSE_WAIT | tcp::LAST_ACK | tcp::CLOSING)
}

/// What was sent, or is to be, and what the ends agreed on.
fn look_at_outgoing(fd: BorrowedFd<'_>) -> Result<TcpConnection> {
    let info = tcp::info(fd).context("TCP_INFO")?;
    if info.state == tcp::CLOSE {
        bail!("a TCP connection has ended meanwhile: dump again");
    }
    let ended_here = matches!(info.state, tcp::FIN_WAIT1 | tcp::FIN_WAIT2 | tcp::CLOSING | tcp::LAST_ACK);
    tcp::choose(fd, Queue::Send).context("TCP_REPAIR_QUEUE")?;
    // Of the end of the stream as of a byte: it has a number, and is acknowledged after everything else.
    let end = u32::from(ended_here);
    let numbers = || -> Result<(u32, u32, u32)> {
        Ok((
            tcp::sequence(fd).context("TCP_QUEUE_SEQ")?.wrapping_sub(end),
            tcp::unacknowledged(fd).context("SIOCOUTQ")?.saturating_sub(end),
            tcp::unsent(fd).context("SIOCOUTQNSD")?.saturating_sub(end),
        ))
    };
    let ((send_seq, _, unsent), outgoing) =
        at_one_moment(numbers, |&(_, unacknowledged, _)| peek(fd, unacknowledged as usize))
            .context("read its outgoing queue")?;
    Ok(TcpConnection {
        send_seq,
        receive_seq: 0,
        outgoing,
        unsent,
        incoming: Vec::new(),
        urgent: None,
        agreed: TcpAgreement {
            mss: tcp::mss(fd).context("TCP_MAXSEG")?,
            window_scale: info.window_scale,
            sack: info.sack,
            timestamp: info.timestamps.then(|| tcp::timestamp(fd)).transpose().context("TCP_TIMESTAMP")?,
        },
        window: Default::default(),
        ended_here,
        ended_there: false,
        other_end: None,
    })
}

fn look_at_incoming(one: &Before<Rc<OwnedFd>>, connection: &mut TcpConnection) -> Result<()> {
    let fd = one.socket.as_fd();
    tcp::choose(fd, Queue::Receive).context("TCP_REPAIR_QUEUE")?;
    let numbers = || -> Result<(u32, u8)> {
        Ok((tcp::sequence(fd).context("TCP_QUEUE_SEQ")?, tcp::info(fd).context("TCP_INFO")?.state))
    };
    let ((sequence, state), ((incoming, urgent), window)) =
        at_one_moment(numbers, |_| Ok((urgent::look(one)?, tcp::window(fd).context("TCP_REPAIR_WINDOW")?)))
            .context("read its incoming queue")?;
    if state == tcp::CLOSE {
        bail!("a TCP connection has ended meanwhile: dump again");
    }
    (connection.incoming, connection.urgent, connection.window) = (incoming, urgent, window);
    connection.ended_there = has_ended_there(state);
    connection.receive_seq = sequence.wrapping_sub(u32::from(connection.ended_there));
    if connection.ended_there {
        // Behind the end of the stream, which is still to come for the one that is made again.
        let behind = connection.receive_seq.wrapping_add(1);
        for seq in [&mut connection.window.rcv_wup, &mut connection.window.snd_wl1] {
            if *seq == behind {
                *seq = connection.receive_seq;
            }
        }
    }
    Ok(())
}

/// What `look` shows while `numbers` stay what they are: the network goes on where nothing is held.
fn at_one_moment<N: PartialEq, T>(
    numbers: impl Fn() -> Result<N>,
    look: impl Fn(&N) -> Result<T>,
) -> Result<(N, T)> {
    for _ in 0..1000 {
        let before = numbers()?;
        let looked = look(&before);
        if numbers()? == before {
            return Ok((before, looked?));
        }
    }
    bail!("its numbers do not stand still")
}

/// As much of the chosen queue, or of what was received, without taking it out.
pub(super) fn peek(fd: BorrowedFd<'_>, bytes: usize) -> Result<Vec<u8>> {
    let found = peek_some(fd, bytes)?;
    if found.len() != bytes {
        bail!("{} of {bytes} bytes are there", found.len());
    }
    Ok(found)
}

/// The same, as far as one call goes.
pub(super) fn peek_some(fd: BorrowedFd<'_>, bytes: usize) -> Result<Vec<u8>> {
    let mut buffer = vec![0u8; bytes];
    if bytes > 0 {
        let length = sys::receive(fd, &mut buffer, PEEK)?.length;
        buffer.truncate(length);
    }
    Ok(buffer)
}
