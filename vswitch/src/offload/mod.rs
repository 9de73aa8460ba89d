//! Offloads between ports that differ: what a receiver cannot take is completed (checksums) or
//! segmented (TCP, UDP) here, while the frame is on its way into the receiver's memory.
//!
//! The data path calls [`normalise`] once after parsing, so that everything behind it works on
//! requests that agree with the headers; a port's `tx` calls [`send`] per frame.
//! Headers are only ever read from, and edited in, private memory; payload is summed and copied
//! by raw reads of the sender's memory. A sender that changes its payload between the two gets a
//! wrong checksum for its trouble, as on any network card.

use crate::counters::PortCell;
use crate::drop_reason::DropReason;
use crate::frame::{Csum, Frame, Gso, HEAD_CAP, TxCaps, TxView};
use crate::packet::{Fragment, L3, Parsed, checksum, proto, tcp_flag};

mod tail;
#[cfg(test)]
mod tests;

pub use tail::{Pieces, TailSlice};

/// Most frames one frame is segmented into: a 64 KiB frame of 512-byte segments. More is a sender
/// that wants to make us work.
pub const SEGMENTS_MAX: u32 = 128;

/// Congestion window reduced (RFC 3168 section 6.1.2): belongs on the first segment only.
const TCP_CWR: u8 = 0x80;

/// One frame ready to be sent.
#[derive(Clone, Copy, Debug)]
pub struct Out<'a> {
    /// Private bytes: the headers, and whatever payload stood beside them.
    pub head: &'a [u8],
    /// The rest, in the sender's memory.
    pub tail: TailSlice<'a>,
    /// The receiver completes the checksum: where the transport header starts in the frame, and
    /// the field's offset in it. The field holds the pseudo-header's sum.
    pub needs_csum: Option<(u16, u16)>,
    /// The receiver segments the frame.
    pub gso: Gso,
    /// Payload bytes per segment when `gso` is not `None`.
    pub gso_size: u16,
    /// Bytes of all headers when `gso` is not `None`; else 0.
    pub hdr_len: u16,
    /// The checksum is complete and was verified by the sender's device or host.
    pub data_valid: bool,
}

impl Out<'_> {
    /// Bytes of the frame without FCS.
    #[inline]
    #[must_use]
    pub fn len(&self) -> u32 {
        #[allow(clippy::cast_possible_truncation)] // a head has at most 260 bytes
        {
            self.head.len() as u32 + self.tail.len()
        }
    }

    /// Whether the frame has no bytes at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[inline]
fn emit_plain(
    view: &TxView<'_>,
    caps: &TxCaps,
    sink: &mut impl FnMut(&Out<'_>) -> Result<(), DropReason>,
) -> Result<u32, DropReason> {
    if view.len() > caps.max_frame_bytes {
        return Err(DropReason::TxTooBig);
    }
    sink(&Out {
        head: view.head,
        tail: TailSlice::whole(view),
        needs_csum: None,
        gso: Gso::None,
        gso_size: 0,
        hdr_len: 0,
        data_valid: view.offload.csum == Csum::Valid,
    })?;
    Ok(1)
}

/// Calls `sink` once per frame to send: once when the receiver can take the frame whole (no byte
/// is touched then, except for a completed checksum), else once per segment. Costs a few branches
/// when no offload is asked for.
///
/// Counts as a transmit queue does: `tx_pkts`, `tx_bytes`, `extra_segments_pkts`, and the drop when
/// there is one: [`DropReason::TxTooBig`] when the frame exceeds `caps.max_frame_bytes` and cannot be
/// segmented, [`DropReason::TooManySegments`], [`DropReason::BadOffload`] for a request that
/// [`normalise`] would have refused, or what `sink` returned: then nothing follows, but segments
/// before it were sent.
#[inline]
pub fn send(
    view: &TxView<'_>,
    caps: &TxCaps,
    cell: &PortCell,
    sink: &mut impl FnMut(&Out<'_>) -> Result<(), DropReason>,
) {
    if !view.offload.is_plain() {
        return send_offloaded(view, caps, cell, sink);
    }
    match emit_plain(view, caps, sink) {
        Ok(_) => {
            cell.pkts.tx_pkts.add(1);
            cell.pkts.tx_bytes.add(u64::from(view.len()));
        }
        Err(reason) => cell.drops.add(reason, 1),
    }
}

fn send_offloaded(
    view: &TxView<'_>,
    caps: &TxCaps,
    cell: &PortCell,
    sink: &mut impl FnMut(&Out<'_>) -> Result<(), DropReason>,
) {
    let (mut sent, mut bytes) = (0u64, 0u64);
    let result = emit_offloaded(view, caps, &mut |out| {
        sink(out)?;
        sent += 1;
        bytes += u64::from(out.len());
        Ok(())
    });
    cell.pkts.tx_pkts.add(sent);
    cell.pkts.tx_bytes.add(bytes);
    // One frame came; whatever was sent or dropped beyond one was made here.
    let made = match result {
        Ok(_) => sent,
        Err(reason) => {
            cell.drops.add(reason, 1);
            sent + 1
        }
    };
    if made > 1 {
        cell.pkts.extra_segments_pkts.add(made - 1);
    }
}

/// Where a frame's headers stand, for completing or segmenting it.
#[derive(Clone, Copy)]
struct Layout {
    l3: usize,
    l4: usize,
    payload: usize,
    protocol: u8,
    v4: bool,
    /// Transport header and payload, bytes.
    l4_len: u32,
}

impl Layout {
    /// From the parsed headers, `shift` bytes further on. `None` unless the frame is an
    /// unfragmented TCP or UDP packet whose headers are all in a head of `head_len` bytes.
    #[inline]
    fn of(parsed: &Parsed, shift: u16, head_len: usize) -> Option<Layout> {
        let tcp_or_udp = parsed.protocol == proto::TCP || parsed.protocol == proto::UDP;
        let v4 = match parsed.l3 {
            L3::V4 => true,
            L3::V6 => false,
            L3::Arp | L3::Other => return None,
        };
        if !tcp_or_udp || parsed.l4_offset == 0 || parsed.fragment != Fragment::No {
            return None;
        }
        let at = |offset: u16| usize::from(offset) + usize::from(shift);
        let l = Layout {
            l3: at(parsed.l3_offset),
            l4: at(parsed.l4_offset),
            payload: at(parsed.payload_offset),
            protocol: parsed.protocol,
            v4,
            l4_len: u32::from(parsed.payload_offset.checked_sub(parsed.l4_offset)?)
                .checked_add(parsed.payload_len)?,
        };
        let ip_header = if v4 { 20 } else { 40 };
        let l4_header = if l.protocol == proto::TCP { 20 } else { 8 };
        let ok = l.l3 + ip_header <= l.l4 && l.l4 + l4_header <= l.payload && l.payload <= head_len;
        ok.then_some(l)
    }

    /// Offset of the checksum field in the transport header (RFC 9293 section 3.1, RFC 768).
    #[inline]
    fn field_offset(&self) -> usize {
        if self.protocol == proto::TCP { 16 } else { 6 }
    }

    /// First byte after the IP packet. More bytes in the frame are padding.
    #[inline]
    fn end(&self) -> u64 {
        self.l4 as u64 + u64::from(self.l4_len)
    }
}

/// Makes the sender's request agree with the headers, once per frame after parsing: an unknown
/// checksum becomes partial or complete, segmentation is checked against protocol, family and
/// sizes, a partial checksum's field is set to the pseudo-header's sum. Costs two branches when
/// nothing is asked for.
///
/// # Errors
/// [`DropReason::BadOffload`] when request and headers disagree, [`DropReason::TooManySegments`].
#[inline]
pub fn normalise(frame: &mut Frame) -> Result<(), DropReason> {
    if !frame.offload.is_plain() {
        return normalise_request(frame);
    }
    if frame.offload.csum == Csum::Unknown {
        resolve_unknown_csum(frame);
    }
    Ok(())
}

fn normalise_request(frame: &mut Frame) -> Result<(), DropReason> {
    let parsed = &frame.parsed;
    let l = Layout::of(parsed, 0, frame.head().len()).ok_or(DropReason::BadOffload)?;
    let gso = frame.offload.gso;
    let agrees = match gso {
        Gso::None => true,
        Gso::TcpV4 => l.v4 && l.protocol == proto::TCP,
        Gso::TcpV6 => !l.v4 && l.protocol == proto::TCP,
        Gso::UdpL4 => l.protocol == proto::UDP,
    };
    if !agrees || l.end() > u64::from(frame.len()) || !udp_len_agrees(frame.head(), &l) {
        return Err(DropReason::BadOffload);
    }
    let mut request = frame.offload;
    if gso != Gso::None {
        let once = tcp_flag::SYN | tcp_flag::RST | tcp_flag::URG;
        let repeats = l.protocol == proto::TCP && parsed.tcp.flags & once != 0;
        if request.gso_size == 0 || repeats || l.end() != u64::from(frame.len()) {
            return Err(DropReason::BadOffload);
        }
        let segments = parsed.payload_len.div_ceil(u32::from(request.gso_size));
        if segments > SEGMENTS_MAX {
            return Err(DropReason::TooManySegments);
        }
        if segments <= 1 {
            request.gso = Gso::None;
            request.gso_size = 0;
        }
    }
    request.csum = Csum::Partial;
    let sum = checksum::fold(pseudo(parsed, l.l4_len));
    put16(frame.head_mut(), l.l4 + l.field_offset(), sum).ok_or(DropReason::BadOffload)?;
    frame.offload = request;
    Ok(())
}

/// For [`Csum::Unknown`]: the field equals the pseudo-header's sum exactly when the sender left
/// the rest to its device. (A complete checksum has that value once in 65536 frames; completing
/// it again gives the same value, so that the test is exact.) Everything else is complete.
///
/// TCP and UDP only: a partial SCTP checksum, or one inside a tunnel, cannot be told from headers.
#[inline]
pub fn resolve_unknown_csum(frame: &mut Frame) {
    frame.offload.csum = match is_partial(frame) {
        Some(true) => Csum::Partial,
        _ => Csum::Complete,
    };
}

#[inline]
fn is_partial(frame: &Frame) -> Option<bool> {
    let head = frame.head();
    let l = Layout::of(&frame.parsed, 0, head.len())?;
    if l.end() > u64::from(frame.len()) || !udp_len_agrees(head, &l) {
        return None;
    }
    let sum = checksum::fold(pseudo(&frame.parsed, l.l4_len));
    Some(get16(head, l.l4 + l.field_offset())? == sum)
}

/// Whether a UDP header's own length is that of the IP packet's payload: the checksum covers
/// exactly that many bytes then.
#[inline]
fn udp_len_agrees(head: &[u8], l: &Layout) -> bool {
    l.protocol != proto::UDP || get16(head, l.l4 + 4).is_some_and(|n| u32::from(n) == l.l4_len)
}

fn emit_offloaded(
    view: &TxView<'_>,
    caps: &TxCaps,
    sink: &mut impl FnMut(&Out<'_>) -> Result<(), DropReason>,
) -> Result<u32, DropReason> {
    let l = Layout::of(view.parsed, view.shift, view.head.len()).ok_or(DropReason::BadOffload)?;
    if l.end() > u64::from(view.len()) {
        return Err(DropReason::BadOffload);
    }
    let offload = view.offload;
    let takes_gso = match offload.gso {
        Gso::None => true,
        Gso::TcpV4 => caps.tso4,
        Gso::TcpV6 => caps.tso6,
        Gso::UdpL4 => caps.uso,
    };
    // What the receiver sees on its wire: a frame, or its segments.
    let longest = match offload.gso {
        Gso::None => view.len(),
        Gso::TcpV4 | Gso::TcpV6 | Gso::UdpL4 => {
            u32::from(headers_len(&l)) + u32::from(offload.gso_size)
        }
    };
    if longest > caps.max_frame_bytes {
        return Err(DropReason::TxTooBig);
    }
    if !takes_gso {
        return segment(view, &l, caps.csum, sink);
    }
    // A receiver sums to the frame's end, so a padded frame is completed here.
    if caps.csum && l.end() == u64::from(view.len()) {
        let gso = offload.gso != Gso::None;
        sink(&Out {
            head: view.head,
            tail: TailSlice::whole(view),
            needs_csum: Some(needs_csum(&l)),
            gso: offload.gso,
            gso_size: if gso { offload.gso_size } else { 0 },
            hdr_len: if gso { headers_len(&l) } else { 0 },
            data_valid: false,
        })?;
        return Ok(1);
    }
    if offload.gso != Gso::None {
        // Takes segmentation but no partial checksum: no such device is specified (virtio 5.1.3.1).
        return segment(view, &l, caps.csum, sink);
    }
    complete(view, &l, sink)
}

/// Sends the frame with its checksum completed in a private copy of the head.
fn complete(
    view: &TxView<'_>,
    l: &Layout,
    sink: &mut impl FnMut(&Out<'_>) -> Result<(), DropReason>,
) -> Result<u32, DropReason> {
    let mut scratch = [0u8; HEAD_ROOM];
    let head = copy_head(&mut scratch, view.head)?;
    let tail = TailSlice::whole(view);
    let field = l.l4 + l.field_offset();
    put16(head, field, 0).ok_or(DropReason::BadOffload)?;
    // By the IP header's length: bytes after it are padding and not summed.
    let end = usize::try_from(l.end()).unwrap_or(usize::MAX);
    let private = head.get(l.l4..end.min(head.len())).unwrap_or(&[]);
    let in_tail = u32::try_from(end.saturating_sub(head.len())).unwrap_or(0);
    let sum = checksum::sum(private, pseudo(view.parsed, l.l4_len));
    let sum = sum_behind(&tail.part(0, in_tail), private.len(), sum);
    put16(head, field, finish(sum, l.protocol)).ok_or(DropReason::BadOffload)?;
    sink(&Out {
        head,
        tail,
        needs_csum: None,
        gso: Gso::None,
        gso_size: 0,
        hdr_len: 0,
        data_valid: false,
    })?;
    Ok(1)
}

/// Cuts a TCP or UDP frame into frames of `gso_size` payload bytes; headers are edited in a
/// private copy. With `csum` the receiver completes the checksums.
fn segment(
    view: &TxView<'_>,
    l: &Layout,
    csum: bool,
    sink: &mut impl FnMut(&Out<'_>) -> Result<(), DropReason>,
) -> Result<u32, DropReason> {
    let bad = DropReason::BadOffload;
    let size = u32::from(view.offload.gso_size);
    if size == 0 || l.end() != u64::from(view.len()) {
        return Err(bad);
    }
    let (headers, private) = view.head.split_at_checked(l.payload).ok_or(bad)?;
    #[allow(clippy::cast_possible_truncation)] // a head has at most 260 bytes
    let (l4_header_len, private_len) = ((l.payload - l.l4) as u32, private.len() as u32);
    let payload_len = private_len.checked_add(view.tail_len).ok_or(bad)?;
    let segments = payload_len.div_ceil(size);
    if segments > SEGMENTS_MAX {
        return Err(DropReason::TooManySegments);
    }
    let tail = TailSlice::whole(view);
    let mut scratch = [0u8; HEAD_ROOM];
    let fields = HeaderFields::read(headers, l).ok_or(bad)?;
    let field = l.l4 + l.field_offset();
    for i in 0..segments {
        let (from, to) = (i * size, ((i + 1) * size).min(payload_len));
        // The part of this segment that stands in the private head, and the part in the tail.
        let own = private
            .get(from.min(private_len) as usize..to.min(private_len) as usize)
            .ok_or(bad)?;
        let (tail_from, tail_to) = (
            from.saturating_sub(private_len),
            to.saturating_sub(private_len),
        );
        let part = tail.part(tail_from, tail_to - tail_from);
        let room = scratch.get_mut(..headers.len() + own.len()).ok_or(bad)?;
        let (h, p) = room.split_at_mut(headers.len());
        h.copy_from_slice(headers);
        p.copy_from_slice(own);
        let l4_len = l4_header_len + (to - from);
        fields
            .write(h, l, l4_len, i, from, i + 1 == segments)
            .ok_or(bad)?;
        let pseudo = pseudo(view.parsed, l4_len);
        if csum {
            put16(h, field, checksum::fold(pseudo)).ok_or(bad)?;
        } else {
            put16(h, field, 0).ok_or(bad)?;
            let private = room.get(l.l4..).ok_or(bad)?;
            let sum = sum_behind(&part, private.len(), checksum::sum(private, pseudo));
            put16(room, field, finish(sum, l.protocol)).ok_or(bad)?;
        }
        sink(&Out {
            head: room,
            tail: part,
            needs_csum: csum.then(|| needs_csum(l)),
            gso: Gso::None,
            gso_size: 0,
            hdr_len: 0,
            data_valid: false,
        })?;
    }
    Ok(segments)
}

/// The header fields that differ from segment to segment, as the unsegmented frame had them.
struct HeaderFields {
    ip_id: u16,
    seq: u32,
    flags: u8,
}

impl HeaderFields {
    fn read(headers: &[u8], l: &Layout) -> Option<HeaderFields> {
        let tcp = l.protocol == proto::TCP;
        Some(HeaderFields {
            ip_id: if l.v4 { get16(headers, l.l3 + 4)? } else { 0 },
            seq: if tcp {
                u32::from(get16(headers, l.l4 + 4)?) << 16 | u32::from(get16(headers, l.l4 + 6)?)
            } else {
                0
            },
            flags: if tcp { *headers.get(l.l4 + 13)? } else { 0 },
        })
    }

    /// Edits the headers for segment `i` whose payload starts `from` bytes into the whole.
    fn write(
        &self,
        h: &mut [u8],
        l: &Layout,
        l4_len: u32,
        i: u32,
        from: u32,
        last: bool,
    ) -> Option<()> {
        let packet_len = u32::try_from(l.l4 - l.l3).ok()?.checked_add(l4_len)?;
        if l.v4 {
            put16(h, l.l3 + 2, u16::try_from(packet_len).ok()?)?;
            #[allow(clippy::cast_possible_truncation)] // at most SEGMENTS_MAX
            put16(h, l.l3 + 4, self.ip_id.wrapping_add(i as u16))?;
            put16(h, l.l3 + 10, 0)?;
            let sum = checksum::sum(h.get(l.l3..l.l4)?, 0);
            put16(h, l.l3 + 10, !checksum::fold(sum))?;
        } else {
            // The length field counts what follows the fixed header of 40 bytes.
            let payload = packet_len.checked_sub(40)?;
            put16(h, l.l3 + 4, u16::try_from(payload).ok()?)?;
        }
        if l.protocol == proto::TCP {
            let [a, b, c, d] = self.seq.wrapping_add(from).to_be_bytes();
            put16(h, l.l4 + 4, u16::from_be_bytes([a, b]))?;
            put16(h, l.l4 + 6, u16::from_be_bytes([c, d]))?;
            let mut flags = self.flags;
            if i != 0 {
                flags &= !TCP_CWR;
            }
            if !last {
                flags &= !(tcp_flag::FIN | tcp_flag::PSH);
            }
            *h.get_mut(l.l4 + 13)? = flags;
        } else {
            put16(h, l.l4 + 4, u16::try_from(l4_len).ok()?)?;
        }
        Some(())
    }
}

/// A head with a pushed tag: what `TxView::head` holds at most.
const HEAD_ROOM: usize = HEAD_CAP + 4;

fn copy_head<'a>(
    scratch: &'a mut [u8; HEAD_ROOM],
    head: &[u8],
) -> Result<&'a mut [u8], DropReason> {
    let copy = scratch
        .get_mut(..head.len())
        .ok_or(DropReason::BadOffload)?;
    copy.copy_from_slice(head);
    Ok(copy)
}

#[inline]
#[allow(clippy::cast_possible_truncation)] // offsets into a head of at most 260 bytes
fn needs_csum(l: &Layout) -> (u16, u16) {
    (l.l4 as u16, l.field_offset() as u16)
}

#[inline]
#[allow(clippy::cast_possible_truncation)] // an offset into a head of at most 260 bytes
fn headers_len(l: &Layout) -> u16 {
    l.payload as u16
}

/// The pseudo-header's sum for `l4_len` bytes of transport header and payload. Addresses are those
/// of the IP header, so a checksum over a routing header's final destination is not understood.
#[inline]
fn pseudo(parsed: &Parsed, l4_len: u32) -> u64 {
    checksum::pseudo(&parsed.src, &parsed.dst, parsed.protocol, l4_len)
}

/// Adds the sum of a tail that stands behind `before` summed bytes.
#[inline]
fn sum_behind(tail: &TailSlice<'_>, before: usize, start: u64) -> u64 {
    if before.is_multiple_of(2) {
        return tail.sum(start);
    }
    // A piece at an odd offset counts with its bytes swapped (RFC 1071 section 2 B).
    start + u64::from(checksum::fold(tail.sum(0)).swap_bytes())
}

/// The field for a sum. UDP sends 0xffff for zero, which would mean "no checksum" (RFC 768).
#[inline]
fn finish(sum: u64, protocol: u8) -> u16 {
    match !checksum::fold(sum) {
        0 if protocol == proto::UDP => 0xffff,
        field => field,
    }
}

#[inline]
fn get16(bytes: &[u8], at: usize) -> Option<u16> {
    bytes
        .get(at..)?
        .first_chunk()
        .map(|b| u16::from_be_bytes(*b))
}

#[inline]
fn put16(bytes: &mut [u8], at: usize, value: u16) -> Option<()> {
    *bytes.get_mut(at..)?.first_chunk_mut()? = value.to_be_bytes();
    Some(())
}
