//! A userspace virtual switch with a stateful firewall between any two workloads.
