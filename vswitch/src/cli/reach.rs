//! Whom somebody can connect to, and what a yes or a policy opens, as a person reads it.

use std::fmt::Write as _;

use super::show::{asks, n, table, text};
use crate::control::api::{
    AskInfo, Changed, Compared, Found, Grant, Group, How, Level, Opened, PolicyDiff, Reach,
};

/// `db-1`, or `db-1 and 3 alike`.
fn name(group: &Group) -> String {
    let first = group.names.first().map_or("", String::as_str);
    match (group.size, &*group.names) {
        (2.., [one, other]) if group.size == 2 => format!("{one} {other}"),
        (2.., _) => format!("{first} and {} alike", group.size - 1),
        _ => first.to_owned(),
    }
}

fn names(groups: &[Group], more: usize) -> String {
    let mut all: Vec<_> = groups.iter().map(name).collect();
    if more > 0 {
        all.push(format!("and {more} more"));
    }
    all.join(", ")
}

fn how(how: How) -> &'static str {
    match how {
        How::Ask => "asks",
        How::Allow => "allowed",
        How::Notify => "allowed, reported",
        How::Yes => "answered: yes",
        How::No => "answered: no",
    }
}

fn cell(grants: &[Grant], of: impl Fn(&Grant) -> String) -> String {
    grants.iter().map(of).collect::<Vec<_>>().join("\n")
}

fn rows(found: &[Found], header: &str) -> String {
    let mut t = table(&[header, "SERVICES", "HOW", "RULE", "THROUGH"]);
    for f in found {
        let services = |g: &Grant| {
            let mut services = g.service.join(" ");
            if !g.outside.is_empty() {
                let _ = write!(services, " ({})", g.outside.join(" "));
            }
            services
        };
        t.add_row([
            name(&f.who),
            cell(&f.by, services),
            cell(&f.by, |g| match &g.wall {
                Some(wall) => format!("wall {wall}"),
                None => how(g.how).to_owned(),
            }),
            cell(&f.by, |g| g.rule.clone()),
            if f.through.is_empty() {
                "-".to_owned()
            } else {
                f.through.join(" > ")
            },
        ]);
    }
    let lines: Vec<_> = t.lines().map(|l| format!("  {}", l.trim_end())).collect();
    lines.join("\n")
}

const CUT_OFF: &str = "there was too much to look at all of it: there may be others";

pub(super) fn reach(r: &Reach) -> String {
    let mut out = if r.to {
        format!("who can connect to {}", r.of)
    } else {
        format!("whom {} can connect to", r.of)
    };
    let titles = [
        (Level::Open, "now"),
        (Level::Ask, "if somebody says yes"),
        (Level::Walled, "were it not for a wall"),
    ];
    let header = if r.to { "FROM" } else { "TO" };
    for ((level, title), count) in titles.into_iter().zip(r.workloads) {
        let found: Vec<_> = r
            .found
            .iter()
            .filter(|f| f.level == level)
            .cloned()
            .collect();
        if count == 0 {
            continue;
        }
        let _ = write!(out, "\n{title}: {count}");
        if !found.is_empty() {
            let _ = write!(out, "\n{}", rows(&found, header));
        }
    }
    if r.workloads == [0; 3] {
        out.push_str("\nnobody");
    }
    if r.more > 0 {
        let _ = write!(out, "\nand {} more; --limit shows them", n(r.more, "group"));
    }
    if r.cut_off {
        let _ = write!(out, "\n{CUT_OFF}");
    }
    out
}

/// In a list of questions.
pub(super) fn brief(opens: Option<&Opened>) -> String {
    let Some(o) = opens else {
        return "-".to_owned();
    };
    if let Some(wall) = &o.wall {
        return format!("nothing: wall {wall}");
    }
    if o.pairs == 0 {
        return "nobody new".to_owned();
    }
    let least = if o.cut_off { "at least " } else { "" };
    let through = o.through.len() + o.more_through;
    let through = match through {
        0 => String::new(),
        _ => format!(", {} behind it", n(through, "group")),
    };
    format!(
        "{least}{}{through}",
        n(usize::try_from(o.pairs).unwrap_or(usize::MAX), "pair")
    )
}

pub(super) fn ask(a: &AskInfo) -> String {
    let mut out = asks(std::slice::from_ref(a));
    let Some(o) = &a.opens else {
        return out;
    };
    let (from, to) = (&o.from, &o.to);
    let known = if o.known {
        " (it can connect to it already, for something else or through others)"
    } else {
        ""
    };
    if let Some(wall) = &o.wall {
        let _ = write!(
            out,
            "\na yes opens nothing: wall {wall} stands between {from} and {to}"
        );
        return out;
    }
    let _ = write!(out, "\na yes opens {from} to {to}, {}{known}", o.service);
    if o.through.is_empty() {
        let _ = write!(out, "\nand nobody further");
    } else {
        let _ = write!(out, "\nand through it\n{}", rows(&o.through, "TO"));
        if o.more_through > 0 {
            let _ = write!(out, "\n  and {} more", n(o.more_through, "group"));
        }
    }
    if !o.others.is_empty() {
        let others = names(&o.others, o.more_others);
        let _ = write!(out, "\nalso to those who can connect to {from}: {others}");
    }
    let pairs = usize::try_from(o.pairs).unwrap_or(usize::MAX);
    let _ = write!(
        out,
        "\nin all, {} of workloads that cannot connect now, directly or through others",
        n(pairs, "pair")
    );
    if o.cut_off {
        let _ = write!(out, "\n{CUT_OFF}");
    }
    out
}

pub(super) fn diff(d: &PolicyDiff) -> String {
    let mut out = d.changes.join("\n");
    if !d.differs {
        out.push_str("no difference");
    }
    if let Some(pairs) = &d.pairs {
        out.push_str(&compared(pairs));
    }
    for line in &d.refused {
        let _ = write!(out, "\nit cannot be applied: {line}");
    }
    out
}

fn compared(c: &Compared) -> String {
    let mut out = String::new();
    let sides = [("opens", &c.opened), ("closes", &c.closed)];
    for ((title, changed), more) in sides.into_iter().zip(c.more) {
        if changed.is_empty() {
            continue;
        }
        let _ = write!(out, "\n{title}\n{}", changes(changed));
        if more > 0 {
            let _ = write!(out, "\n  and {more} more");
        }
    }
    if c.cut_off {
        let _ = write!(out, "\n{CUT_OFF}");
    }
    out
}

fn changes(changed: &[Changed]) -> String {
    let word = |how: Option<How>| match how {
        None | Some(How::No) => "denied",
        Some(How::Ask) => "asked",
        Some(_) => "allowed",
    };
    let mut t = table(&["FROM", "TO", "SERVICES", "NOW", "THEN", "RULE"]);
    for c in changed {
        t.add_row([
            name(&c.from),
            name(&c.to),
            c.service.join(" "),
            word(c.before).to_owned(),
            word(c.after).to_owned(),
            c.rule.clone(),
        ]);
    }
    let lines = text(&t, "");
    let lines: Vec<_> = lines.lines().map(|l| format!("  {l}")).collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(names: &[&str], size: usize) -> Group {
        Group {
            names: names.iter().map(ToString::to_string).collect(),
            size,
        }
    }

    #[test]
    fn what_is_left_out_is_said() {
        let found = Found {
            who: group(&["db-1", "db-2", "db-3"], 4),
            level: Level::Open,
            through: vec!["api".to_owned()],
            by: vec![Grant {
                rule: "r".to_owned(),
                how: How::Yes,
                service: vec!["tcp/1".to_owned()],
                outside: Vec::new(),
                wall: None,
            }],
        };
        let r = Reach {
            of: "web".to_owned(),
            to: false,
            found: vec![found],
            more: 2,
            workloads: [7, 0, 1],
            cut_off: true,
        };
        let text = reach(&r);
        for part in [
            "now: 7",
            "db-1 and 3 alike  tcp/1     answered: yes  r     api",
            "were it not for a wall: 1",
            "and 2 groups more",
            CUT_OFF,
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert_eq!(name(&group(&["a", "b"], 2)), "a b");
        assert_eq!(brief(None), "-");
    }
}
