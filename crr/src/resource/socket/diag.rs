//! The kernel's socket diagnostics: all sockets of a kind in crr's network namespace.

use anyhow::{Context, Result, bail};
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader, NetlinkMessage,
    NetlinkPayload, NetlinkSerializable,
};
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_SOCK_DIAG};

/// Room for one answer: the kernel fills up to 32 KiB at a time.
const ANSWER_SIZE: usize = 64 << 10;

/// Asks, and shows each answer.
///
/// # Errors
/// If the kernel knows no diagnostics of this kind.
pub(crate) fn ask(request: SockDiagMessage, each: impl FnMut(SockDiagMessage)) -> Result<()> {
    ask_as(request, each)
}

/// [`ask`], of a kind that brings messages of its own.
///
/// # Errors
/// As there.
pub(crate) fn ask_as<A: NetlinkDeserializable>(
    request: impl NetlinkSerializable,
    each: impl FnMut(A),
) -> Result<()> {
    read_answers(&send(NETLINK_SOCK_DIAG, &encode(request, NLM_F_REQUEST | NLM_F_DUMP))?, each)
}

/// Has the kernel give up one socket (SOCK_DESTROY of include/uapi/linux/sock_diag.h).
///
/// # Errors
/// Without CONFIG_INET_DIAG_DESTROY, or if it is gone.
pub(crate) fn destroy(one: SockDiagMessage) -> Result<()> {
    const SOCK_DESTROY: u16 = 21;
    let mut bytes = encode(one, NLM_F_REQUEST | NLM_F_ACK);
    // The message is that of a request for the same socket, of another type.
    bytes.get_mut(4..6).context("message")?.copy_from_slice(&SOCK_DESTROY.to_ne_bytes());
    read_answers(&send(NETLINK_SOCK_DIAG, &bytes)?, |_: SockDiagMessage| ())
}

fn encode(request: impl NetlinkSerializable, flags: u16) -> Vec<u8> {
    let mut header = NetlinkHeader::default();
    header.flags = flags;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(request));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

/// Sends a message to the kernel; by the socket comes the answer.
///
/// # Errors
/// If the kernel does not know the protocol.
pub(crate) fn send(protocol: isize, bytes: &[u8]) -> Result<Socket> {
    let mut socket = Socket::new(protocol)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.send(bytes, 0)?;
    Ok(socket)
}

fn read_answers<A: NetlinkDeserializable>(socket: &Socket, mut each: impl FnMut(A)) -> Result<()> {
    let mut buffer = vec![0u8; ANSWER_SIZE];
    loop {
        let length = socket.recv(&mut &mut buffer[..], 0)?;
        let mut rest = buffer.get(..length).context("answer cut off")?;
        while !rest.is_empty() {
            let message = <NetlinkMessage<A>>::deserialize(rest)?;
            match message.payload {
                NetlinkPayload::InnerMessage(answer) => each(answer),
                NetlinkPayload::Done(_) => return Ok(()),
                // An acknowledgement has no code.
                NetlinkPayload::Error(error) if error.code.is_none() => return Ok(()),
                NetlinkPayload::Error(error) => return Err(error.to_io().into()),
                _ => bail!("unexpected answer {:?}", message.header),
            }
            let whole = (message.header.length as usize).next_multiple_of(4);
            rest = rest.get(whole..).unwrap_or_default();
        }
    }
}
