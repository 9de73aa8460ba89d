//! All that a ledger has of one question or connection, as one document that can be checked without it.
//!
//! A case holds records as they are stored, in *runs*: each begins with the hash that its first record follows, so every hash in
//! it can be computed anew. With an anchor, a run goes on to the first head of the anchor after the records it is there for, and
//! holds that line: whoever has the anchor can see that they stood in the ledger when the head was told.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tokio_rustls::rustls::SignatureScheme;
use tokio_rustls::rustls::crypto::ring::{default_provider, sign};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{PrivatePkcs8KeyDer, SubjectPublicKeyInfoDer};

use super::anchor;
use super::body::Body;
use super::error::LedgerError;
use super::reader::Reader;
use super::record::{Hash, Head, Record, Row, hex, unhex};
use super::schema::{self, COLUMNS};

/// What a case says that it is.
const FORMAT: &str = "vswitch-case-1";
/// Records between one that is wanted and the anchored head after it, at most: some seconds' worth.
const LONGEST_RUN: u64 = 100_000;
/// Longest case that is read, bytes.
const LONGEST: u64 = 1 << 30;
/// What an Ed25519 key begins with as SubjectPublicKeyInfo (RFC 8410 section 4); the key's 32 bytes follow.
const ED25519: [u8; 12] = [
    0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00,
];

/// Why there is no case, or it cannot be checked.
#[derive(Debug, thiserror::Error)]
pub enum CaseError {
    /// The ledger, or the anchor.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// Nothing is recorded of that.
    #[error("{0}; `vswitch ledger show --kind ask` shows questions and their connections")]
    Nothing(String),
    /// A file that cannot be used.
    #[error("{}: {what}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why not.
        what: String,
    },
}

/// A record as it is stored: its body is the text that was hashed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stored {
    seq: i64,
    kind: String,
    wall_ns: i64,
    mono_ns: i64,
    boot: String,
    generation: i64,
    who: String,
    workload: Option<String>,
    port: Option<String>,
    body: String,
    hash: String,
}

/// Records that follow each other.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Run {
    /// The hash that the first one follows.
    pub before: String,
    /// In order.
    pub records: Vec<Stored>,
    /// The anchor's line of the last one, if it has one.
    pub head: Option<String>,
}

/// Who vouches for a case.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Signature {
    /// An Ed25519 key, hexadecimal.
    pub key: String,
    /// Of the case as compact JSON with `signature` null, hexadecimal.
    pub value: String,
}

/// See the module documentation.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// `vswitch-case-1`.
    pub format: String,
    /// The ledger's id.
    pub ledger: String,
    /// What was asked for.
    pub about: String,
    /// Numbers of the records about it: the question, the answer, walls; and the policy, the ports and the start of the switch
    /// that were in force.
    pub records: Vec<i64>,
    /// Where they stand.
    pub runs: Vec<Run>,
    /// Who vouches for it.
    pub signature: Option<Signature>,
}

/// What was found of a case.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Verdict {
    /// Nothing is wrong.
    pub intact: bool,
    /// The ledger's id.
    pub ledger: String,
    /// What it is about.
    pub about: String,
    /// What is wrong.
    pub problems: Vec<String>,
    /// The records about it.
    pub records: Vec<Record>,
    /// So many of them are covered by a head that the given anchor has.
    pub anchored: Option<usize>,
    /// The key that signed it, if that holds, and whether it is the one that was given.
    pub signed: Option<(String, Option<bool>)>,
}

/// What is looked for, and what was found to belong to it.
struct Search<'s> {
    about: &'s str,
    asks: BTreeSet<String>,
    connections: BTreeSet<String>,
    /// Who is bound to which side.
    sides: BTreeSet<[String; 3]>,
    found: BTreeSet<u64>,
    started: Option<u64>,
    policy: Option<u64>,
    /// By port, and by workload, the record that says how it was attached.
    ports: BTreeMap<String, u64>,
}

impl Search<'_> {
    fn see(&mut self, record: &Record) {
        let seq = record.seq;
        let is = |connection: &String, search: &Self| {
            connection == search.about || search.connections.contains(connection)
        };
        let mut ends = Vec::new();
        // Told by itself, or with its answer.
        let question = match &record.body {
            Body::Ask(ask) => Some((&ask.ask, &ask.connection, [&ask.from, &ask.to])),
            Body::Verdict(verdict) => {
                let question = verdict.question.as_ref();
                question.map(|q| (&verdict.ask, &q.connection, [&q.from, &q.to]))
            }
            _ => None,
        };
        if let Some((ask, connection, parties)) = question
            && (ask.starts_with(self.about) || is(connection, self))
        {
            self.asks.insert(ask.clone());
            self.connections.insert(connection.clone());
            ends.extend(parties.map(Clone::clone));
            self.found.insert(seq);
        }
        match &record.body {
            Body::Started(_) => self.started = Some(seq),
            Body::PolicyApplied(_) => self.policy = Some(seq),
            Body::PortAdded(added) => {
                let names = added.workloads.iter().chain(&record.port);
                self.ports.extend(names.map(|name| (name.clone(), seq)));
            }
            Body::Verdict(verdict) if self.asks.contains(&verdict.ask) => {
                self.found.insert(seq);
            }
            Body::Admitted(admitted) if is(&admitted.connection, self) => {
                ends.extend([admitted.from.clone(), admitted.to.clone()]);
                self.found.insert(seq);
            }
            Body::Decoy(decoy) if is(&decoy.connection, self) => {
                ends.extend([decoy.from.clone(), decoy.to.clone()]);
                self.found.insert(seq);
            }
            Body::WallReserved(wall) if is(&wall.connection, self) => {
                let side = [&wall.wall, &wall.subject, &wall.side].map(Clone::clone);
                self.sides.insert(side);
                self.found.insert(seq);
            }
            Body::WallDenied(wall) if is(&wall.connection, self) => {
                self.found.insert(seq);
            }
            Body::WallCommitted(wall) => self.side(seq, [&wall.wall, &wall.subject, &wall.side]),
            Body::WallReleased(wall) => self.side(seq, [&wall.wall, &wall.subject, &wall.side]),
            _ => {}
        }
        if self.found.contains(&seq) {
            let attached = ends.iter().chain(&record.port);
            let attached = attached.filter_map(|name| self.ports.get(name));
            self.found.extend(attached.copied());
            self.found
                .extend(self.started.into_iter().chain(self.policy));
        }
    }

    fn side(&mut self, seq: u64, side: [&String; 3]) {
        if self.sides.contains(&side.map(Clone::clone)) {
            self.found.insert(seq);
        }
    }
}

fn file(path: &Path, what: impl ToString) -> CaseError {
    CaseError::File {
        path: path.to_owned(),
        what: what.to_string(),
    }
}

/// All that a ledger has of a question, by its id or the beginning of it, or of a connection, as it is recorded.
///
/// # Errors
/// Nothing is recorded of it, or of several questions; a file that cannot be read.
pub fn case(path: &Path, about: &str, anchored: Option<&Path>) -> Result<Case, CaseError> {
    let reader = Reader::open(path)?;
    let mut search = Search {
        about,
        asks: BTreeSet::new(),
        connections: BTreeSet::new(),
        sides: BTreeSet::new(),
        found: BTreeSet::new(),
        started: None,
        policy: None,
        ports: BTreeMap::new(),
    };
    if !about.is_empty() {
        reader.each(|record| -> Result<(), CaseError> {
            search.see(&record);
            Ok(())
        })?;
    }
    if search.found.is_empty() {
        let what = format!("{} has no question or connection {about}", path.display());
        return Err(CaseError::Nothing(what));
    }
    if search.asks.len() > 1 && !about.contains(' ') {
        let what = format!("several questions begin with {about}");
        return Err(CaseError::Nothing(what));
    }
    let heads = anchored.map(anchor::read).transpose()?;
    let heads = heads.into_iter().flat_map(|heads| heads.heads);
    let heads: BTreeMap<u64, Head> = heads
        .filter(|head| head.ledger == reader.ledger())
        .map(|head| (head.seq, head))
        .collect();
    let mut runs: Vec<Run> = Vec::new();
    let mut end = None;
    for seq in &search.found {
        if end.is_some_and(|end| *seq <= end) {
            continue;
        }
        let head = heads.range(seq..).next();
        let head = head.filter(|(at, _)| **at - seq <= LONGEST_RUN);
        let last = head.map_or(*seq, |(at, _)| *at);
        runs.push(run(
            &reader,
            (*seq, last),
            head.map(|(_, head)| anchor::line(head)),
        )?);
        end = Some(last);
    }
    Ok(Case {
        format: FORMAT.to_owned(),
        ledger: reader.ledger().to_string(),
        about: about.to_owned(),
        records: search.found.iter().map(|seq| signed(*seq)).collect(),
        runs,
        signature: None,
    })
}

fn signed(seq: u64) -> i64 {
    i64::try_from(seq).unwrap_or(i64::MAX)
}

fn run(reader: &Reader, (first, last): (u64, u64), head: Option<String>) -> Result<Run, CaseError> {
    let sqlite = LedgerError::sqlite("read it", reader.path());
    let (first, last) = (signed(first), signed(last));
    let meta = reader.meta();
    let before = if first - 1 == meta.base_seq {
        meta.base_hash
    } else {
        let sql = "SELECT hash FROM record WHERE seq = ?1";
        let hash = reader
            .db()
            .query_row(sql, [first - 1], |r| r.get::<_, Vec<u8>>(0));
        Hash::of(&hash.map_err(sqlite)?).unwrap_or_default()
    };
    let sql = format!("SELECT {COLUMNS} FROM record WHERE seq BETWEEN ?1 AND ?2 ORDER BY seq");
    let mut select = reader.db().prepare(&sql).map_err(sqlite)?;
    let mut rows = select.query([first, last]).map_err(sqlite)?;
    let mut records = Vec::new();
    while let Some(row) = rows.next().map_err(sqlite)? {
        let row = schema::row(row).map_err(|(_, what)| file(reader.path(), what))?;
        records.push(Stored {
            seq: row.seq,
            kind: row.kind.to_owned(),
            wall_ns: row.wall_ns,
            mono_ns: row.mono_ns,
            boot: hex(row.boot),
            generation: row.generation,
            who: row.who.to_owned(),
            workload: row.workload.map(str::to_owned),
            port: row.port.map(str::to_owned),
            body: row.body.to_owned(),
            hash: hex(row.hash),
        });
    }
    // The ledger may end before a head that another past had.
    let is_whole = records.last().is_some_and(|r| r.seq == last);
    Ok(Run {
        before: before.to_string(),
        records,
        head: head.filter(|_| is_whole),
    })
}

impl Case {
    /// What is signed.
    fn bytes(&self) -> Vec<u8> {
        let unsigned = Case {
            signature: None,
            ..self.clone()
        };
        // Plain values with string keys: serialising them cannot fail.
        serde_json::to_vec(&unsigned).unwrap_or_default()
    }

    /// Vouches for it with an Ed25519 key, PKCS #8 in PEM.
    ///
    /// # Errors
    /// The file holds no such key.
    pub fn sign(&mut self, key: &Path) -> Result<(), CaseError> {
        let wrong = |what: String| {
            file(
                key,
                format!("it holds no Ed25519 key (PKCS #8, PEM): {what}"),
            )
        };
        let der = PrivatePkcs8KeyDer::from_pem_file(key).map_err(|e| wrong(e.to_string()))?;
        let signer = sign::any_eddsa_type(&der).map_err(|e| wrong(e.to_string()))?;
        let public = signer.public_key().and_then(|spki| raw(&spki));
        let signer = signer.choose_scheme(&[SignatureScheme::ED25519]);
        let (Some(public), Some(signer)) = (public, signer) else {
            return Err(wrong("it is of another sort".to_owned()));
        };
        let value = signer
            .sign(&self.bytes())
            .map_err(|e| wrong(e.to_string()))?;
        self.signature = Some(Signature {
            key: hex(&public),
            value: hex(&value),
        });
        Ok(())
    }

    /// Reads one.
    ///
    /// # Errors
    /// It is none.
    pub fn read(path: &Path) -> Result<Self, CaseError> {
        let wrong = |what: String| file(path, format!("it is no case: {what}"));
        let len = std::fs::metadata(path).map_err(|e| file(path, e))?.len();
        if len > LONGEST {
            return Err(wrong("it is too long".to_owned()));
        }
        let text = std::fs::read_to_string(path).map_err(|e| file(path, e))?;
        let case: Case = serde_json::from_str(&text).map_err(|e| wrong(e.to_string()))?;
        match case.format.as_str() {
            FORMAT => Ok(case),
            other => Err(wrong(format!("its format is {other:?}"))),
        }
    }

    /// Checks it: every hash, its heads against an anchor, its signature against a key.
    ///
    /// # Errors
    /// The anchor or the key cannot be read. Everything else is in the verdict.
    pub fn verify(
        &self,
        anchored: Option<&Path>,
        key: Option<&Path>,
    ) -> Result<Verdict, CaseError> {
        let mut verdict = Verdict {
            ledger: self.ledger.clone(),
            about: self.about.clone(),
            ..Verdict::default()
        };
        if self.format != FORMAT {
            verdict
                .problems
                .push(format!("its format is {:?}", self.format));
        }
        let known = anchored
            .map(anchor::read)
            .transpose()?
            .map(|heads| heads.heads);
        let mut anchored = BTreeSet::new();
        let mut records = BTreeMap::new();
        for run in &self.runs {
            let head = match self.run(run, &mut records) {
                Ok(head) => head,
                Err(what) => {
                    verdict.problems.push(what);
                    continue;
                }
            };
            let Some(head) = head else { continue };
            match &known {
                Some(known) if known.contains(&head) => {
                    anchored.extend(run.records.iter().map(|r| r.seq));
                }
                Some(_) => verdict.problems.push(format!(
                    "the anchor has no such head of record {}",
                    head.seq
                )),
                None => {}
            }
        }
        for seq in &self.records {
            match records.remove(seq) {
                Some(record) => verdict.records.push(record),
                None if verdict.problems.is_empty() => {
                    verdict.problems.push(format!("record {seq} is not in it"));
                }
                None => {}
            }
        }
        if known.is_some() {
            let covered = self.records.iter().filter(|seq| anchored.contains(seq));
            verdict.anchored = Some(covered.count());
        }
        match self.signed_by() {
            Ok(Some(by)) => {
                let given = key.map(|path| {
                    let spki = SubjectPublicKeyInfoDer::from_pem_file(path);
                    let spki =
                        spki.map_err(|e| file(path, format!("it holds no public key (PEM): {e}")))?;
                    Ok::<_, CaseError>(raw(&spki).is_some_and(|raw| hex(&raw) == by))
                });
                let given = given.transpose()?;
                if given == Some(false) {
                    verdict
                        .problems
                        .push(format!("it is signed by another key, {by}"));
                }
                verdict.signed = Some((by, given));
            }
            Ok(None) if key.is_some() => verdict.problems.push("it is not signed".to_owned()),
            Ok(None) => {}
            Err(what) => verdict.problems.push(what),
        }
        verdict.intact = verdict.problems.is_empty();
        Ok(verdict)
    }

    /// The key that signed it, if one did.
    fn signed_by(&self) -> Result<Option<String>, String> {
        let Some(signature) = &self.signature else {
            return Ok(None);
        };
        let key = unhex::<32>(&signature.key).ok_or("its key is none")?;
        let value = unhex::<64>(&signature.value).ok_or("its signature is none")?;
        let algorithms = default_provider().signature_verification_algorithms;
        let mut all = algorithms.mapping.iter();
        let found = all.find(|(scheme, _)| *scheme == SignatureScheme::ED25519);
        let algorithm = found.and_then(|(_, all)| all.first());
        let algorithm = algorithm.ok_or("Ed25519 is not known here")?;
        let holds = algorithm.verify_signature(&key, &self.bytes(), &value);
        holds.map_err(|_e| "it was changed after it was signed".to_owned())?;
        Ok(Some(signature.key.clone()))
    }

    /// One run: its records, and its head if it has one.
    fn run(&self, run: &Run, records: &mut BTreeMap<i64, Record>) -> Result<Option<Head>, String> {
        let mut before: Hash = run.before.parse()?;
        let mut last = None;
        for stored in &run.records {
            let seq = stored.seq;
            let wrong = |what: &str| format!("record {seq}: {what}");
            if last.is_some_and(|last: i64| last.checked_add(1) != Some(seq)) {
                return Err(wrong("it does not follow the one before"));
            }
            let boot: [u8; 16] = unhex(&stored.boot).ok_or_else(|| wrong("its boot is none"))?;
            let hash: Hash = stored
                .hash
                .parse()
                .map_err(|_e| wrong("its hash is none"))?;
            let row = Row {
                seq,
                kind: &stored.kind,
                wall_ns: stored.wall_ns,
                mono_ns: stored.mono_ns,
                boot: &boot,
                generation: stored.generation,
                who: &stored.who,
                workload: stored.workload.as_deref(),
                port: stored.port.as_deref(),
                body: &stored.body,
                hash: &hash.0,
            };
            if row.chained(&before) != hash {
                return Err(wrong("it is not what was written: its hash differs"));
            }
            let record = row.record().map_err(|what| wrong(&what))?;
            records.insert(seq, record);
            (before, last) = (hash, Some(seq));
        }
        let Some(line) = &run.head else {
            return Ok(None);
        };
        let head = anchor::parse(line)?;
        let is_ours = head.ledger.to_string() == self.ledger;
        if !is_ours || Some(signed(head.seq)) != last || head.hash != before {
            return Err(format!(
                "the head of record {} is not that of its run",
                head.seq
            ));
        }
        Ok(Some(head))
    }
}

/// The key itself.
fn raw(spki: &SubjectPublicKeyInfoDer<'_>) -> Option<[u8; 32]> {
    spki.strip_prefix(&ED25519)?.try_into().ok()
}
