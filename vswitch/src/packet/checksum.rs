//! The Internet checksum (RFC 1071): sums of big-endian 16-bit words in a `u64`, folded once at the
//! end. A sum of 64 KiB pieces has 2^31 additions of room before it could overflow.

use super::Addr;

/// Adds `data` to `start`. A last odd byte counts as the high byte of its word, so only the last
/// piece of a chain may have an odd length; a piece that *begins* at an odd offset goes through
/// [`sum_odd`]. Costs about a quarter of a cycle per byte (it vectorises).
#[inline]
#[must_use]
pub fn sum(data: &[u8], start: u64) -> u64 {
    start + u64::from(native(data))
}

/// As [`sum`], for a piece that begins at an odd offset of the summed data.
#[inline]
#[must_use]
pub fn sum_odd(data: &[u8], start: u64) -> u64 {
    start + u64::from(native(data).swap_bytes())
}

/// The folded sum of one piece. Byte order does not matter to one's complement addition except for
/// the order of the result's own bytes (RFC 1071 section 2 B), so words are added as they lie.
#[inline]
fn native(data: &[u8]) -> u16 {
    let (eights, rest) = data.as_chunks::<8>();
    let mut acc = 0u64;
    for eight in eights {
        let v = u64::from_ne_bytes(*eight);
        acc += (v & 0xffff_ffff) + (v >> 32);
    }
    let (pairs, last) = rest.as_chunks::<2>();
    for pair in pairs {
        acc += u64::from(u16::from_ne_bytes(*pair));
    }
    if let [byte] = last {
        acc += u64::from(u16::from_ne_bytes([*byte, 0]));
    }
    u16::from_be(fold(acc))
}

/// Whether an IPv4 header without options holds a right checksum. [`sum`] and [`fold`] for what every
/// packet has: a few additions.
#[inline]
#[must_use]
pub fn is_good_header(header: &[u8; 20]) -> bool {
    let (eights, rest) = header.as_chunks::<8>();
    let (fours, _) = rest.as_chunks::<4>();
    let eights = eights.iter().map(|e| u64::from_ne_bytes(*e));
    let mut acc: u64 = fours
        .iter()
        .map(|f| u64::from(u32::from_ne_bytes(*f)))
        .sum();
    for eight in eights {
        let (sum, carry) = acc.overflowing_add(eight);
        acc = sum + u64::from(carry);
    }
    // Adding a sum to itself with halves exchanged folds it into either half, carry and all.
    let sum = acc.wrapping_add(acc.rotate_left(32));
    let sum = (sum >> 32) as u32;
    let sum = sum.wrapping_add(sum.rotate_left(16)) >> 16;
    sum == 0xffff
}

/// Folds a sum to 16 bits with end-around carry. The checksum field is the complement, `!fold(sum)`;
/// data that holds a right checksum folds to `0xffff`.
#[inline]
#[must_use]
pub const fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    // At most 0xffff: the first fold leaves 33 bits, the second 18, the third 17 with a low half
    // that the last carry cannot overflow.
    #[allow(clippy::cast_possible_truncation)]
    {
        sum as u16
    }
}

/// The sum of the pseudo-header that TCP, UDP and ICMPv6 cover (RFC 9293 section 3.1, RFC 8200
/// section 8.1). `len` is transport header and payload, in bytes. A v4-mapped address adds `0xffff`
/// to the IPv4 sum, which is zero in one's complement: one function serves both families.
#[inline]
#[must_use]
pub fn pseudo(src: &Addr, dst: &Addr, protocol: u8, len: u32) -> u64 {
    sum(&dst.0, sum(&src.0, u64::from(protocol) + u64::from(len)))
}

/// A checksum field after one of the 16-bit words it covers changed (RFC 1624 equation 3).
#[inline]
#[must_use]
pub const fn update16(check: u16, old: u16, new: u16) -> u16 {
    !fold(!check as u64 + !old as u64 + new as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// RFC 1071 section 1, word by word.
    fn slow(data: &[u8]) -> u16 {
        let mut s = 0u32;
        for pair in data.chunks(2) {
            s += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
            s = (s & 0xffff) + (s >> 16);
        }
        u16::try_from(s).unwrap()
    }

    #[test]
    fn the_example_of_rfc_1071() {
        let data = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(fold(sum(&data, 0)), 0xddf2);
    }

    #[test]
    fn the_example_of_rfc_1624() {
        assert_eq!(update16(0xdd2f, 0x5555, 0x3285), 0x0000);
    }

    #[test]
    fn fold_takes_any_sum() {
        assert_eq!(fold(0), 0);
        assert_eq!(fold(u64::MAX), 0xffff);
        assert_eq!(fold(0xffff_ffff_fffe_ffff), 0xfffe);
        assert_eq!(fold(0x1_ffff), 1);
    }

    #[test]
    fn mapped_addresses_sum_like_ipv4() {
        let a = Addr::from(std::net::IpAddr::from([10, 1, 2, 3]));
        let b = Addr::from(std::net::IpAddr::from([192, 168, 200, 9]));
        let v4 = [10, 1, 2, 3, 192, 168, 200, 9, 0, 6, 0, 20];
        assert_eq!(fold(pseudo(&a, &b, 6, 20)), slow(&v4));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 8 } else { 256 }))]

        #[test]
        fn equals_the_definition(data in prop::collection::vec(any::<u8>(), 0..300)) {
            prop_assert_eq!(fold(sum(&data, 0)), slow(&data));
        }

        #[test]
        fn a_good_header_is_one_whose_sum_is_right(mut header: [u8; 20], right: bool) {
            if right {
                header[10..12].fill(0);
                let check = !slow(&header);
                header[10..12].copy_from_slice(&check.to_be_bytes());
            }
            prop_assert_eq!(is_good_header(&header), slow(&header) == 0xffff);
        }

        #[test]
        fn pieces_add_up(data in prop::collection::vec(any::<u8>(), 0..300), at in 0usize..300) {
            let (a, b) = data.split_at(at.min(data.len()));
            let first = sum(a, 0);
            let whole = if a.len() % 2 == 0 { sum(b, first) } else { sum_odd(b, first) };
            prop_assert_eq!(fold(whole), slow(&data));
        }

        #[test]
        fn update_equals_a_new_sum(mut data in prop::collection::vec(1u8..=255, 4..60), new: u16) {
            let check = !slow(&data);
            let old = u16::from_be_bytes([data[2], data[3]]);
            data[2..4].copy_from_slice(&new.to_be_bytes());
            prop_assert_eq!(update16(check, old, new), !slow(&data));
        }
    }
}
