//! What the fuzz targets do, callable from ordinary tests. Each target's corpus is in
//! `corpus/<target>`; inputs that once failed stay there under a name that says why.

pub mod cedar_rules;
pub mod config;
pub mod ledger_reader;
pub mod manager_messages;
pub mod parse;
pub mod process_burst;
pub mod vhost_msg;
pub mod vring;

#[cfg(test)]
mod tests {
    use std::path::Path;

    /// Damaged copies per input.
    const DAMAGED: u64 = 2000;

    /// One to three bytes replaced, and at times the end cut off.
    fn damaged(input: &[u8], seed: u64) -> Vec<u8> {
        let mut random = seed;
        // splitmix64
        let mut below = |n: usize| {
            random = random.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let z = (random ^ random >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
            ((z ^ z >> 31) % n.max(1) as u64) as usize
        };
        let mut bytes = input.to_vec();
        for _ in 0..=below(3) {
            let (at, value) = (below(bytes.len()), below(256));
            if let Some(b) = bytes.get_mut(at) {
                *b = value as u8;
            }
        }
        if below(4) == 0 {
            bytes.truncate(below(bytes.len()));
        }
        bytes
    }

    /// Runs a target over its corpus, and over each input damaged in many ways, the same at every
    /// run. An empty corpus is a mistake.
    fn replay(target: &str, run: fn(&[u8])) {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("corpus")
            .join(target);
        let mut count = 0;
        for entry in std::fs::read_dir(&dir).unwrap() {
            let input = std::fs::read(entry.unwrap().path()).unwrap();
            run(&input);
            for seed in 0..DAMAGED {
                run(&damaged(&input, seed));
            }
            count += 1;
        }
        assert!(count > 0, "{} is empty", dir.display());
    }

    #[test]
    fn parse() {
        replay("parse", super::parse::run);
    }

    #[test]
    fn cedar_rules() {
        replay("cedar_rules", super::cedar_rules::run);
    }

    #[test]
    fn manager_messages() {
        replay("manager_messages", super::manager_messages::run);
    }

    #[test]
    fn config() {
        replay("config", super::config::run);
    }

    #[test]
    fn ledger_reader() {
        replay("ledger_reader", super::ledger_reader::run);
    }

    #[test]
    fn process_burst() {
        replay("process_burst", super::process_burst::run);
    }

    #[test]
    fn vring() {
        replay("vring", super::vring::run);
    }

    #[test]
    fn vhost_msg() {
        replay("vhost_msg", super::vhost_msg::run);
    }
}
