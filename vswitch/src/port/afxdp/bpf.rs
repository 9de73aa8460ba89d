#![allow(unsafe_code)]
//! The XDP program: five instructions, loaded with bpf(2), no tool chain.
//!
//! ```text
//! r2 = ctx->rx_queue_index; r1 = the socket map; r3 = XDP_DROP
//! return bpf_redirect_map(r1, r2, r3)      // the socket of this queue, or drop
//! ```
//!
//! Without a socket in the map the frame is *dropped*, never passed to the host's stack: when the
//! switch dies, its sockets leave the map and the interface goes dead.
//!
//! Invariant owned here: the structures have the layout of `union bpf_attr` (linux/bpf.h) for
//! their command, and everything they point to lives until the call returns.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use crate::sys::netlink::XdpMode;

/// The program's name, by which a later start recognises it.
pub(super) const NAME: &str = "vswitch_xdp";

/// Commands, types and flags of linux/bpf.h.
const MAP_CREATE: i32 = 0;
const MAP_UPDATE_ELEM: i32 = 2;
const PROG_LOAD: i32 = 5;
const PROG_GET_FD_BY_ID: i32 = 13;
const OBJ_GET_INFO_BY_FD: i32 = 15;
const LINK_CREATE: i32 = 28;
const MAP_TYPE_XSKMAP: u32 = 17;
const PROG_TYPE_XDP: u32 = 6;
const ATTACH_TYPE_XDP: u32 = 37;
const PROG_HAS_FRAGS: u32 = 1 << 5;
const FUNC_REDIRECT_MAP: i32 = 51;
const PSEUDO_MAP_FD: u8 = 1;
const XDP_DROP: i32 = 1;
/// Offset of `rx_queue_index` in `struct xdp_md`.
const RX_QUEUE_INDEX: i16 = 16;

const fn name16() -> [u8; 16] {
    let mut out = [0; 16];
    let name = NAME.as_bytes();
    let mut i = 0;
    while i < name.len() {
        out[i] = name[i];
        i += 1;
    }
    out
}

/// Calls bpf(2).
///
/// # Safety
/// `attr` has the layout of `command`, and its pointers are valid for what the command does.
unsafe fn bpf<T>(command: i32, attr: &mut T) -> io::Result<i64> {
    // SAFETY: the caller's promise.
    let r = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attr),
            size_of::<T>(),
        )
    };
    if r < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(r)
}

/// As [`bpf`], for commands that return a descriptor.
///
/// # Safety
/// As [`bpf`], and `command` returns a descriptor.
unsafe fn bpf_fd<T>(command: i32, attr: &mut T) -> io::Result<OwnedFd> {
    // SAFETY: the caller's promise.
    let fd = unsafe { bpf(command, attr) }?;
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel returned a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn raw(fd: BorrowedFd<'_>) -> u32 {
    // An open descriptor is never negative.
    fd.as_raw_fd().unsigned_abs()
}

/// The map from queue number to socket.
#[derive(Debug)]
pub(super) struct SocketMap(OwnedFd);

impl SocketMap {
    /// Room for queues `0..queues`.
    pub(super) fn new(queues: u32) -> io::Result<SocketMap> {
        #[repr(C)]
        struct Attr {
            map_type: u32,
            key_size: u32,
            value_size: u32,
            max_entries: u32,
        }
        let mut attr = Attr {
            map_type: MAP_TYPE_XSKMAP,
            key_size: 4,
            value_size: 4,
            max_entries: queues,
        };
        // SAFETY: the layout of BPF_MAP_CREATE; no pointers.
        unsafe { bpf_fd(MAP_CREATE, &mut attr) }.map(SocketMap)
    }

    /// Frames of `queue` go to `socket`, until that is closed.
    pub(super) fn set(&self, queue: u32, socket: BorrowedFd<'_>) -> io::Result<()> {
        #[repr(C)]
        struct Attr {
            map_fd: u32,
            pad: u32,
            key: u64,
            value: u64,
            flags: u64,
        }
        let value = raw(socket);
        let mut attr = Attr {
            map_fd: raw(std::os::fd::AsFd::as_fd(&self.0)),
            pad: 0,
            key: (&raw const queue).expose_provenance() as u64,
            value: (&raw const value).expose_provenance() as u64,
            flags: 0,
        };
        // SAFETY: the layout of BPF_MAP_UPDATE_ELEM; key and value are four bytes each, as the map
        // was created, and live until the call returns.
        unsafe { bpf(MAP_UPDATE_ELEM, &mut attr) }.map(|_| ())
    }
}

/// The loaded program.
#[derive(Debug)]
pub(super) struct Program {
    pub(super) fd: OwnedFd,
}

impl Program {
    /// Loads it. With `frags` it may be attached where frames exceed a page, and such frames come
    /// as several buffers.
    pub(super) fn load(map: &SocketMap, frags: bool) -> io::Result<Program> {
        Program::load_as(map, frags, &name16())
    }

    pub(super) fn load_as(map: &SocketMap, frags: bool, name: &[u8; 16]) -> io::Result<Program> {
        #[repr(C)]
        struct Attr {
            prog_type: u32,
            insn_cnt: u32,
            insns: u64,
            license: u64,
            log_level: u32,
            log_size: u32,
            log_buf: u64,
            kern_version: u32,
            prog_flags: u32,
            prog_name: [u8; 16],
            prog_ifindex: u32,
            expected_attach_type: u32,
        }
        let program = program(map.0.as_raw_fd());
        let license = c"Apache-2.0";
        let mut attr = Attr {
            prog_type: PROG_TYPE_XDP,
            insn_cnt: u32::try_from(program.len()).map_err(io::Error::other)?,
            insns: program.as_ptr().expose_provenance() as u64,
            license: license.as_ptr().expose_provenance() as u64,
            log_level: 0,
            log_size: 0,
            log_buf: 0,
            kern_version: 0,
            prog_flags: if frags { PROG_HAS_FRAGS } else { 0 },
            prog_name: *name,
            prog_ifindex: 0,
            expected_attach_type: ATTACH_TYPE_XDP,
        };
        // SAFETY: the layout of BPF_PROG_LOAD; instructions and licence live until the call
        // returns.
        unsafe { bpf_fd(PROG_LOAD, &mut attr) }.map(|fd| Program { fd })
    }

    /// Opens a loaded program by its id. Needs CAP_SYS_ADMIN.
    pub(super) fn open(id: u32) -> io::Result<Program> {
        #[repr(C)]
        struct Attr {
            id: u32,
            next_id: u32,
            open_flags: u32,
        }
        let mut attr = Attr {
            id,
            next_id: 0,
            open_flags: 0,
        };
        // SAFETY: the layout of BPF_PROG_GET_FD_BY_ID; no pointers.
        unsafe { bpf_fd(PROG_GET_FD_BY_ID, &mut attr) }.map(|fd| Program { fd })
    }

    /// Its name, as its loader gave it.
    pub(super) fn name(&self) -> io::Result<String> {
        /// The first fields of `struct bpf_prog_info`.
        #[repr(C)]
        #[derive(Default)]
        struct Info {
            before: [u64; 8],
            name: [u8; 16],
        }
        #[repr(C)]
        struct Attr {
            bpf_fd: u32,
            info_len: u32,
            info: u64,
        }
        let mut info = Info::default();
        let mut attr = Attr {
            bpf_fd: raw(std::os::fd::AsFd::as_fd(&self.fd)),
            info_len: 80,
            info: (&raw mut info).expose_provenance() as u64,
        };
        // SAFETY: the layout of BPF_OBJ_GET_INFO_BY_FD; at most `info_len` bytes are written to
        // `info`, which has as many and lives until the call returns. Zeroed counts in it mean
        // that no further pointers in it are used.
        unsafe { bpf(OBJ_GET_INFO_BY_FD, &mut attr) }?;
        let end = info.name.iter().position(|b| *b == 0).unwrap_or(16);
        Ok(String::from_utf8_lossy(info.name.get(..end).unwrap_or(&[])).into_owned())
    }

    /// Attaches it for as long as the returned descriptor is open: until this process ends.
    pub(super) fn link(&self, interface: u32, mode: XdpMode) -> io::Result<OwnedFd> {
        #[repr(C)]
        struct Attr {
            prog_fd: u32,
            target_ifindex: u32,
            attach_type: u32,
            flags: u32,
        }
        let mut attr = Attr {
            prog_fd: raw(std::os::fd::AsFd::as_fd(&self.fd)),
            target_ifindex: interface,
            attach_type: ATTACH_TYPE_XDP,
            flags: mode.flag(),
        };
        // SAFETY: the layout of BPF_LINK_CREATE; no pointers.
        unsafe { bpf_fd(LINK_CREATE, &mut attr) }
    }
}

/// The instructions; `struct bpf_insn` is code, dst|src<<4, offset, immediate.
fn program(map_fd: i32) -> [u64; 6] {
    [
        insn(0x61, 2, 1, RX_QUEUE_INDEX, 0),     // r2 = *(u32 *)(r1 + 16)
        insn(0x18, 1, PSEUDO_MAP_FD, 0, map_fd), // r1 = map (64-bit immediate: two slots)
        insn(0x00, 0, 0, 0, 0),
        insn(0xb7, 3, 0, 0, XDP_DROP), // r3 = what to do without a socket
        insn(0x85, 0, 0, 0, FUNC_REDIRECT_MAP), // call
        insn(0x95, 0, 0, 0, 0),        // return r0
    ]
}

fn insn(code: u8, dst: u8, src: u8, offset: i16, immediate: i32) -> u64 {
    let [o0, o1] = offset.to_ne_bytes();
    let [i0, i1, i2, i3] = immediate.to_ne_bytes();
    // The two register fields are bit fields: the first one is low on little-endian machines.
    let registers = if cfg!(target_endian = "little") {
        dst | src << 4
    } else {
        dst << 4 | src
    };
    u64::from_ne_bytes([code, registers, o0, o1, i0, i1, i2, i3])
}

#[cfg(test)]
mod tests {
    use super::{XDP_DROP, program};

    #[test]
    fn the_program_drops_without_a_socket() {
        // An XDP_PASS here would hand containers to the host while the switch is dead.
        let bytes = program(0x0102)[3].to_ne_bytes();
        assert_eq!((bytes[0], bytes[1] & 0xf), (0xb7, 3));
        assert_eq!(
            i32::from_ne_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]),
            XDP_DROP
        );
        assert_eq!(XDP_DROP, 1);
        assert_eq!(super::name16()[..11], *b"vswitch_xdp");
    }
}
