//! A record: its columns, the bytes that are hashed, and the chain of hashes.
//!
//! `hash_n = SHA-256(hash_{n-1} ‖ canonical bytes of record n)`; before the first record stand 32 zeros. The canonical bytes
//! are the columns in the order of [`Row`]: integers as eight bytes, big-endian; texts and blobs as their length (an integer)
//! and themselves; an optional text as a byte 0, or a byte 1 and the text. So no two records have the same bytes.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};
use sha2::{Digest, Sha256};

use super::body::Body;
use super::clock::{Stamp, date};

/// Longest text of a column but the body, bytes: names have 63, with their tenant's twice that, and a caller may be a
/// certificate's subject.
pub const MAX_NAME_BYTES: usize = 255;
/// Longest body, bytes: a list of changes, cut by whoever makes it.
pub const MAX_BODY_BYTES: usize = 64 << 10;

/// Bytes as hexadecimal digits.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    use fmt::Write as _;
    let mut out = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        let _ = write!(out, "{byte:02x}");
    }
    out
}

/// `N` bytes from exactly as many hexadecimal digits as they have.
pub(super) fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits = text.as_bytes();
    if digits.len() != 2 * N || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    let mut out = [0; N];
    for (byte, pair) in out.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(out)
}

/// SHA-256 of something that a record names and does not hold.
#[must_use]
pub fn digest(bytes: &[u8]) -> Hash {
    Hash(Sha256::digest(bytes).into())
}

macro_rules! hexadecimal {
    ($($(#[doc = $says:literal])+ $Name:ident, $n:literal;)+) => {$(
        $(#[doc = $says])+
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
        pub struct $Name(pub [u8; $n]);

        impl $Name {
            /// From a blob of exactly that size.
            #[must_use]
            pub fn of(bytes: &[u8]) -> Option<Self> {
                bytes.try_into().ok().map($Name)
            }
        }

        impl fmt::Display for $Name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex(&self.0))
            }
        }

        impl fmt::Debug for $Name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $Name {
            type Err = String;
            fn from_str(text: &str) -> Result<Self, String> {
                unhex(text).map($Name).ok_or_else(|| format!("not {} hexadecimal digits", 2 * $n))
            }
        }

        impl Serialize for $Name {
            fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                to.collect_str(self)
            }
        }
    )+};
}

hexadecimal! {
    /// A record's hash.
    Hash, 32;
    /// A ledger's id: random, and the same in its archives.
    LedgerId, 16;
}

/// Where a ledger ends: what an anchor keeps outside.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Head {
    /// Which ledger.
    pub ledger: LedgerId,
    /// Its last record.
    pub seq: u64,
    /// That record's hash.
    pub hash: Hash,
    /// When it was made, wall clock.
    pub wall_ns: i64,
}

/// The columns of a record, as they are stored. They may come from any file, so nothing is believed of them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Row<'r> {
    pub(super) seq: i64,
    pub(super) kind: &'r str,
    pub(super) wall_ns: i64,
    pub(super) mono_ns: i64,
    pub(super) boot: &'r [u8],
    pub(super) generation: i64,
    pub(super) who: &'r str,
    pub(super) workload: Option<&'r str>,
    pub(super) port: Option<&'r str>,
    pub(super) body: &'r str,
    pub(super) hash: &'r [u8],
}

impl Row<'_> {
    /// The hash that the record must have after one with `before`.
    pub(super) fn chained(&self, before: &Hash) -> Hash {
        let mut h = Sha256::new();
        let integer = |h: &mut Sha256, n: i64| h.update(n.to_be_bytes());
        let bytes = |h: &mut Sha256, bytes: &[u8]| {
            h.update((bytes.len() as u64).to_be_bytes());
            h.update(bytes);
        };
        h.update(before.0);
        integer(&mut h, self.seq);
        bytes(&mut h, self.kind.as_bytes());
        integer(&mut h, self.wall_ns);
        integer(&mut h, self.mono_ns);
        bytes(&mut h, self.boot);
        integer(&mut h, self.generation);
        bytes(&mut h, self.who.as_bytes());
        for text in [self.workload, self.port] {
            match text {
                None => h.update([0]),
                Some(text) => {
                    h.update([1]);
                    bytes(&mut h, text.as_bytes());
                }
            }
        }
        bytes(&mut h, self.body.as_bytes());
        Hash(h.finalize().into())
    }

    /// The record, if it is one that we could have written.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn record(&self) -> Result<Record, String> {
        let whole =
            |n: i64, what: &str| u64::try_from(n).map_err(|_e| format!("its {what} is {n}"));
        let body = Body::from_json(self.kind, self.body)
            .map_err(|e| format!("its body cannot be read: {e}"))?;
        if body.to_json() != self.body {
            return Err("its body is not written as we write it".to_owned());
        }
        Ok(Record {
            seq: whole(self.seq, "number")?,
            stamp: Stamp {
                wall_ns: self.wall_ns,
                mono_ns: whole(self.mono_ns, "monotonic clock")?,
                boot: self
                    .boot
                    .try_into()
                    .map_err(|_e| format!("the machine's start has {} bytes", self.boot.len()))?,
            },
            generation: whole(self.generation, "generation")?,
            who: self.who.to_owned(),
            workload: self.workload.map(str::to_owned),
            port: self.port.map(str::to_owned),
            body,
            hash: Hash::of(self.hash)
                .ok_or_else(|| format!("its hash has {} bytes", self.hash.len()))?,
        })
    }
}

/// A record as a reader gets it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Record {
    /// Its number: one more than that of the record before.
    pub seq: u64,
    /// When it was made.
    pub stamp: Stamp,
    /// The policy in force.
    pub generation: u64,
    /// Who did it: an authenticated caller, or a part of the switch.
    pub who: String,
    /// The workload it is about, by its qualified name.
    pub workload: Option<String>,
    /// The port it is about.
    pub port: Option<String>,
    /// What happened.
    pub body: Body,
    /// Its place in the chain.
    pub hash: Hash,
}

impl Serialize for Record {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Shown<'r> {
            seq: u64,
            time: String,
            kind: &'r str,
            who: &'r str,
            workload: Option<&'r str>,
            port: Option<&'r str>,
            generation: u64,
            body: &'r Body,
            wall_ns: i64,
            mono_ns: u64,
            boot: String,
            hash: Hash,
        }
        let shown = Shown {
            seq: self.seq,
            time: date(self.stamp.wall_ns),
            kind: self.body.kind(),
            who: &self.who,
            workload: self.workload.as_deref(),
            port: self.port.as_deref(),
            generation: self.generation,
            body: &self.body,
            wall_ns: self.stamp.wall_ns,
            mono_ns: self.stamp.mono_ns,
            boot: hex(&self.stamp.boot),
            hash: self.hash,
        };
        shown.serialize(to)
    }
}

#[cfg(test)]
mod tests {
    use super::{Hash, Row, hex};

    fn row() -> Row<'static> {
        Row {
            seq: 1,
            kind: "stopped",
            wall_ns: 2,
            mono_ns: 3,
            boot: &[4; 16],
            generation: 5,
            who: "me",
            workload: None,
            port: Some("p"),
            body: r#"{"reason":"r"}"#,
            hash: &[0; 32],
        }
    }

    /// The format is a promise: other programs may check a ledger, and older ledgers are checked by newer programs.
    #[test]
    fn the_bytes_that_are_hashed_are_the_documented_ones() {
        use sha2::{Digest, Sha256};
        let mut bytes = vec![7u8; 32];
        let text = |bytes: &mut Vec<u8>, t: &[u8]| {
            bytes.extend((t.len() as u64).to_be_bytes());
            bytes.extend(t);
        };
        bytes.extend(1i64.to_be_bytes());
        text(&mut bytes, b"stopped");
        bytes.extend(2i64.to_be_bytes());
        bytes.extend(3i64.to_be_bytes());
        text(&mut bytes, &[4; 16]);
        bytes.extend(5i64.to_be_bytes());
        text(&mut bytes, b"me");
        bytes.push(0);
        bytes.push(1);
        text(&mut bytes, b"p");
        text(&mut bytes, br#"{"reason":"r"}"#);
        let want: [u8; 32] = Sha256::digest(&bytes).into();
        assert_eq!(row().chained(&Hash([7; 32])), Hash(want));
    }

    #[test]
    fn no_column_flows_into_the_next() {
        let before = Hash::default();
        let (a, b) = (row(), row());
        let a = Row {
            workload: Some("p"),
            port: None,
            ..a
        };
        assert_ne!(a.chained(&before), b.chained(&before));
        let a = Row {
            who: "mep",
            port: None,
            ..b
        };
        assert_ne!(a.chained(&before), b.chained(&before));
        let a = Row {
            workload: Some(""),
            ..b
        };
        assert_ne!(a.chained(&before), b.chained(&before));
    }

    #[test]
    fn hexadecimal_comes_back() {
        let hash = Hash([0xa5; 32]);
        assert_eq!(hash.to_string().parse(), Ok(hash));
        assert_eq!(hex(&[0, 255]), "00ff");
        for bad in ["", "a5", &"g".repeat(64), &"ä".repeat(32)] {
            assert!(bad.parse::<Hash>().is_err(), "{bad}");
        }
    }
}
