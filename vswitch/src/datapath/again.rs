//! An established connection is judged again: under a newer generation, as its initiator would be judged now, or because it
//! is on probation (`passes`).

use flowtable::ConnRef;

use crate::datapath::conn::{self, Admission};
use crate::datapath::hold;
use crate::datapath::passes::{self, Passage};
use crate::datapath::process::{Ctx, Fate, enforce};
use crate::datapath::report;
use crate::datapath::snapshot::Owner;
use crate::drop_reason::DropReason;
use crate::event::ConnEventKind;
use crate::frame::Frame;
use crate::policy::{Classifier, Query, Verdict, Why};

/// Whether the connection of a frame may go on; when not, it ends here.
///
/// # Errors
/// It may not, and why.
pub(crate) fn judge(
    ctx: &mut Ctx<'_>,
    classifier: &Classifier,
    conn: &ConnRef<'_>,
    frame: &Frame,
    from: &Owner,
    to: &Owner,
) -> Result<Fate, DropReason> {
    let key = conn.key();
    let (from_addr, to_addr) = conn::addresses(&key, conn.initiator());
    let query = Query {
        from: ctx.snapshot.party(classifier, from, &from_addr),
        to: ctx.snapshot.party(classifier, to, &to_addr),
        service: conn::service(&key, conn.initiator()),
    };
    let j = classifier.classify(&query);
    let j = hold::settle_again(ctx, classifier, j, conn, (from, to));
    let p = &frame.parsed;
    let passage = passes::settle_again(ctx, classifier, &j, p, conn, (from, to))?;
    match (j.verdict, j.why, passage) {
        (Verdict::Allow, Why::Rule(_), Passage::Unknown) => Ok(Fate::Waits),
        (Verdict::Allow, Why::Rule(rule), Passage::Open(generation)) => {
            let old = conn.word();
            // A newer generation written meanwhile by another worker stands.
            if conn::generation(old) < generation
                && conn.advance_word(old, conn::word(generation)).is_ok()
            {
                let admission = Admission {
                    rule,
                    limited: j.limited,
                    logged: j.log || j.notify,
                    group: from.group,
                };
                ctx.quotas.readmit(conn, admission);
            }
            Ok(Fate::Passes)
        }
        _ => {
            ctx.counters.worker.conn_cut.add(1);
            report::end(ctx, conn, ConnEventKind::Cut);
            ctx.quotas.remove(ctx.table, *conn);
            if j.verdict == Verdict::Allow && passage == Passage::Closed {
                return Err(passes::closed(ctx, &j, p, (from, to)));
            }
            enforce(ctx, classifier, &j, frame, from, to).map(|_| Fate::Passes)
        }
    }
}
