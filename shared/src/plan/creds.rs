//! From the credentials a restoring thread has to those it had: in the order in which each step is still allowed.

use crate::op::{self, Op};
use alloc::vec::Vec;
use images::thread::Creds;

const PR_CAPBSET_DROP: u32 = 24;
const PR_SET_SECUREBITS: u32 = 28;
const PR_CAP_AMBIENT: u32 = 47;
const PR_CAP_AMBIENT_RAISE: u64 = 2;
const PR_CAP_AMBIENT_CLEAR_ALL: u64 = 4;
/// A change of uid leaves the capability sets alone.
const SECBIT_NO_SETUID_FIXUP: u32 = 1 << 2;

fn bits(set: u64) -> impl Iterator<Item = u64> {
    (0..64).filter(move |bit| set & (1 << bit) != 0)
}

/// Appends the ops that lead from `have` to `want`; none if nothing differs but no_new_privs, which is set later.
pub fn ops(list: &mut Vec<u8>, have: &Creds, want: &Creds) {
    let securebits = |list: &mut Vec<u8>, bits: u32| {
        op::push(list, &Op::Prctl { option: PR_SET_SECUREBITS, args: [u64::from(bits), 0, 0] });
    };
    let mut current = have.securebits;
    let ids_differ = have.uid != want.uid || have.gid != want.gid;
    if ids_differ && current & SECBIT_NO_SETUID_FIXUP == 0 {
        current |= SECBIT_NO_SETUID_FIXUP;
        securebits(list, current);
    }
    // Raising inheritable beyond permitted is bounded by the bounding set (cap_capset), so it comes before dropping.
    if have.cap_inheritable != want.cap_inheritable {
        op::push(
            list,
            &Op::Capabilities {
                effective: have.cap_effective,
                permitted: have.cap_permitted,
                inheritable: want.cap_inheritable,
            },
        );
    }
    for cap in bits(have.cap_bounding & !want.cap_bounding) {
        op::push(list, &Op::Prctl { option: PR_CAPBSET_DROP, args: [cap, 0, 0] });
    }
    if have.groups != want.groups {
        let bytes: Vec<u8> = want.groups.iter().flat_map(|group| group.to_le_bytes()).collect();
        op::push(list, &Op::Groups(&bytes));
    }
    if have.gid != want.gid {
        op::push(list, &Op::Gid(want.gid));
    }
    if have.uid != want.uid {
        op::push(list, &Op::Uid(want.uid));
    }
    if have.cap_ambient & !want.cap_ambient != 0 {
        op::push(list, &Op::Prctl { option: PR_CAP_AMBIENT, args: [PR_CAP_AMBIENT_CLEAR_ALL, 0, 0] });
    }
    for cap in bits(want.cap_ambient) {
        op::push(list, &Op::Prctl { option: PR_CAP_AMBIENT, args: [PR_CAP_AMBIENT_RAISE, cap, 0] });
    }
    if current != want.securebits {
        securebits(list, want.securebits);
    }
    let sets = |creds: &Creds| (creds.cap_effective, creds.cap_permitted);
    if sets(have) != sets(want) {
        op::push(
            list,
            &Op::Capabilities {
                effective: want.cap_effective,
                permitted: want.cap_permitted,
                inheritable: want.cap_inheritable,
            },
        );
    }
}
