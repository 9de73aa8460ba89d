//! Any bytes as messages between switch and manager: never a panic; refused, or what can be decided, and sent on as it came.

use std::sync::LazyLock;
use std::time::{Duration, UNIX_EPOCH};

use prost::Message;
use vswitch::manager::rules::{Common, Rules};
use vswitch::manager::wire::v1::{FromManager, FromSwitch, from_manager, from_switch};
use vswitch::manager::wire::{answer, ask, question, reply};

static RULES: LazyLock<Rules> = LazyLock::new(|| {
    let rules = "permit(principal is Workload, action, resource) when { principal.tags.contains(\"tier:web\") };\n\
                 forbid(principal, action, resource in Segment::\"db\") when { context.history.denied > 1 };";
    Rules::parse(rules).expect("they are good")
});

/// See the module documentation.
pub fn run(input: &[u8]) {
    if let Ok(FromSwitch {
        message: Some(from_switch::Message::Ask(received)),
    }) = FromSwitch::decode(input)
        && let Ok(asked) = question(received)
    {
        let mut common = Common::at(UNIX_EPOCH + Duration::from_secs(1_795_698_300));
        let said = RULES.decide(&asked, &mut common);
        assert!(!said.reason.is_empty());
        let Some(from_switch::Message::Ask(again)) = ask(&asked).message else {
            panic!("a question is an Ask")
        };
        assert_eq!(question(again), Ok(asked));
    }
    if let Ok(FromManager {
        message: Some(from_manager::Message::Answer(received)),
    }) = FromManager::decode(input)
        && let Ok(answered) = answer(received)
    {
        let Some(from_manager::Message::Answer(again)) = reply(&answered).message else {
            panic!("an answer is an Answer")
        };
        assert_eq!(answer(again), Ok(answered));
    }
}
