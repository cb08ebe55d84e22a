//! Sockets that hear and send packets.

use anyhow::ensure;
use std::process::Command;
use tests::case::{Workload, nothing_left};
use tests::isolate::isolated_for_both;
use tests::{here, require_ia32, require_root};

const fn packet_sockets(case: &'static str) -> Workload {
    Workload::new("packet_sockets", case)
}

tests::survives! {
    ping => packet_sockets("ping");
    raw => packet_sockets("raw");
    packet => packet_sockets("packet");
}

/// Packets that have not been read are in the way, unless they may be lost.
#[test]
fn unread() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        let mut running = packet_sockets("unread").start(dir, abi)?;
        let before = running.snapshot()?;
        let output = running.dump(&[])?.code(1)?;
        output.says_with_hint("has packets to be read, which cannot be put back")?;
        assert_eq!(output.stderr.matches("has packets to be read").count(), 2, "{}", output.stderr);
        running.looks_like(&before)?;
        running.dump(&["--skip-in-flight"])?.success()?;
        running.comes_back()
    });
}

/// Two interfaces that are connected with each other, with these numbers.
fn make_interfaces(numbers: [u32; 2]) -> tests::Result {
    let [first, second] = numbers.map(|number| number.to_string());
    let pair = ["crr0", "index", &first, "type", "veth", "peer", "name", "crr1", "index", &second];
    ip(&[&["link", "add"], &pair[..]].concat())?;
    for (name, address) in [("crr0", "fe80::1/64"), ("crr1", "fe80::2/64")] {
        ip(&["link", "set", name, "addrgenmode", "none"])?;
        ip(&["link", "set", name, "up"])?;
        ip(&["address", "add", address, "dev", name, "nodad"])?;
    }
    Ok(())
}

fn ip(args: &[&str]) -> tests::Result {
    let status = Command::new("ip").args(args).status()?;
    ensure!(status.success(), "ip {args:?}: {status}");
    Ok(())
}

/// Sockets find their interfaces by name, and a restore names those that are missing.
#[test]
fn interfaces_made_anew() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        make_interfaces([50, 51])?;
        let mut running = packet_sockets("interfaces").start(dir, abi)?;
        let before = running.snapshot()?;
        running.cycle(&before)?;
        running.dump(&[])?.success()?;
        nothing_left()?;
        ip(&["link", "del", "crr0"])?;
        let output = running.restore(&["-d"])?.code(1)?;
        for name in ["crr0", "crr1"] {
            output.says_with_hint(&format!("network interface {name}: is not there"))?;
        }
        nothing_left()?;
        // Each has the number that the other one had.
        make_interfaces([51, 50])?;
        running.restore(&["-d"])?.success()?;
        running.verify()?;
        ip(&["link", "del", "crr0"])
    });
}
