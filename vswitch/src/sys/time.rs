#![allow(unsafe_code)]
//! Clocks. The data path takes time as an argument; only `worker` and `control` read it here.
//!
//! Invariant owned here: none beyond each call; `unsafe` is the C interface and the time-stamp
//! counter only.

use std::sync::OnceLock;

/// Nanoseconds of `CLOCK_MONOTONIC`: never jumps. About 20 ns to read (vDSO).
#[inline]
#[must_use]
pub fn monotonic_ns() -> u64 {
    let mut t = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `t` lives until the call returns. CLOCK_MONOTONIC exists on every Linux.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut t) };
    #[allow(clippy::cast_sign_loss)] // never negative: it counts from boot
    {
        t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64
    }
}

/// The time-stamp counter (x86-64: constant rate, the same on all cores of a sane machine), or
/// nanoseconds where there is none. For measuring cycles, not for timeouts.
#[inline]
#[must_use]
pub fn tsc() -> u64 {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: RDTSC exists on every x86-64 processor.
    unsafe {
        std::arch::x86_64::_rdtsc()
    }
    #[cfg(not(target_arch = "x86_64"))]
    monotonic_ns()
}

/// Ticks of [`tsc`] per second, measured once against the monotonic clock (10 ms, first call
/// only; good to about 0.1 %).
#[must_use]
pub fn tsc_hz() -> u64 {
    static HZ: OnceLock<u64> = OnceLock::new();
    *HZ.get_or_init(|| {
        let (t0, c0) = (monotonic_ns(), tsc());
        while monotonic_ns() - t0 < 10_000_000 {
            std::hint::spin_loop();
        }
        let (dt, dc) = (monotonic_ns() - t0, tsc().wrapping_sub(c0));
        u64::try_from(u128::from(dc) * 1_000_000_000 / u128::from(dt)).unwrap_or(u64::MAX)
    })
}

#[cfg(test)]
mod tests {
    use super::{monotonic_ns, tsc, tsc_hz};

    #[test]
    fn clocks_advance() {
        let (t, c) = (monotonic_ns(), tsc());
        assert!(tsc_hz() > 1_000_000);
        assert!(monotonic_ns() > t && tsc() > c);
    }
}
