//! An established connection is judged again: under a newer generation, as its initiator would be judged now, or because it
//! is on probation (`passes`) or kept in quarantine.

use flowtable::ConnRef;

use crate::datapath::conn::{self, Admission};
use crate::datapath::hold;
use crate::datapath::passes::{self, Passage};
use crate::datapath::process::{Ctx, enforce};
use crate::datapath::quarantine::{self, Kept, Standing};
use crate::datapath::report;
use crate::datapath::snapshot::Owner;
use crate::drop_reason::DropReason;
use crate::event::ConnEventKind;
use crate::frame::Frame;
use crate::policy::{Classifier, Query, Verdict, Why};

/// What becomes of a connection that may go on.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Again<'s> {
    /// As before.
    Passes,
    /// It does so in quarantine.
    Kept(&'s Kept),
    /// Somebody has to answer first.
    Waits,
}

/// Whether the connection of a frame may go on; when not, it ends here.
///
/// # Errors
/// It may not, and why.
pub(crate) fn judge<'s>(
    ctx: &mut Ctx<'s>,
    classifier: &Classifier,
    conn: &ConnRef<'_>,
    frame: &Frame,
    from: &Owner,
    to: &Owner,
) -> Result<Again<'s>, DropReason> {
    let key = conn.key();
    let (from_addr, to_addr) = conn::addresses(&key, conn.initiator());
    let query = Query {
        from: ctx.snapshot.party(classifier, from, &from_addr),
        to: ctx.snapshot.party(classifier, to, &to_addr),
        service: conn::service(&key, conn.initiator()),
    };
    let j = classifier.classify(&query);
    let p = &frame.parsed;
    let standing = quarantine::standing(ctx.snapshot, &key);
    if let Standing::Out = standing {
        cut(ctx, conn);
        return Err(quarantine::refused(ctx, p, (from, to)));
    }
    let about = (&key, conn.initiator());
    let answered = !matches!(standing, Standing::Free);
    let j = hold::settle_again(ctx, classifier, j, about, (from, to), answered);
    let passage = passes::settle_again(ctx, classifier, &j, p, about, (from, to))?;
    match (j.verdict, j.why, passage) {
        (Verdict::Allow, Why::Rule(_), Passage::Unknown) => Ok(Again::Waits),
        (Verdict::Allow, Why::Rule(rule), Passage::Open(generation)) => {
            let generation = match standing {
                // Each of its frames is judged again.
                Standing::Kept(_) => generation.saturating_sub(1),
                _ => generation,
            };
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
            if let Standing::Kept(kept) = standing {
                kept.judge(ctx.generation);
                return Ok(Again::Kept(kept));
            }
            Ok(Again::Passes)
        }
        _ => {
            cut(ctx, conn);
            if j.verdict == Verdict::Allow && passage == Passage::Closed {
                return Err(passes::closed(ctx, &j, p, (from, to)));
            }
            enforce(ctx, classifier, &j, frame, from, to).map(|_| Again::Passes)
        }
    }
}

fn cut(ctx: &mut Ctx<'_>, conn: &ConnRef<'_>) {
    ctx.counters.worker.conn_cut.add(1);
    report::end(ctx, conn, ConnEventKind::Cut);
    ctx.quotas.remove(ctx.table, *conn);
}
