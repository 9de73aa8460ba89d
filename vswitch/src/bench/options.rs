//! Arguments that several measurements have.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use serde::Serialize;

use super::frames::{FLOWS_MAX, Sizes};

/// What the generator's two guests exchange, and over which rings.
#[derive(Clone, Copy, Debug, Serialize, Args)]
pub struct Traffic {
    /// Bytes of each frame without FCS, or imix. Frames of more than 1514 are TCP that nobody has cut yet (TSO).
    #[arg(long = "size", default_value = "64")]
    #[serde(serialize_with = "display")]
    pub sizes: Sizes,
    /// Connections.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=FLOWS_MAX as i64))]
    pub flows: u32,
    /// Rings of the guests.
    #[command(flatten)]
    #[serde(flatten)]
    pub rings: Rings,
}

/// What the rings of the generator's guests are like.
#[derive(Clone, Copy, Debug, Serialize, Args)]
pub struct Rings {
    /// Entries of each ring.
    #[arg(long, default_value_t = 1024, value_parser = ring)]
    pub ring: u16,
    /// Packed rings instead of split ones.
    #[arg(long)]
    pub packed: bool,
    /// Guests' memory in 2 MiB pages (sysctl vm.nr_hugepages).
    #[arg(long)]
    pub huge: bool,
}

/// Which switch.
#[derive(Clone, Debug, Serialize, Args)]
pub struct On {
    /// Measures another switch instead of one of its own: one that listens at these two vhost-user sockets and forwards
    /// between them. Its guests are those of `bench foreign`; rules are its own.
    #[arg(long, num_args = 2, value_names = ["SOCKET-A", "SOCKET-B"])]
    pub on: Vec<PathBuf>,
}

impl On {
    pub(super) fn sockets(&self) -> Option<[&Path; 2]> {
        match self.on.as_slice() {
            [a, b] => Some([a, b]),
            _ => None,
        }
    }
}

/// How often, and how long.
#[derive(Clone, Copy, Debug, Serialize, Args)]
pub struct Repeats {
    /// Repetitions.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    pub repeats: u32,
    /// Seconds each.
    #[arg(long, default_value_t = 0.5, value_parser = seconds)]
    pub seconds: f64,
}

impl Repeats {
    pub(super) fn time(&self) -> Duration {
        Duration::from_secs_f64(self.seconds)
    }
}

fn ring(text: &str) -> Result<u16, String> {
    match text.parse::<u16>() {
        Ok(n) if n.is_power_of_two() && (32..=32_768).contains(&n) => Ok(n),
        _ => Err("write a power of two from 32 to 32768".to_owned()),
    }
}

pub(super) fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(s) if (0.01..=3600.0).contains(&s) => Ok(s),
        _ => Err("write seconds from 0.01 to 3600".to_owned()),
    }
}

/// For fields that are written as they are read.
pub(super) fn display<T: std::fmt::Display, S: serde::Serializer>(
    value: &T,
    s: S,
) -> Result<S::Ok, S::Error> {
    s.collect_str(value)
}
