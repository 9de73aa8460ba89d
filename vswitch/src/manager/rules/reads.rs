//! What rules read of a question. Two questions about the same pair that are alike in all of that have the same answer, so
//! Cedar is asked once.

use cedar_policy::Policy;
use serde_json::Value;

use crate::manager::question::Question;

/// Parts of a question that rules may read; the two ends are not among them: answers are kept by pair.
#[derive(Clone, Copy, Debug)]
enum Part {
    Rule,
    Protocol,
    Number,
    Minute,
    Second,
    Walls,
    Suspicions,
    /// What is another with each question.
    Counts,
}

impl Part {
    /// Where in the schema's context `path` leads: all that stands there.
    fn at(path: &[&str]) -> &'static [Part] {
        match path {
            ["rule", ..] => &[Part::Rule],
            ["service", "protocol", ..] => &[Part::Protocol],
            // Which of the numbers there is, the protocol says.
            ["service", ..] => &[Part::Protocol, Part::Number],
            ["hour" | "minute" | "weekday", ..] => &[Part::Minute],
            ["now", ..] => &[Part::Second],
            ["walls", ..] => &[Part::Walls],
            ["suspicions", ..] => &[Part::Suspicions],
            _ => &[Part::Counts],
        }
    }
}

/// A set of [`Part`]s, a bit each.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Reads(u8);

/// What rules have read of a question.
#[derive(PartialEq, Eq, Hash, Debug)]
pub(super) struct Seen {
    rule: Option<String>,
    protocol: Option<u8>,
    number: Option<u16>,
    minute: Option<u64>,
    second: Option<u64>,
    walls: Option<[Vec<String>; 2]>,
    suspicions: Option<[Vec<String>; 2]>,
}

impl Reads {
    /// What a rule reads. What cannot be told is taken for everything.
    pub(super) fn of(policy: &Policy) -> Self {
        let mut reads = Reads::default();
        match policy.to_json() {
            Ok(policy) => reads.take(policy.get("conditions").unwrap_or(&policy)),
            Err(_) => reads.add(Part::Counts),
        }
        reads
    }

    fn add(&mut self, part: Part) {
        self.0 |= 1 << part as u8;
    }

    fn has(self, part: Part) -> bool {
        self.0 & 1 << part as u8 != 0
    }

    /// What these read, too.
    pub(super) fn and(self, others: Self) -> Self {
        Reads(self.0 | others.0)
    }

    /// Takes what an expression, in Cedar's JSON format for policies, reads of the context.
    fn take(&mut self, expression: &Value) {
        if let Some(path) = path(expression) {
            Part::at(&path).iter().for_each(|part| self.add(*part));
            return;
        }
        match expression {
            Value::Array(parts) => parts.iter().for_each(|part| self.take(part)),
            Value::Object(parts) => parts.values().for_each(|part| self.take(part)),
            _ => {}
        }
    }

    /// What is read of this question, which is asked in this second. `None`: of no other will it be the same.
    pub(super) fn seen(self, question: &Question, second: u64) -> Option<Seen> {
        if self.has(Part::Counts) {
            return None;
        }
        Some(Seen {
            rule: self.has(Part::Rule).then(|| question.rule.clone()),
            protocol: self.has(Part::Protocol).then_some(question.protocol),
            number: self.has(Part::Number).then_some(question.number),
            minute: self.has(Part::Minute).then_some(second / 60),
            second: self.has(Part::Second).then_some(second),
            walls: self.has(Part::Walls).then(|| question.walls.clone()),
            suspicions: self
                .has(Part::Suspicions)
                .then(|| question.suspicions.clone()),
        })
    }
}

/// The attributes that lead from the context to what `expression` looks at; empty for the context itself.
fn path(expression: &Value) -> Option<Vec<&str>> {
    if expression.get("Var").is_some_and(|var| var == "context") {
        return Some(Vec::new());
    }
    let access = expression.get(".").or_else(|| expression.get("has"))?;
    let mut path = path(access.get("left")?)?;
    path.push(access.get("attr")?.as_str()?);
    Some(path)
}

#[cfg(test)]
mod tests {
    use super::{Part, Reads};
    use crate::manager::question::Question;
    use crate::manager::rules::tests::question;

    fn reads(condition: &str) -> Reads {
        let text = format!("permit(principal, action, resource) when {{ {condition} }};");
        Reads::of(&text.parse().expect("a rule"))
    }

    fn all(parts: &[Part]) -> Reads {
        let mut all = Reads::default();
        parts.iter().for_each(|part| all.add(*part));
        all
    }

    #[test]
    fn what_a_rule_reads_is_found_wherever_it_stands() {
        for (condition, parts) in [
            ("true", &[][..]),
            ("principal == resource", &[]),
            ("\"context\" == \"hour\"", &[]),
            ("context.rule like \"*context*\"", &[Part::Rule]),
            ("[1, context.hour].contains(3)", &[Part::Minute]),
            ("{a: context.weekday}.a == 3", &[Part::Minute]),
            ("context.now > datetime(\"2026-01-01\")", &[Part::Second]),
            ("context.now.toTime() > duration(\"1h\")", &[Part::Second]),
            (
                "if context.service.protocol == \"tcp\" then true else context has walls",
                &[Part::Protocol, Part::Walls],
            ),
            (
                "context.service has port && context.service[\"port\"] == 80",
                &[Part::Protocol, Part::Number],
            ),
            (
                "context.service == {protocol: \"udp\"}",
                &[Part::Protocol, Part::Number],
            ),
            (
                "principal in resource || context.suspicions.principal.isEmpty()",
                &[Part::Suspicions],
            ),
            ("context.history.allowed > 0", &[Part::Counts]),
            ("context.questions_last_minute < 5", &[Part::Counts]),
            ("context == {}", &[Part::Counts]),
            ("{a: context}.a.hour == 3", &[Part::Counts]),
        ] {
            assert_eq!(reads(condition), all(parts), "{condition}");
        }
    }

    #[test]
    fn what_was_seen_differs_where_what_is_read_differs() {
        let a = question();
        let same =
            |reads: Reads, b: &Question, second| reads.seen(&a, 3_600) == reads.seen(b, second);
        let other = Question {
            rule: "other".to_owned(),
            protocol: 132,
            number: 7,
            walls: [vec!["w/a".to_owned()], vec![]],
            suspicions: [vec![], vec!["port-scan".to_owned()]],
            ..question()
        };
        assert!(same(reads("true"), &other, 7_200));
        for condition in [
            "context.rule == \"\"",
            "context.service.protocol == \"tcp\"",
            "context.service has port",
            "context.walls.principal.isEmpty()",
            "context.suspicions.resource.isEmpty()",
        ] {
            assert!(same(reads(condition), &question(), 7_200), "{condition}");
            assert!(!same(reads(condition), &other, 3_600), "{condition}");
        }
        assert!(same(reads("context.minute == 0"), &a, 3_659));
        assert!(!same(reads("context.minute == 0"), &a, 3_660));
        assert!(!same(
            reads("context.now == datetime(\"2026-01-01\")"),
            &a,
            3_601
        ));
        assert_eq!(reads("context.history.denied == 0").seen(&a, 0), None);
    }
}
