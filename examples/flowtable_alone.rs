//! `flowtable` without the switch: two threads count the packets of the same connections, each seeing
//! one direction, while stale ones are swept out. Run with `cargo run --example flowtable_alone`.

use flowtable::{Addr, Config, Endpoint, FlowKey, New, Side, Table};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;

const CONNECTIONS: u16 = 1000;
const PACKETS_EACH: u32 = 10;
const UDP: u8 = 17;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // All memory is taken here; no operation below allocates.
    let table = Arc::new(Table::new(Config {
        capacity: 10_000,
        ..Config::default()
    })?);
    println!(
        "room for {} connections in {} KiB",
        table.capacity(),
        table.memory_bytes() / 1024
    );

    let server = Endpoint {
        addr: Addr::from_v4_bytes([10, 0, 0, 53]),
        port: 53,
        attachment: 2,
    };
    let client = |port| Endpoint {
        addr: Addr::from_v4_bytes([10, 0, 0, 1]),
        port,
        attachment: 1,
    };

    // Requests on one thread, answers on another. Whichever comes first makes the connection; the key
    // is the same for both directions and `side` says which end sent the packet.
    let direction = |requests: bool| {
        let table = Arc::clone(&table);
        move || {
            let mut flows = table.participant();
            let mut refused = 0;
            for tick in 0..PACKETS_EACH {
                for port in 0..CONNECTIONS {
                    let (src, dst) = if requests {
                        (client(port), server)
                    } else {
                        (server, client(port))
                    };
                    let (key, side) = FlowKey::new(0, UDP, &src, &dst);
                    let new = New {
                        initiator: side,
                        word: 0,
                        tick,
                        user: [0; 3],
                        far: None,
                    };
                    // A full table is a value, not a panic.
                    let Ok(inserted) = flows.insert_or_get(&key, new) else {
                        refused += 1;
                        continue;
                    };
                    // User words 0 and 1 count the packets of each side here; they could be anything.
                    inserted.conn.user(side as usize).fetch_add(1, Relaxed);
                    inserted.conn.touch(tick);
                }
                // No connection in hand: memory removed by anyone may come back.
                flows.quiesce();
            }
            refused
        }
    };
    let (requests, answers) = (
        thread::spawn(direction(true)),
        thread::spawn(direction(false)),
    );
    let refused = requests
        .join()
        .map_err(|_panic| "the request thread panicked")?
        + answers
            .join()
            .map_err(|_panic| "the answer thread panicked")?;
    assert_eq!(refused, 0);

    let mut flows = table.participant();
    assert_eq!(table.len(), usize::from(CONNECTIONS));
    let (key, _) = FlowKey::new(0, UDP, &client(7), &server);
    let conn = flows
        .lookup(&key)
        .ok_or("the connection of port 7 is gone")?;
    let [low, high] = [Side::Low, Side::High].map(|side| conn.user(side as usize).load(Relaxed));
    assert_eq!((low, high), (PACKETS_EACH.into(), PACKETS_EACH.into()));
    println!(
        "port 7: {low} packets from one side, {high} from the other; opened by {:?}",
        { conn.key().endpoint(conn.initiator()).addr.to_ip() }
    );

    // The same tuple between other attachments is another connection.
    let elsewhere = Endpoint {
        attachment: 3,
        ..client(7)
    };
    assert!(
        flows
            .lookup(&FlowKey::new(0, UDP, &elsewhere, &server).0)
            .is_none()
    );

    // Expiry: a few buckets per call, so that no call takes long; a round visits every connection once.
    let mut removed = 0;
    let budget = 64;
    for _ in 0..table.buckets().div_ceil(budget) {
        removed += flows.sweep(budget, |conn| conn.key().low().port % 2 == 0);
        flows.quiesce();
    }
    println!("{removed} connections swept out, {} left", table.len());
    assert_eq!((removed, table.len()), (500, 500));
    Ok(())
}
