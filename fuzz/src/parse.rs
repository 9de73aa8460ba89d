//! The parser, the ARP and neighbour-discovery views, tracking's first step, and the frames built in
//! answer: never a panic, and whatever is accepted holds together.

use vswitch::datapath::tcp;
use vswitch::packet::{self, Fragment, L3, Mac, Parsed, arp, nd, proto, reply};

/// The head's capacity in the data path.
const HEAD: usize = 256;

/// One frame; the bytes past the head stand for a tail.
pub fn run(frame: &[u8]) {
    let head = &frame[..frame.len().min(HEAD)];
    let Ok(len) = u32::try_from(frame.len()) else {
        return;
    };
    let Ok(p) = packet::parse(head, len) else {
        return;
    };
    offsets_hold(&p, frame.len());
    let mac = Mac([0x52, 0x54, 0, 0, 0, 9]);
    let mut out = [0u8; HEAD];
    if p.l3 == L3::Arp {
        if let Ok(request) = arp::parse(head, p.l3_offset) {
            let n = arp::reply(&mut out, &request, mac);
            let answer = arp::parse(&out[..n], 14);
            // 0.0.0.0/8, multicast and the like have no owner to answer for.
            assert!(answer.is_err() || answer.is_ok_and(|a| a.tha == request.sha));
        }
        return;
    }
    if let Ok(message) = nd::parse(head, &p) {
        let n = nd::advertisement(&mut out, &message, &p, mac, false);
        assert_eq!(n, 86);
    }
    if let Some(n) = reply::reject(&mut out, head, &p) {
        assert!(n <= HEAD);
        let answer = packet::parse(&out[..n], n as u32).expect("our own frames are well-formed");
        assert_eq!((answer.src, answer.dst), (p.dst, p.src));
        let mut again = [0u8; HEAD];
        let told = reply::reject(&mut again, &out[..n], &answer);
        assert_eq!(told, None, "an answer is never answered");
    }
    if p.protocol == proto::TCP && p.l4_offset != 0 {
        let _ = tcp::start(&tcp::Segment::of(&p));
    }
}

fn offsets_hold(p: &Parsed, len: usize) {
    let (l4, payload) = (usize::from(p.l4_offset), usize::from(p.payload_offset));
    if l4 == 0 {
        assert_eq!((payload, p.sport, p.dport), (0, 0, 0));
    } else {
        assert!(usize::from(p.l3_offset) < l4 && l4 < payload && payload <= HEAD);
    }
    assert!(payload + p.payload_len as usize <= len);
    match p.fragment {
        Fragment::No => assert_eq!(p.fragment_len, 0),
        Fragment::First { .. } => assert!(p.fragment_len > 0),
        Fragment::Later { offset, .. } => {
            assert!(p.fragment_len > 0 && l4 == 0);
            assert!(offset.checked_add(p.fragment_len).is_some());
        }
    }
}
