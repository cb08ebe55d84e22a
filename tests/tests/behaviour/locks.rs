//! File locks.

use tests::abi::Abi;
use tests::case::Workload;
use tests::isolate::isolated;
use tests::{here, require_ia32, require_root};

const fn locks(case: &'static str) -> Workload {
    Workload::new("locks", case)
}

tests::survives! {
    kinds => locks("kinds");
    waited_for => locks("waited_for");
    descriptions_waited_for => locks("descriptions_waited_for");
    between_abis => locks("between_abis");
    leases => locks("leases");
    leases_between_abis => locks("leases_between_abis");
}

/// Somebody else has taken a lock meanwhile: nothing comes back, and everything once it is free.
#[test]
fn taken_by_another() {
    require_root!();
    require_ia32!();
    isolated(&here!(), |dir| {
        for abi in Abi::ALL {
            let dir = dir.join(abi.name());
            let mut running = locks("kinds").start(&dir, abi)?;
            running.dump(&[])?.success()?;
            tests::case::nothing_left()?;
            let file = std::fs::File::open(dir.join("whole"))?;
            file.lock()?;
            running.restore(&["-d"])?.code(1)?.says("take its lock again")?;
            tests::case::nothing_left()?;
            file.unlock()?;
            drop(file);
            running.restore(&["-d"])?.success()?;
            running.verify()?;
        }
        Ok(())
    });
}
