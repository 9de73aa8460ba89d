//! Chinese walls where frames pass: two that may carry something over need a *pass* of the control thread, which knows who
//! carries what (`control/walls`).
//!
//! A pass is an answer of the same table as those to questions (`verdicts`), and asked for in the same way (`hold`): about
//! two attachments, either way, whatever the service. It is looked for when a connection is opened or judged again, so an
//! established frame costs nothing. Passes are given for the walls as they are: others' count for nothing.
//!
//! *On probation* is a connection whose payload would bind somebody who is not bound yet. Its entry stands under generation 0,
//! so every frame of it is judged again, until one has payload: the control thread is told of that before it is sent, and
//! from then on the entry is as any other. A handshake that comes to nothing binds nobody.

use std::collections::HashSet;

use flowtable::{Endpoint, FlowKey, Side};

use crate::datapath::conn;
use crate::datapath::hold::{Question, event};
use crate::datapath::process::{Ctx, service};
use crate::datapath::report;
use crate::datapath::snapshot::{AttachmentId, Owner, Snapshot};
use crate::datapath::verdicts::{self, Pass, Purpose};
use crate::drop_reason::DropReason;
use crate::event::{About, AskEvent, ConnEventKind};
use crate::packet::{Addr, Cidr, Fragment, Parsed, proto};
use crate::policy::model::ServiceSpec;
use crate::policy::{Classifier, Judgement, Service, TenantId, Verdict, Why};

/// The walls, as far as frames are concerned.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Walls {
    /// Stands for all of them, and for who is meant: passes are given for it.
    pub definition: u64,
    /// What carries nothing over.
    pub clean: Vec<Clean>,
}

/// A sanitised service.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Clean {
    /// Whose.
    pub tenant: TenantId,
    /// Workloads that serve it.
    pub attachments: HashSet<AttachmentId>,
    /// Addresses outside that do.
    pub cidr: Vec<Cidr>,
    /// What.
    pub service: Vec<ServiceSpec>,
}

impl Walls {
    /// Whether what goes to `server` for this service may carry something over. `addr` is where it is, if outside.
    #[must_use]
    pub fn carries(
        &self,
        tenant: TenantId,
        (server, addr): (AttachmentId, Option<Addr>),
        service: Service,
    ) -> bool {
        let serves = |clean: &Clean| match addr {
            Some(addr) => clean.cidr.iter().any(|c| c.contains(addr.to_ip())),
            None => clean.attachments.contains(&server),
        };
        let mut clean = self.clean.iter().filter(|c| c.tenant == tenant);
        !clean.any(|c| serves(c) && c.service.iter().any(|spec| spec.covers(service)))
    }

    fn between(
        &self,
        snapshot: &Snapshot,
        (src, dst): (&Owner, &Owner),
        to: Addr,
        service: Service,
    ) -> bool {
        let tenant = dst.party.tenant;
        let receiver = (dst.attachment, dst.outside.then_some(to));
        // What a router brings is for somebody else.
        let router = snapshot.is_router(src).then_some((src.attachment, None));
        self.carries(tenant, receiver, service)
            && router.is_none_or(|router| self.carries(tenant, router, service))
    }
}

/// What a pass between two is known by: an address that nobody has (RFC 4291 section 2.5.3) at both ends, as no question's
/// topic has it.
#[must_use]
pub fn pair(tenant: u16, a: AttachmentId, b: AttachmentId) -> FlowKey {
    const NOBODY: Addr = Addr([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    let end = |attachment: AttachmentId| Endpoint {
        addr: NOBODY,
        port: 0,
        attachment: attachment.0,
    };
    FlowKey::new(tenant, 0, &end(a), &end(b)).0
}

/// What becomes of a connection at the walls.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Passage {
    /// It may go on, under this generation.
    Open(u64),
    Closed,
    /// Nobody has said so far.
    Unknown,
}

/// A connection, in its original direction.
#[derive(Clone, Copy, Debug)]
struct Asked {
    service: Service,
    from: (Addr, u16),
    to: (Addr, u16),
}

/// Whether a frame has payload. Of what is no TCP, every frame has.
fn has_payload(p: &Parsed) -> bool {
    p.protocol != proto::TCP || p.payload_len > 0 || p.fragment != Fragment::No
}

/// What walls make of a judgement that allows: the generation that a connection stands under which it admits. `conn` is the
/// connection that the packet would open, if it would. `None`: it must wait, and `hold::keep` knows for what.
///
/// # Errors
/// A wall stands between the two; it was reported.
#[inline(always)]
pub(crate) fn settle(
    ctx: &mut Ctx<'_>,
    classifier: &Classifier,
    judgement: &Judgement,
    p: &Parsed,
    ends: (&Owner, &Owner),
    conn: Option<&FlowKey>,
) -> Result<Option<u64>, DropReason> {
    if ctx.snapshot.walls().is_none() || judgement.verdict != Verdict::Allow {
        return Ok(Some(ctx.generation));
    }
    settle_allowed(ctx, classifier, judgement, p, ends, conn)
}

#[cold]
fn settle_allowed(
    ctx: &mut Ctx<'_>,
    classifier: &Classifier,
    judgement: &Judgement,
    p: &Parsed,
    ends: (&Owner, &Owner),
    conn: Option<&FlowKey>,
) -> Result<Option<u64>, DropReason> {
    let asked = Asked {
        service: service(p),
        from: (p.src, p.sport),
        to: (p.dst, p.dport),
    };
    let about = match conn {
        Some(conn) => (conn, Purpose::Open),
        None => (&FlowKey::default(), Purpose::Look),
    };
    match passage(ctx, classifier, judgement, p, ends, asked, about)? {
        Passage::Open(generation) => Ok(Some(generation)),
        Passage::Unknown if conn.is_some() => Ok(None),
        // What makes no connection can't wait.
        Passage::Closed | Passage::Unknown => Err(closed(ctx, judgement, p, ends)),
    }
}

/// The same for a connection that there is, from and to these.
pub(crate) fn settle_again(
    ctx: &mut Ctx<'_>,
    classifier: &Classifier,
    judgement: &Judgement,
    p: &Parsed,
    (key, initiator): (&FlowKey, Side),
    ends: (&Owner, &Owner),
) -> Result<Passage, DropReason> {
    if ctx.snapshot.walls().is_none() || judgement.verdict != Verdict::Allow {
        return Ok(Passage::Open(ctx.generation));
    }
    let (from, to) = conn::ends(key, initiator);
    let asked = Asked {
        service: conn::service(key, initiator),
        from: (from.addr, from.port),
        to: (to.addr, to.port),
    };
    let about = (key, Purpose::GoOn);
    passage(ctx, classifier, judgement, p, ends, asked, about)
}

#[cold]
fn passage(
    ctx: &mut Ctx<'_>,
    classifier: &Classifier,
    judgement: &Judgement,
    p: &Parsed,
    (src, dst): (&Owner, &Owner),
    asked: Asked,
    (conn, purpose): (&FlowKey, Purpose),
) -> Result<Passage, DropReason> {
    let now = Passage::Open(ctx.generation);
    let (Some(walls), Why::Rule(rule)) = (ctx.snapshot.walls(), judgement.why) else {
        return Ok(now);
    };
    // The built-in rules are about the network itself.
    if classifier.rule_written(rule).is_none()
        || !walls.between(ctx.snapshot, (src, dst), asked.to.0, asked.service)
    {
        return Ok(now);
    }
    let pair = pair(src.party.tenant.0, src.attachment, dst.attachment);
    let (access, about) = (&ctx.hold.verdicts, (&pair, conn));
    match verdicts::find_pass(access, about, walls.definition, purpose) {
        Some(Pass::Yes) => Ok(now),
        Some(Pass::No) => Ok(Passage::Closed),
        Some(Pass::Probation) if !has_payload(p) => Ok(Passage::Open(0)),
        Some(Pass::Probation) => {
            let question = Question::wall(judgement, rule, 0);
            let told = AskEvent {
                about: About::Payload,
                src: asked.from.0,
                sport: asked.from.1,
                dst: asked.to.0,
                dport: asked.to.1,
                ..event(ctx, (src, dst), p, &question)
            };
            // What the control thread does not hear of must not happen.
            if ctx.hold.tell(told) {
                Ok(now)
            } else {
                Err(DropReason::AskOverBudget)
            }
        }
        None => {
            ctx.hold
                .asks_for(Question::wall(judgement, rule, walls.definition));
            Ok(Passage::Unknown)
        }
    }
}

/// Reports that a wall stands between the two.
#[cold]
pub(crate) fn closed(
    ctx: &mut Ctx<'_>,
    judgement: &Judgement,
    p: &Parsed,
    (src, dst): (&Owner, &Owner),
) -> DropReason {
    let rule = match judgement.why {
        Why::Rule(rule) => Some(rule),
        Why::DefaultDeny => None,
    };
    let reason = DropReason::Wall;
    report::decision(ctx, ConnEventKind::Deny, Some(reason), rule, p, src, dst);
    reason
}
