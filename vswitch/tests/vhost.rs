//! Our guest driver and our vhost-user port, in one process: what arrives is what was sent, in
//! order, whatever the ring's layout; and a hostile guest breaks its own queue and nothing else.

#[path = "vhost/rig.rs"]
mod rig;

#[path = "vhost/dirty_log.rs"]
mod dirty_log;
#[path = "vhost/hostile.rs"]
mod hostile;
#[path = "vhost/life.rs"]
mod life;
#[path = "vhost/transfer.rs"]
mod transfer;
