#![allow(unsafe_code)]
//! Where a thread runs and what it is called.
//!
//! Invariant owned here: none beyond each call; `unsafe` is the C interface only.

use std::ffi::CString;
use std::io;
use std::mem::size_of;

/// Runs the calling thread on `core` only.
///
/// # Errors
/// The core does not exist or the process may not use it (cpuset).
pub fn pin_thread(core: usize) -> io::Result<()> {
    run_on(&[core])
}

fn run_on(cores: &[usize]) -> io::Result<()> {
    // SAFETY: an all-zero cpu_set_t is the empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    for &core in cores {
        if core >= 8 * size_of::<libc::cpu_set_t>() {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        // SAFETY: `core` is within the set's bits, checked above.
        unsafe { libc::CPU_SET(core, &mut set) };
    }
    // SAFETY: `set` lives until the call returns; 0 is the calling thread.
    let r = unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set) };
    if r < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// While it lives, the calling thread and those that it starts run on other cores than some; where there are no others, on all.
///
/// A thread that is woken by one that polls is put on the same core, and waits there for milliseconds until the poller's time is
/// up.
#[derive(Debug)]
pub struct KeptOff {
    before: Vec<usize>,
}

impl KeptOff {
    /// Off these.
    ///
    /// # Errors
    /// See [`allowed_cores`].
    pub fn cores(cores: &[usize]) -> io::Result<Self> {
        let before = allowed_cores()?;
        let others: Vec<_> = before
            .iter()
            .copied()
            .filter(|c| !cores.contains(c))
            .collect();
        if !others.is_empty() {
            run_on(&others)?;
        }
        Ok(KeptOff { before })
    }
}

impl Drop for KeptOff {
    fn drop(&mut self) {
        // They were allowed; if some no longer are, the kernel has chosen others.
        let _ = run_on(&self.before);
    }
}

/// The cores the calling thread may run on, ascending.
///
/// # Errors
/// The kernel has more cores than the C library's set holds (1024).
pub fn allowed_cores() -> io::Result<Vec<usize>> {
    // SAFETY: an all-zero cpu_set_t is the empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: `set` lives until the call returns; 0 is the calling thread.
    let r = unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut set) };
    if r < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok((0..8 * size_of::<libc::cpu_set_t>())
        // SAFETY: `core` is within the set's bits.
        .filter(|&core| unsafe { libc::CPU_ISSET(core, &set) })
        .collect())
}

/// Names the calling thread as `ps -L` and `top -H` show it; the kernel keeps 15 bytes.
pub fn name_thread(name: &str) {
    let short: Vec<u8> = name.bytes().filter(|b| *b != 0).take(15).collect();
    if let Ok(name) = CString::new(short) {
        // SAFETY: `name` is a zero-terminated string of at most 16 bytes, read during the call.
        unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr()) };
    }
}

#[cfg(test)]
mod tests {
    use super::{KeptOff, allowed_cores, name_thread, pin_thread};

    #[test]
    fn pins_and_names_this_thread_only() {
        std::thread::spawn(|| {
            let core = allowed_cores().unwrap()[0];
            pin_thread(core).unwrap();
            assert_eq!(allowed_cores().unwrap(), [core]);
            name_thread("pmd-0-and-much-too-long");
            let name = std::fs::read_to_string("/proc/thread-self/comm").unwrap();
            assert_eq!(name.trim_end(), "pmd-0-and-much-");
        })
        .join()
        .unwrap();
        assert!(pin_thread(1 << 20).is_err());
    }

    #[test]
    fn whoever_is_kept_off_comes_back() {
        std::thread::spawn(|| {
            let all = allowed_cores().unwrap();
            {
                let _off = KeptOff::cores(&all[..1]).unwrap();
                let others = if all.len() > 1 { &all[1..] } else { &all[..] };
                assert_eq!(allowed_cores().unwrap(), others);
                let started = std::thread::spawn(allowed_cores).join().unwrap();
                assert_eq!(started.unwrap(), others);
            }
            assert_eq!(allowed_cores().unwrap(), all);
            let _off = KeptOff::cores(&all).unwrap();
            assert_eq!(allowed_cores().unwrap(), all);
        })
        .join()
        .unwrap();
    }
}
