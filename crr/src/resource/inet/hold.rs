//! Holding traffic: while a tree is gone, what the other ends of its TCP connections send is dropped, or this machine would
//! answer that it knows of no such connection.
//!
//! One nftables table for each checkpoint, with the connections in sets: it takes one transaction, however many there are.

use super::address::on_the_wire;
use crate::fault::{self, Point};
use anyhow::{Context, Result, bail};
use images::inet::InetAddress;
use std::fmt::Write as _;
use std::io::Write as _;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

/// What may pass: the mark of what crr itself sends to a socket of this machine.
pub(super) const MARK: u32 = 0x6372_7221;

/// A table of nftables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hold {
    table: String,
}

impl Hold {
    /// One that exists already, or will be made by [`Hold::place`].
    pub(crate) fn named(table: &str) -> Self {
        Self { table: table.to_owned() }
    }

    /// A name that no other checkpoint uses.
    pub(crate) fn new() -> Result<Self> {
        let mut random = [0u8; 8];
        let mut source = std::fs::File::open("/dev/urandom").context("/dev/urandom")?;
        std::io::Read::read_exact(&mut source, &mut random).context("/dev/urandom")?;
        Ok(Self { table: format!("crr-{:016x}", u64::from_le_bytes(random)) })
    }

    /// Its name.
    pub(crate) fn table(&self) -> &str {
        &self.table
    }

    /// Drops both directions of these connections, given by their local and their other end. Replaces what the table held.
    pub(crate) fn place(&self, connections: &[(InetAddress, InetAddress)]) -> Result<()> {
        nft(&self.script(connections)).context("hold the traffic of TCP connections")
    }

    /// Whether it is in force.
    pub(crate) fn exists(&self) -> bool {
        nft(&format!("list table inet {}\n", self.table)).is_ok()
    }

    /// Lets traffic pass again, if it was held.
    pub(crate) fn lift(&self) -> Result<()> {
        // Made first, so that deleting it cannot fail.
        let script = format!("add table inet {0}\ndelete table inet {0}\n", self.table);
        nft(&script).context("let the traffic of TCP connections pass")
    }

    fn script(&self, connections: &[(InetAddress, InetAddress)]) -> String {
        let table = &self.table;
        // Made first, so that deleting it cannot fail.
        let mut script =
            format!("add table inet {table}\ndelete table inet {table}\ntable inet {table} {{\n");
        let mut chains = [String::new(), String::new()];
        for (family, kind, select) in [("ip", "ipv4_addr", true), ("ip6", "ipv6_addr", false)] {
            let mut elements = Vec::new();
            for (local, peer) in connections {
                let (local, peer) = (on_the_wire(local), on_the_wire(peer));
                if local.is_ipv4() == select {
                    elements.push(format!(
                        "{} . {} . {} . {}",
                        local.ip(),
                        local.port(),
                        peer.ip(),
                        peer.port()
                    ));
                }
            }
            if elements.is_empty() {
                continue;
            }
            let _ = writeln!(
                script,
                "  set {family}-held {{ type {kind} . inet_service . {kind} . inet_service; elements = {{ {} }}; }}",
                elements.join(", ")
            );
            for (chain, (own, other)) in chains.iter_mut().zip([("d", "s"), ("s", "d")]) {
                let _ = writeln!(
                    chain,
                    "    meta l4proto tcp {family} {own}addr . tcp {own}port . {family} {other}addr . tcp {other}port \
                     @{family}-held drop"
                );
            }
        }
        for (hook, chain) in ["input", "output"].into_iter().zip(chains) {
            let _ = writeln!(
                script,
                "  chain {hook} {{\n    type filter hook {hook} priority raw; policy accept;\n    \
                 meta mark {MARK:#x} accept\n{chain}  }}"
            );
        }
        script.push_str("}\n");
        script
    }
}

/// Has nft carry out a script, as one transaction.
fn nft(script: &str) -> Result<()> {
    fault::point(Point::Nft).context("nft")?;
    let mut child = Command::new("nft")
        .args(["-f", "-"])
        // A key that interrupts crr is not to interrupt it halfway.
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("run nft (of the package nftables)")?;
    if let Some(mut input) = child.stdin.take() {
        input.write_all(script.as_bytes()).context("nft")?;
    }
    let output = child.wait_with_output().context("nft")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("nft: {}", said.lines().next().unwrap_or("failed without a word"));
    }
    Ok(())
}
