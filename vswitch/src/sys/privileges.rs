#![allow(unsafe_code)]
//! Giving up what a process does not need, for good.
//!
//! Invariant owned here: none beyond the call; every pointer given to the kernel is to a local.

use std::io;

/// What the switch needs for its ports, and what else reaches into the kernel or into other processes (capabilities(7)).
pub const OF_THE_SWITCH: [u8; 17] = [
    2,  // CAP_DAC_READ_SEARCH
    12, // CAP_NET_ADMIN
    13, // CAP_NET_RAW
    14, // CAP_IPC_LOCK
    16, // CAP_SYS_MODULE
    17, // CAP_SYS_RAWIO
    19, // CAP_SYS_PTRACE
    21, // CAP_SYS_ADMIN
    22, // CAP_SYS_BOOT
    23, // CAP_SYS_NICE
    25, // CAP_SYS_TIME
    27, // CAP_MKNOD
    33, // CAP_MAC_ADMIN
    34, // CAP_SYSLOG
    38, // CAP_PERFMON
    39, // CAP_BPF
    40, // CAP_CHECKPOINT_RESTORE
];

/// `_LINUX_CAPABILITY_VERSION_3` of <linux/capability.h>: sets of 64 bits, in two halves.
const VERSION: u32 = 0x2008_0522;

#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Half {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

fn option(option: libc::c_int, arguments: [libc::c_ulong; 2]) -> io::Result<()> {
    let [a, b] = arguments;
    // SAFETY: numbers only (prctl(2)).
    if unsafe { libc::prctl(option, a, b, 0, 0) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Closes every descriptor but standard input, output and errors: what somebody forgot to close when this process was
/// started.
///
/// # Errors
/// A kernel older than 5.9.
pub fn close_others() -> io::Result<()> {
    // SAFETY: numbers only. Called before this process has opened anything, so nobody owns what is closed.
    if unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Gives these up: this process has none of them, and nothing it executes gains any (set-user-id programs neither).
///
/// # Errors
/// The kernel refused, which it does not.
pub fn give_up(capabilities: &[u8]) -> io::Result<()> {
    option(libc::PR_SET_NO_NEW_PRIVS, [1, 0])?;
    for capability in capabilities {
        let given_up = option(libc::PR_CAPBSET_DROP, [(*capability).into(), 0]);
        match given_up.as_ref().map_err(io::Error::raw_os_error) {
            // An older kernel knows fewer. Who may not take it out of what root would get is not root, and gets nothing.
            Ok(()) | Err(Some(libc::EINVAL | libc::EPERM)) => {}
            Err(_) => return given_up,
        }
    }
    let ambient = libc::PR_CAP_AMBIENT_CLEAR_ALL;
    option(
        libc::PR_CAP_AMBIENT,
        [libc::c_ulong::from(ambient.unsigned_abs()), 0],
    )?;
    let mut header = Header {
        version: VERSION,
        pid: 0,
    };
    let mut halves = [Half::default(); 2];
    let (at, sets) = (&raw mut header, halves.as_mut_ptr());
    // SAFETY: `header` and the two halves live until the call returns.
    if unsafe { libc::syscall(libc::SYS_capget, at, sets) } < 0 {
        return Err(io::Error::last_os_error());
    }
    for capability in capabilities {
        let kept = !(1u32 << (capability % 32));
        if let Some(half) = halves.get_mut(usize::from(capability / 32)) {
            half.effective &= kept;
            half.permitted &= kept;
            half.inheritable &= kept;
        }
    }
    let sets = halves.as_ptr();
    // SAFETY: as above.
    if unsafe { libc::syscall(libc::SYS_capset, at, sets) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
