//! `policy.toml`.

use super::read::{Field, Section};
use super::suspicion;
use crate::packet::Cidr;
use crate::policy::model::{
    Action, Ask, DEFAULT_TENANT, Infrastructure, Limit, ManagementPath, OnExpiry, Otherwise, Per,
    Policy, Record, Rule, Same, Sanitised, Scope, Segment, SegmentRef, ServiceSpec, Tenant, Tier,
    Wall,
};

const SERVICE_TODO: &str = "write tcp, tcp/443, udp/1000-2000, icmp, icmp/8, ip/47 or ether/0x88cc";

/// Reads a whole policy; errors are in the document.
pub(super) fn read(mut root: Section<'_>) -> Policy {
    let policy = Policy {
        infrastructure: root
            .table("infrastructure")
            .map_or_else(Infrastructure::default, infrastructure),
        tenants: root.tables("tenant").into_iter().map(tenant).collect(),
        segments: root.tables("segment").into_iter().map(segment).collect(),
        rules: root.tables("rule").into_iter().map(rule).collect(),
        walls: root.tables("wall").into_iter().map(wall).collect(),
        sanitised: root
            .tables("sanitised")
            .into_iter()
            .filter_map(sanitised)
            .collect(),
        suspicions: root
            .tables("suspicion")
            .into_iter()
            .map(suspicion::suspicion)
            .collect(),
        responses: root
            .tables("response")
            .into_iter()
            .map(suspicion::response)
            .collect(),
    };
    root.finish();
    policy
}

fn tenant(mut table: Section<'_>) -> Tenant {
    let tenant = Tenant {
        name: table.required("name", "give the tenant a name"),
        infrastructure: table
            .table("infrastructure")
            .map_or_else(Infrastructure::default, infrastructure),
    };
    table.finish();
    tenant
}

fn infrastructure(mut table: Section<'_>) -> Infrastructure {
    let address = "write one address, such as \"10.0.0.1\" or \"fe80::1\"";
    let infrastructure = Infrastructure {
        dhcp_servers: table.parsed("dhcp_servers", address),
        routers: table.parsed("routers", address),
        management: table
            .tables("management")
            .into_iter()
            .map(management)
            .collect(),
    };
    table.finish();
    infrastructure
}

fn management(mut table: Section<'_>) -> ManagementPath {
    let path = ManagementPath {
        from: segments(&mut table, "from"),
        to: segments(&mut table, "to"),
        service: services(&mut table),
    };
    table.finish();
    path
}

pub(super) fn owner(table: &mut Section<'_>) -> String {
    let tenant = table.string("tenant");
    tenant
        .map_or(DEFAULT_TENANT, |tenant| tenant.value)
        .to_owned()
}

pub(super) fn texts(fields: Vec<Field<'_, &str>>) -> Vec<String> {
    fields.iter().map(|field| field.value.to_owned()).collect()
}

fn segment(mut table: Section<'_>) -> Segment {
    let segment = Segment {
        name: table.required("name", "give the segment a name"),
        tenant: owner(&mut table),
        tags: texts(table.strings("tags")),
        names: texts(table.strings("names")),
        cidr: table.parsed::<Cidr>("cidr", "write a network, such as \"10.0.0.0/8\""),
        loose: table.boolean("loose").unwrap_or(false),
        max_connections: table.integer("max_connections", 0, u64::from(u32::MAX)),
    };
    table.finish();
    segment
}

pub(super) fn segments(table: &mut Section<'_>, key: &'static str) -> Vec<SegmentRef> {
    let todo = "name a segment, a list of them, or \"any\" for every workload";
    if !table.has(key) {
        table.error(key, format!("missing key {key:?}"), todo);
    }
    let names = table.one_or_more(key, todo);
    names.iter().map(|name| name.value.into()).collect()
}

fn services(table: &mut Section<'_>) -> Vec<ServiceSpec> {
    let texts = table.one_or_more("service", "leave the key out for every IP service");
    texts
        .iter()
        .filter_map(|text| text.parse(SERVICE_TODO))
        .collect()
}

fn rule(mut table: Section<'_>) -> Rule {
    let rule = Rule {
        name: table.required("name", "give the rule a name"),
        tenant: owner(&mut table),
        from: segments(&mut table, "from"),
        to: segments(&mut table, "to"),
        service: services(&mut table),
        action: action(&mut table),
        tier: tier(&mut table),
        log: table.boolean("log").unwrap_or(false),
        require_record: record(&mut table),
        limit: table.table("limit").map(limit),
        staged: staged(&mut table),
    };
    table.finish();
    rule
}

/// The action; "allow" stands in for one that is wrong, because it brings no errors of its own.
fn action(table: &mut Section<'_>) -> Action {
    let written = table.required(
        "action",
        "say what happens: allow, deny, reject, decoy, ask, notify or pass",
    );
    if written == "ask" {
        return Action::Ask(ask(table));
    }
    let words = [
        ("allow", Action::Allow),
        ("deny", Action::Deny),
        ("reject", Action::Reject),
        ("decoy", Action::Decoy),
        // Found above; here for the list of words.
        ("ask", Action::Allow),
        ("notify", Action::Notify),
        ("pass", Action::Pass),
    ];
    let action = table.string("action").and_then(|word| word.word(&words));
    if action.is_some() {
        for (key, what) in ASK_KEYS {
            table.refuse(key, what, "remove it, or use action = \"ask\"");
        }
    }
    action.unwrap_or(Action::Allow)
}

/// What only an `ask` rule has.
const ASK_KEYS: [(&str, &str); 5] = [
    ("otherwise", "only an ask rule has an `otherwise`"),
    ("deadline_ms", "only an ask rule has a `deadline_ms`"),
    ("ttl_s", "only an ask rule has a `ttl_s`"),
    ("scope", "only an ask rule has a `scope`"),
    ("on_expiry", "only an ask rule has an `on_expiry`"),
];
/// Five minutes: longer no client waits for a connection (Linux gives up after some two).
const DEADLINE_MS_MAX: u64 = 300_000;
/// Thirty days: what shall hold longer is a rule.
const TTL_S_MAX: u64 = 30 * 86_400;

fn ask(table: &mut Section<'_>) -> Ask {
    if !table.has("otherwise") {
        table.error(
            "otherwise",
            "an ask rule must say what happens when nobody answers",
            "add otherwise = \"deny\" (or \"allow\")",
        );
    }
    let otherwise = table
        .string("otherwise")
        .and_then(|word| word.word(&[("allow", Otherwise::Allow), ("deny", Otherwise::Deny)]));
    let scope = table.string("scope").and_then(|word| {
        word.word(&[
            ("connection", Scope::Connection),
            ("service", Scope::Service),
        ])
    });
    let on_expiry = table
        .string("on_expiry")
        .and_then(|word| word.word(&[("keep", OnExpiry::Keep), ("cut", OnExpiry::Cut)]));
    let usual = Ask::new(otherwise.unwrap_or(Otherwise::Deny));
    Ask {
        otherwise: usual.otherwise,
        deadline_ms: table
            .integer("deadline_ms", 1, DEADLINE_MS_MAX)
            .unwrap_or(usual.deadline_ms),
        ttl_s: table.integer("ttl_s", 1, TTL_S_MAX).unwrap_or(usual.ttl_s),
        scope: scope.unwrap_or(usual.scope),
        on_expiry: on_expiry.unwrap_or(usual.on_expiry),
    }
}

fn record(table: &mut Section<'_>) -> Record {
    let word = table.string("require_record");
    let words = [("new", Record::New), ("strict", Record::Strict)];
    word.and_then(|word| word.word(&words)).unwrap_or_default()
}

fn tier(table: &mut Section<'_>) -> Tier {
    let word = table.string("tier");
    let tier = word.and_then(|word| word.word(&Tier::ALL.map(|tier| (tier.name(), tier))));
    tier.unwrap_or_default()
}

pub(super) fn staged(table: &mut Section<'_>) -> bool {
    let word = table.string("stage");
    let staged = word.and_then(|word| word.word(&[("staged", true), ("enforced", false)]));
    staged.unwrap_or(false)
}

fn limit(mut table: Section<'_>) -> Limit {
    let limit = Limit {
        connections: table.rate("connections"),
        bits: table.rate("bits"),
    };
    table.finish();
    limit
}

fn wall(mut table: Section<'_>) -> Wall {
    let same = table.string("same");
    let per = table.string("per");
    let todo = "name the segments of the sides, two at least";
    if !table.has("datasets") {
        table.error("datasets", "missing key \"datasets\"", todo);
    }
    let wall = Wall {
        name: table.required("name", "give the wall a name"),
        tenant: owner(&mut table),
        subjects: segments(&mut table, "subjects"),
        same: same
            .and_then(|text| text.parse::<Same>("write \"volume\", or \"tag:\" and a tag's name")),
        datasets: table
            .strings("datasets")
            .iter()
            .map(|name| name.value.into())
            .collect(),
        conflicts: table
            .pairs(
                "conflicts",
                "write pairs of datasets, such as [[\"a\", \"b\"]]",
            )
            .into_iter()
            .map(|pair| pair.map(SegmentRef::from))
            .collect(),
        per: per
            .and_then(|word| word.word(&[("transaction", Per::Transaction), ("ever", Per::Ever)]))
            .unwrap_or_default(),
    };
    table.finish();
    wall
}

/// One without a day is left out: there is nothing that could stand in for it.
fn sanitised(mut table: Section<'_>) -> Option<Sanitised> {
    let segment = table.required("segment", "name the segment of those who serve");
    let tenant = owner(&mut table);
    if !table.has("service") {
        let todo = "say what they serve, such as \"udp/53\"";
        table.error("service", "missing key \"service\"", todo);
    }
    let service = services(&mut table);
    let reason = table.required("reason", "say why it carries nothing over");
    let owner = table.required("owner", "say who answers for that");
    let todo = "write the last day it holds, such as \"2030-12-31\"";
    table.required("expires", todo);
    let expires = table.string("expires").and_then(|day| day.parse(todo));
    table.finish();
    Some(Sanitised {
        tenant,
        segment: segment.as_str().into(),
        service,
        reason,
        owner,
        expires: expires?,
    })
}
