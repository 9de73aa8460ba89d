//! What has no connection yet is judged together: addresses and rules are searched for all frames of a burst beside
//! each other, so that waits for memory overlap. It only answers sooner what `process` would ask singly.

use flowtable::ConnRef;

use crate::datapath::conn;
use crate::datapath::process::{Flow, is_syn, service};
use crate::datapath::snapshot::Snapshot;
use crate::frame::{BURST_MAX, Burst};
use crate::packet::{Addr, Parsed, proto};
use crate::policy::{Judgement, Party, Query, Service, SetId, TenantId};

/// Judgements of a burst's flows.
#[derive(Debug)]
pub(crate) struct Judged {
    answers: [Judgement; BURST_MAX],
    /// Which answer is whose, by place among the flows.
    answer_of: [usize; BURST_MAX],
}

impl Judged {
    /// Of the flow at this place, if it was judged.
    #[inline]
    pub(crate) fn of(&self, at: usize) -> Option<&Judgement> {
        self.answers.get(*self.answer_of.get(at)?)
    }
}

/// Judges the flows that were not hit, `into` what is nothing before. Nothing is counted: a judgement may turn out to be
/// about what an earlier frame of the burst opened.
#[inline]
pub(crate) fn misses(
    snapshot: &Snapshot,
    burst: &Burst,
    flows: &[Option<Flow<'_>>],
    hits: &[Option<ConnRef<'_>>],
    into: &mut Option<Judged>,
) {
    // One alone has nobody to wait with.
    if hits.iter().filter(|hit| hit.is_none()).count() > 1 {
        let judged = into.insert(Judged {
            answers: [Judgement::default(); BURST_MAX],
            answer_of: [usize::MAX; BURST_MAX],
        });
        together(snapshot, burst, flows, hits, judged);
    }
}

const NOTHING: Query = Query {
    from: NOBODY,
    to: NOBODY,
    service: Service::Ether(0),
};
const NOBODY: Party = Party {
    tenant: TenantId(0),
    set: SetId(0),
};

/// Whether it is a first packet, by itself.
fn opens(p: &Parsed) -> bool {
    (p.protocol != proto::TCP || is_syn(p)) && !conn::is_echo_reply(p)
}

#[inline(never)] // large arrays, which a burst of hits does not need
fn together(
    snapshot: &Snapshot,
    burst: &Burst,
    flows: &[Option<Flow<'_>>],
    hits: &[Option<ConnRef<'_>>],
    judged: &mut Judged,
) {
    let Some(classifier) = snapshot.classifier() else {
        return;
    };
    let mut queries = [NOTHING; BURST_MAX];
    // Whose each question is.
    let mut askers = [0; BURST_MAX];
    // The outside's segments depend on its address; one end of a frame at most is the outside's.
    let mut addrs = [Addr::default(); BURST_MAX];
    let mut sets = [SetId::default(); BURST_MAX];
    let (mut len, mut outside) = (0usize, None);
    let missed = flows.iter().flatten().zip(hits).enumerate();
    for (at, (flow, _)) in missed.filter(|(_, (flow, hit))| hit.is_none() && !flow.about) {
        let Some(p) = burst.frame(flow.slot.into()).map(|f| &f.parsed) else {
            continue;
        };
        if !opens(p) {
            continue;
        }
        let (from, to) = (flow.ends.sender, flow.ends.receiver);
        let query = Query {
            from: from.party,
            to: to.party,
            service: classifier.as_asked(service(p)),
        };
        let mut addr = Addr::default();
        if from.outside || to.outside {
            outside = Some(from.party.tenant);
            addr = if from.outside { p.src } else { p.dst };
        }
        // Floods and many a scan ask one thing over and over.
        let before = len.wrapping_sub(1);
        if queries.get(before) != Some(&query) || addrs.get(before) != Some(&addr) {
            let slots = (
                queries.get_mut(len),
                askers.get_mut(len),
                addrs.get_mut(len),
            );
            let (Some(to), Some(asker), Some(of)) = slots else {
                continue;
            };
            (*to, *asker, *of) = (query, at, addr);
            len += 1;
        }
        if let Some(answer) = judged.answer_of.get_mut(at) {
            *answer = len - 1;
        }
    }
    let (Some(queries), Some(addrs), Some(sets)) = (
        queries.get_mut(..len),
        addrs.get(..len),
        sets.get_mut(..len),
    ) else {
        return;
    };
    if let Some(tenant) = outside {
        classifier.outside_burst(tenant, addrs, sets);
        for ((query, asker), set) in queries.iter_mut().zip(askers).zip(&*sets) {
            let Some(Some(flow)) = flows.get(asker) else {
                continue;
            };
            if flow.ends.sender.outside {
                query.from.set = *set;
            } else if flow.ends.receiver.outside {
                query.to.set = *set;
            }
        }
    }
    if let Some(answers) = judged.answers.get_mut(..len) {
        classifier.classify_burst(queries, answers);
    }
}
