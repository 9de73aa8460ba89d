//! Any text as rules for decisions: never a panic; refused with places that are in the text, or followed.

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use vswitch::manager::question::{History, Party, Question, Workload};
use vswitch::manager::rules::{Common, Rules};
use vswitch::policy::model::Scope;

/// Longer inputs find nothing shorter ones don't, slowly.
const LONGEST: usize = 16 << 10;

/// A question that many rules are about.
pub(crate) fn question() -> Question {
    let known = Workload {
        id: "web-1".to_owned(),
        name: "web-1".to_owned(),
        tenant: "default".to_owned(),
        tags: vec!["tier:web".to_owned()],
        assurance: "vm".to_owned(),
        segments: vec!["web".to_owned()],
    };
    Question {
        id: 1,
        rule: "asks".to_owned(),
        from: Party::Workload(Arc::new(known)),
        to: Party::Outside {
            address: [192, 0, 2, 7].into(),
            uplink: "wan".to_owned(),
            segments: ["partners".to_owned()].into(),
        },
        connection: String::new(),
        protocol: 6,
        number: 443,
        walls: [vec!["trading/buy".to_owned()], Vec::new()],
        suspicions: [vec!["port-scan".to_owned()], Vec::new()],
        history: History::default(),
        questions_last_minute: 1,
        deadline_ms: 1000,
        ttl_s: 600,
        scope: Scope::Service,
    }
}

/// See the module documentation.
pub fn run(input: &[u8]) {
    if input.len() > LONGEST {
        return;
    }
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    match Rules::parse(text) {
        Ok(rules) => {
            let mut common = Common::at(UNIX_EPOCH + Duration::from_secs(1_795_698_300));
            let said = rules.decide(&question(), &mut common);
            assert!(!said.reason.is_empty());
            assert!(said.yes != Some(true) || !rules.is_empty());
        }
        Err(faults) => {
            assert!(!faults.is_empty());
            for fault in faults {
                assert!(fault.offset <= text.len() && !fault.what.is_empty());
            }
        }
    }
}
