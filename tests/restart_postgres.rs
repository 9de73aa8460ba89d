//! PostgreSQL, whose client is restarted by a command: what the old session has locked is free at once, because the server is told
//! that nobody is there any more, and the new one has it.

mod common;

use common::container::Container;
use common::netns::Netns;
use common::process::Process;
use common::switch::SwitchConfig;
use common::{Lab, Need, wait_for};
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(60);
const POLICY: &str = "[[rule]]\nname = \"db\"\nfrom = \"any\"\nto = \"any\"\nservice = \"tcp/5432\"\naction = \"allow\"\n";

/// Debian has the server's programs apart, by version.
fn programs() -> String {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten();
    let mut bins = versions.flatten().map(|entry| entry.path().join("bin"));
    let bin = bins.find(|bin| bin.join("postgres").exists());
    bin.expect("Debian's package")
        .to_str()
        .expect("UTF-8")
        .to_owned()
}

/// A server that answers everybody, and asks after one second of silence whether a client is still there; when nobody says
/// anything to that, it goes on to believe so for more than ten minutes.
fn server(lab: &Lab, db: &Netns) -> Process {
    let (data, bin) = (lab.path_str("pg"), programs());
    // It refuses to run as root.
    let world = Permissions::from_mode(0o755);
    fs::set_permissions(lab.path(""), world).expect("it is ours");
    let as_postgres = "setpriv --reuid=postgres --regid=postgres --clear-groups";
    let make = format!(
        "install -d -o postgres {data} && cd {data} && \
         {as_postgres} {bin}/initdb -D {data}/db -A trust -U postgres --no-sync && \
         echo 'host all all 10.0.0.0/24 trust' >> {data}/db/pg_hba.conf"
    );
    db.run_ok(&make, LIMIT);
    let serve = format!(
        "{as_postgres} {bin}/postgres -D {data}/db -c listen_addresses=10.0.0.2 -c unix_socket_directories={data} \
         -c fsync=off -c tcp_keepalives_idle=1"
    );
    let server = db.spawn(lab, "postgres", &serve);
    db.wait_listening(5432);
    server
}

#[test]
fn the_lock_of_a_client_that_was_restarted_is_free_at_once() {
    let needs = [Need::Netns, Need::Program("psql"), Need::Program("setpriv")];
    let Some(lab) = Lab::open(&needs) else { return };
    let host = Netns::new(&lab, "host");
    let (app, db) = (
        Container::bare(&lab, "app", 1),
        Container::bare(&lab, "db", 2),
    );
    // Whatever runs the client starts it again whenever it has ended.
    let pid = lab.path_str("client.pid");
    let restart = format!(
        "[port.workload.restart]\ndriver = \"command\"\nargv = [\"/bin/sh\", \"-c\", \"kill -9 $(cat {pid})\"]\n"
    );
    let toml = format!(
        "policy = \"policy.toml\"\n{}stateless = true\n{restart}{}",
        app.tap_port(""),
        db.tap_port("")
    );
    let switch = SwitchConfig::new(&lab, "switch", &toml, POLICY)
        .in_netns(&host)
        .start();
    app.configure();
    db.configure();
    wait_for("the restarter", LIMIT, || {
        common::restart::restarter(&switch)
    });
    let _server = server(&lab, &db.ns);
    let sql = |query: &str| {
        let data = lab.path_str("pg");
        let psql = format!("psql -h {data} -U postgres -Atc \"{query}\"");
        db.ns.run_ok(&psql, LIMIT).trim().to_owned()
    };
    // It takes the lock, and then waits for commands that never come.
    let client = lab.file(
        "client.sh",
        format!(
            "mkfifo {pid}.fifo\nexec 3<> {pid}.fifo\nwhile sleep 0.1; do\n\
             sh -c 'echo $$ > {pid}; exec setpriv --pdeathsig KILL \
             psql -q -h 10.0.0.2 -U postgres -c \"select pg_advisory_lock(1)\" -f {pid}.fifo'\ndone\n"
        ),
    );
    let _client = app
        .ns
        .spawn(&lab, "client", &format!("sh {}", client.display()));
    // Which of the server's sessions has it.
    let holder = || sql("select pid from pg_locks where locktype = 'advisory' and granted");
    let first = wait_for("the lock", LIMIT, || {
        Some(holder()).filter(|pid| !pid.is_empty())
    });

    let start = Instant::now();
    let restarted = ["workload", "restart", "app", "--wait", "--json"];
    let output = switch.cli(&restarted);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let second = wait_for("the lock", LIMIT, || {
        Some(holder()).filter(|pid| !pid.is_empty() && *pid != first)
    });
    println!(
        "{} ms from the restart to the new session {second} with the lock of {first}",
        start.elapsed().as_millis()
    );
    let sessions = sql("select count(*) from pg_stat_activity where client_addr is not null");
    assert_eq!(sessions, "1");
    switch.wait_conserved();
}
