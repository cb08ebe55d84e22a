//! What the kernel's socket diagnostics tell of packet sockets, by include/uapi/linux/packet_diag.h.

use crate::resource::socket::diag;
use anyhow::Result;
use images::packet::PacketMembership;
use netlink_packet_core::{DecodeError, NetlinkDeserializable, NetlinkHeader, NetlinkSerializable};
use std::collections::HashMap;

const SOCK_DIAG_BY_FAMILY: u16 = 20;

const SHOW_MEMBERSHIPS: u32 = 1 << 1;
const SHOW_RINGS: u32 = 1 << 2;
const SHOW_FANOUT: u32 = 1 << 3;

/// `struct packet_diag_req`, and the part of an answer before its attributes, `struct packet_diag_msg`.
const REQUEST_SIZE: usize = 20;
const ANSWER_SIZE: usize = 16;
/// `struct packet_diag_mclist`: interface, count, kind, length of the address, address.
const MEMBERSHIP_SIZE: usize = 44;

/// All packet sockets by their inodes.
pub(super) type Known = HashMap<u64, Told>;

/// What is told of one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Told {
    pub(super) memberships: Vec<PacketMembership>,
    /// It has a ring.
    pub(super) ring: bool,
    /// It is one of a group.
    pub(super) shares: bool,
}

/// Asks for all of crr's network namespace.
///
/// # Errors
/// Without CONFIG_PACKET_DIAG.
pub(super) fn query() -> Result<Known> {
    let mut known = Known::new();
    diag::ask_as(Request, |Answer(ino, told): Answer| drop(known.insert(ino, told)))?;
    Ok(known)
}

struct Request;

impl NetlinkSerializable for Request {
    fn message_type(&self) -> u16 {
        SOCK_DIAG_BY_FAMILY
    }

    fn buffer_len(&self) -> usize {
        REQUEST_SIZE
    }

    fn serialize(&self, buffer: &mut [u8]) {
        buffer.fill(0);
        let show = SHOW_MEMBERSHIPS | SHOW_RINGS | SHOW_FANOUT;
        if let (Some(family), Ok(packet)) = (buffer.first_mut(), u8::try_from(libc::AF_PACKET)) {
            *family = packet;
        }
        if let Some(to) = buffer.get_mut(8..12) {
            to.copy_from_slice(&show.to_ne_bytes());
        }
    }
}

struct Answer(u64, Told);

impl NetlinkDeserializable for Answer {
    type Error = DecodeError;

    fn deserialize(_: &NetlinkHeader, payload: &[u8]) -> Result<Self, DecodeError> {
        parse(payload).ok_or_else(|| DecodeError::from("answer cut off"))
    }
}

fn parse(payload: &[u8]) -> Option<Answer> {
    const MEMBERSHIPS: u16 = 1;
    const RX_RING: u16 = 2;
    const TX_RING: u16 = 3;
    const FANOUT: u16 = 4;
    let mut told = Told::default();
    let ino = word(payload, 4)?;
    let mut rest = payload.get(ANSWER_SIZE..)?;
    // Attributes: length with these four bytes, kind, contents.
    while rest.len() >= 4 {
        let length = usize::from(half(rest, 0)?);
        let contents = rest.get(4..length)?;
        match half(rest, 2)? {
            MEMBERSHIPS => {
                let each = contents.chunks_exact(MEMBERSHIP_SIZE);
                told.memberships = each.map(membership).collect::<Option<_>>()?;
            }
            RX_RING | TX_RING => told.ring = true,
            FANOUT => told.shares = true,
            _ => {}
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Some(Answer(ino.into(), told))
}

fn membership(bytes: &[u8]) -> Option<PacketMembership> {
    let length = usize::from(half(bytes, 10)?);
    Some(PacketMembership {
        interface: word(bytes, 0)?,
        count: word(bytes, 4)?,
        kind: half(bytes, 8)?,
        address: bytes.get(12..12 + length)?.to_vec(),
    })
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_parsed() {
        let mut bytes = vec![17, 3, 0, 3, 0x2a, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        bytes.extend([48, 0, 1, 0, 2, 0, 0, 0, 3, 0, 0, 0, 1, 0, 0, 0]);
        bytes.extend([0; 32]);
        bytes.extend([8, 0, 4, 0, 7, 0, 0, 0]);
        let Answer(ino, told) = parse(&bytes).unwrap();
        let promiscuous = PacketMembership { interface: 2, kind: 1, address: Vec::new(), count: 3 };
        assert_eq!((ino, told), (42, Told { memberships: vec![promiscuous], ring: false, shares: true }));
        assert!(parse(&bytes[..40]).is_none());
    }
}
