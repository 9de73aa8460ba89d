#![allow(
    missing_docs,
    missing_debug_implementations,
    clippy::missing_errors_doc
)]
//! Fragments.
use crate::drop_reason::DropReason;
use crate::packet::Parsed;
use crate::port::PortId;
#[derive(Debug)]
pub struct FragmentTable;
impl FragmentTable {
    pub fn new(_: usize) -> Self {
        FragmentTable
    }
    pub fn first(&mut self, _: PortId, _: &Parsed, _: u64, _: u32) -> Result<(), DropReason> {
        Ok(())
    }
    pub fn later(&mut self, _: PortId, _: &Parsed, _: u32) -> Result<u64, DropReason> {
        Err(DropReason::FragmentWithoutFirst)
    }
}
