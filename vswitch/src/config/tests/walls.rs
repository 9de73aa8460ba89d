//! A wall in a file.

use super::*;

#[test]
fn a_wall_is_read_whole() {
    let walls = r#"stage = "staged"
[[wall]]
name = "trading"
subjects = "web"
same = "tag:desk"
datasets = ["db", "b/outside"]
conflicts = [["db", "b/outside"]]
per = "transaction"
[[sanitised]]
segment = "b/outside"
service = ["udp/53", "icmp"]
reason = "names only"
owner = "ann"
expires = "2030-12-31"
"#;
    let policy = POLICY.replace("stage = \"staged\"", walls);
    let error = parse(("s", "p"), SWITCH, &policy).unwrap_err().to_string();
    assert_eq!(
        error,
        "p:40:1: error: a wall without a ledger forgets who is bound; add [ledger] to switch.toml and restart the daemon"
    );
    let switch = format!("{SWITCH}\n[ledger]\npath = \"/tmp/l\"\n");
    let policy = parse(("s", "p"), &switch, &policy).unwrap_or_else(|e| panic!("{e}"));
    let json = serde_json::to_value(&policy.policy).unwrap();
    assert_eq!(
        json["wall"][0]["conflicts"],
        serde_json::json!([["db", "b/outside"]])
    );
    assert_eq!(json["wall"][0]["same"], "tag:desk");
    assert_eq!(json["wall"][0]["per"], "transaction");
    assert_eq!(json["sanitised"][0]["expires"], "2030-12-31");
    assert_eq!(json["sanitised"][0]["service"][1], "icmp");
}
