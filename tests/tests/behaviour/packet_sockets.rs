//! Sockets that hear and send packets.

use tests::case::Workload;
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
