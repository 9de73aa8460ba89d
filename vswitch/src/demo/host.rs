//! What a workload of the demo can do, whether its TCP is smoltcp in a guest or the kernel in a
//! container. Nothing blocks: everything is asked again until it is so.

use std::io;
use std::net::SocketAddrV4;

use super::Halt;

/// A socket of one host.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Sock(pub(super) usize);

/// How far a socket is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum State {
    /// Listening, or the peer has not answered.
    Waiting,
    /// Bytes can be sent.
    Open,
    /// It never opened, or it was torn down: why.
    Refused(String),
}

/// A workload with TCP.
pub(super) trait Host {
    /// Lets the stack work; says whether there was anything to do.
    fn poll(&mut self) -> bool;

    /// Listens; the socket becomes the first connection that comes.
    fn listen(&mut self, port: u16) -> Result<Sock, Halt>;

    /// Starts to connect.
    fn dial(&mut self, to: SocketAddrV4) -> Result<Sock, Halt>;

    /// How far the socket is.
    fn state(&mut self, sock: Sock) -> State;

    /// Bytes that have come; [`io::ErrorKind::WouldBlock`] when none have.
    fn read(&mut self, sock: Sock, to: &mut [u8]) -> io::Result<usize>;

    /// Takes as many as there is room for; [`io::ErrorKind::WouldBlock`] when there is none.
    fn write(&mut self, sock: Sock, bytes: &[u8]) -> io::Result<usize>;

    /// Forgets the socket; its connection is reset.
    fn close(&mut self, sock: Sock);

    /// Puts a frame on the wire past the stack, where the host can do that.
    fn send_raw(&mut self, frame: &[u8]) -> io::Result<()>;
}
