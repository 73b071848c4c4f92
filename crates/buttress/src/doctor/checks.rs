//! Judges what was observed. Nothing here asks, waits or reads a clock.

use std::collections::{BTreeMap, BTreeSet};

use buttress_core::{Code, Error, NodeId};
use buttress_node::quorum::{MemberStep, Members, Verdict, preview};

use super::{Finding, Level, Observation, Observed};
use crate::{cli::show::bytes, vitals::Vitals};

/// Clocks that differ by more make timestamps disagree visibly …
const SKEW_WARNING_MS: f64 = 500.0;
/// … and by more than this, timers and retention are off after a start, and by and by.
const SKEW_CRITICAL_MS: f64 = 5_000.0;
/// etcd's advice for its own log is 10 ms; a commit waits for the slower of the two quickest disks.
const SYNC_INFO_US: u64 = 16_384;
/// An election starts after 500 ms without a heartbeat.
const SYNC_WARNING_US: u64 = 131_072;
/// A quantile of fewer says nothing.
const SYNCS_MIN: u64 = 100;
/// The leader's disk is slower than another voter's by so much.
const SYNC_RATIO: u64 = 4;
/// At 10,000 entries a second, a second behind.
const LAG_WARNING: u64 = 10_000;
const LEADER_CHANGES_WITHIN_MS: u64 = 600_000;
const LEADER_CHANGES_MAX: usize = 3;
/// A learner that has all and is none for so long was forgotten.
const LEARNER_MS: u64 = 600_000;
const DISK_WARNING: (f64, u64) = (0.10, 1 << 30);
const DISK_CRITICAL: (f64, u64) = (0.03, 256 << 20);
const MEMORY_WARNING: f64 = 0.10;
const FILES_WARNING: f64 = 0.80;
/// Sockets of 4,096 HTTP and 1,024 Kafka connections and the store's files.
const FILES_LIMIT_MIN: u64 = 8_192;
/// What a node keeps for followers that lag before it makes them take a snapshot is eight times 32 MiB.
const LOG_BYTES_WARNING: u64 = 192 << 20;
/// Three quarters of what lets a leader refuse proposals.
const PENDING_BYTES_WARNING: u64 = 72 << 20;
const CHECKPOINT_LAG_WARNING: u64 = 1_000_000;
const READS_MIN: u64 = 1_000;

/// A step to look ahead at: `remove=node-2`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wish {
    verb: Verb,
    member: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verb {
    Add,
    Promote,
    Demote,
    Remove,
}

impl Wish {
    /// # Errors
    /// `CONFIG`.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let wrong = || {
            Error::new(Code::CONFIG, format!("\"{text}\" is no step"))
                .hint("remove=NAME, promote=NAME, demote=NAME or add=NAME, several with commas")
        };
        let (verb, member) = text.split_once('=').filter(|(_, member)| !member.is_empty()).ok_or_else(wrong)?;
        let verb = match verb {
            "add" => Verb::Add,
            "promote" => Verb::Promote,
            "demote" => Verb::Demote,
            "remove" => Verb::Remove,
            _ => return Err(wrong()),
        };
        Ok(Self { verb, member: member.to_owned() })
    }
}

impl std::fmt::Display for Wish {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let verb = match self.verb {
            Verb::Add => "adding",
            Verb::Promote => "promoting",
            Verb::Demote => "demoting",
            Verb::Remove => "removing",
        };
        write!(f, "{verb} {}", self.member)
    }
}

pub type Findings = Vec<Finding>;

/// What is looked at by the checks, in a handy form.
struct Patient<'a> {
    observed: &'a Observed,
    seen: Vec<(&'a Observation, &'a Vitals)>,
    /// As the member with the highest term and commit tells them.
    members: Members,
    leader: Option<u64>,
    findings: Findings,
}

/// Judges a cluster. `what_if` is one change of members, in one or several steps.
///
/// # Errors
/// `CONFIG` for a step that names nobody.
pub fn examine(observed: &Observed, what_if: &[Wish]) -> Result<Findings, Error> {
    // Whoever else answers at a member's address says nothing about the cluster.
    let answers = observed.members.iter().filter_map(|m| Some((m, m.vitals.as_ref()?)));
    let seen: Vec<_> = answers.filter(|(m, v)| is_itself(observed, m, v)).collect();
    let authority = seen.iter().map(|(_, v)| *v).max_by_key(|v| (v.term, v.leader == Some(v.node), v.committed));
    let ids = |ids: &[u64]| ids.iter().copied().map(NodeId).collect::<Vec<_>>();
    let members = authority.map_or_else(Members::default, |v| Members {
        voters: ids(&v.voters),
        learners: ids(&v.learners),
        voters_outgoing: ids(&v.voters_outgoing),
        ..Members::default()
    });
    let leader = authority.and_then(|v| v.leader);
    let mut patient = Patient { observed, seen, members, leader, findings: Vec::new() };
    patient.reachable();
    patient.one_leader();
    patient.voters();
    patient.failure_domain();
    patient.clocks();
    patient.disks();
    patient.lag();
    patient.leader_changes();
    patient.learners();
    patient.space();
    patient.memory();
    patient.files();
    patient.backlog();
    patient.versions();
    patient.same_state();
    patient.reads();
    patient.configuration();
    patient.what_if(what_if)?;
    Ok(patient.findings)
}

fn is_itself(observed: &Observed, member: &Observation, vitals: &Vitals) -> bool {
    vitals.node == member.id && vitals.cluster_id == observed.cluster_id
}

fn list<T: AsRef<str>>(items: &[T]) -> String {
    items.iter().map(AsRef::as_ref).collect::<Vec<_>>().join(", ")
}

fn ms(us: u64) -> String {
    if us < 10_000 { format!("{:.1} ms", us as f64 / 1000.0) } else { format!("{} ms", us / 1000) }
}

impl Patient<'_> {
    fn note(
        &mut self,
        id: &'static str,
        check: &'static str,
        level: Level,
        evidence: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.findings.push(Finding { id, check, level, evidence: evidence.into(), remedy: remedy.into() });
    }

    fn name(&self, id: u64) -> String {
        let known = self.observed.members.iter().find(|m| m.id == id);
        known.map_or_else(|| format!("node {id}"), |m| m.name.clone())
    }

    fn alive(&self) -> BTreeSet<NodeId> {
        self.seen.iter().map(|(m, _)| NodeId(m.id)).collect()
    }

    fn voters_seen(&self) -> usize {
        self.alive().iter().filter(|id| self.members.voters.contains(id)).count()
    }

    fn reachable(&mut self) {
        let (id, check) = ("DOC-01", "every member answers");
        let silent: Vec<&Observation> = self.observed.members.iter().filter(|m| m.vitals.is_none()).collect();
        let foreign: Vec<String> = self
            .observed
            .members
            .iter()
            .filter_map(|m| Some((m, m.vitals.as_ref()?)))
            .filter(|(m, v)| !is_itself(self.observed, m, v))
            .map(|(m, v)| format!("at {} answers node {} of cluster \"{}\"", m.http, v.node, v.cluster_id))
            .collect();
        if !foreign.is_empty() {
            let remedy = "correct the addresses in the members' list, or stop whoever listens there";
            self.note(id, check, Level::Critical, list(&foreign), remedy);
        }
        if silent.is_empty() {
            if foreign.is_empty() {
                let evidence = format!("{} of {}", self.seen.len(), self.observed.members.len());
                self.note(id, check, Level::Ok, evidence, "");
            }
            return;
        }
        let (voters, there) = (self.members.voters.len(), self.voters_seen());
        let lost = there < voters / 2 + 1;
        let who: Vec<String> =
            silent.iter().map(|m| format!("{} ({})", m.name, m.error.as_deref().unwrap_or("no answer"))).collect();
        let evidence = format!("{}; {there} of {voters} voters answer, {} are needed", list(&who), voters / 2 + 1);
        let remedy = "start it, or look at its log; a member whose disk is gone is replaced under a new id";
        self.note(id, check, if lost { Level::Critical } else { Level::Warning }, evidence, remedy);
    }

    fn one_leader(&mut self) {
        let (id, check) = ("DOC-02", "all know one leader");
        let told: BTreeMap<Option<u64>, Vec<String>> = self.seen.iter().fold(BTreeMap::new(), |mut told, (m, v)| {
            told.entry(v.leader).or_insert_with(Vec::new).push(m.name.clone());
            told
        });
        let level = match (self.leader, told.len()) {
            (None, _) => Level::Critical,
            (Some(_), 1) => Level::Ok,
            _ => Level::Warning,
        };
        let leader = |id: &Option<u64>| id.map_or_else(|| "no leader".to_owned(), |id| self.name(id));
        let evidence: Vec<String> = told.iter().map(|(id, who)| format!("{}: {}", leader(id), list(who))).collect();
        let remedy = match level {
            Level::Ok => "",
            _ => {
                "an election may be under way: look again; otherwise see that all voters reach each other's peer address"
            }
        };
        self.note(id, check, level, evidence.join("; "), remedy);
    }

    fn voters(&mut self) {
        let (id, check) = ("DOC-03", "the number of voters");
        let count = self.members.voters.len();
        let spare = count.saturating_sub(count / 2 + 1);
        let (level, remedy) = match count {
            0 => (Level::Warning, "no member told who votes"),
            1 => (
                Level::Warning,
                "with one voter the loss of one disk loses everything since the last backup; have three",
            ),
            n if n % 2 == 0 => {
                (Level::Warning, "an even number survives no more failures than one less; add one or remove one")
            }
            n if n > 7 => (
                Level::Info,
                "every commit waits for more of them; five survive two failures, the rest can be learners",
            ),
            _ => (Level::Ok, ""),
        };
        let s = if count == 1 { "" } else { "s" };
        self.note(id, check, level, format!("{count} voter{s}: {spare} may fail"), remedy);
        if self.members.is_joint() {
            let remedy =
                "a majority of the old and of the new voters is needed until it ends; if it stays, a voter is down";
            self.note(id, check, Level::Info, "a change of members is under way", remedy);
        }
    }

    fn failure_domain(&mut self) {
        let (id, check) = ("DOC-04", "voters fail one by one");
        let voters: Vec<&Observation> =
            self.observed.members.iter().filter(|m| self.members.voters.contains(&NodeId(m.id))).collect();
        let mut hosts: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for voter in &voters {
            // The address without its port.
            let host = voter.http.rsplit_once(':').map_or(voter.http.as_str(), |(host, _)| host);
            hosts.entry(host).or_default().push(&voter.name);
        }
        let needed = voters.len() / 2 + 1;
        let Some((host, there)) = hosts.iter().max_by_key(|(_, there)| there.len()) else { return };
        // So many may be lost at once, and no more.
        let level = if there.len() <= (voters.len() - needed).max(1) {
            Level::Ok
        } else if ["127.", "[::1]", "localhost"].iter().any(|local| host.starts_with(local)) {
            Level::Info
        } else {
            Level::Warning
        };
        let evidence = format!("{} of {} voters are at {host}: {}", there.len(), voters.len(), list(there));
        let remedy = match level {
            Level::Ok => "",
            Level::Info => {
                "a cluster on one machine is for trying things out: its disk, its kernel and its power fail at once"
            }
            _ => "move voters to hosts that do not share power, disk or kernel, so that one failure leaves a quorum",
        };
        self.note(id, check, level, evidence, remedy);
    }

    fn clocks(&mut self) {
        let (id, check) = ("DOC-05", "clocks agree");
        let clocks: Vec<(&str, f64, f64)> = self
            .observed
            .members
            .iter()
            .filter_map(|m| m.clock.map(|(offset, uncertainty)| (m.name.as_str(), offset, uncertainty)))
            .collect();
        let by_offset = |a: &&(&str, f64, f64), b: &&(&str, f64, f64)| a.1.total_cmp(&b.1);
        let (Some(slow), Some(fast)) = (clocks.iter().min_by(by_offset), clocks.iter().max_by(by_offset)) else {
            return;
        };
        let (skew, unsure) = (fast.1 - slow.1, fast.2 + slow.2);
        // Only what is certain counts.
        let level = match skew - unsure {
            sure if sure > SKEW_CRITICAL_MS => Level::Critical,
            sure if sure > SKEW_WARNING_MS => Level::Warning,
            _ => Level::Ok,
        };
        let evidence = if clocks.len() < 2 {
            "one clock".to_owned()
        } else {
            format!("{} is {skew:.0} ms ahead of {}, give or take {unsure:.0} ms", fast.0, slow.0)
        };
        let remedy = match level {
            Level::Ok => "",
            _ => "run chrony or another NTP client on every node; the cluster's time follows the leader's clock",
        };
        self.note(id, check, level, evidence, remedy);
    }

    fn disks(&mut self) {
        let (id, check) = ("DOC-06", "disks sync quickly");
        let told: Vec<(u64, String, u64)> = self
            .seen
            .iter()
            .filter(|(_, v)| v.wal.syncs >= SYNCS_MIN)
            .map(|(m, v)| (m.id, m.name.clone(), v.wal.sync_p99_us))
            .collect();
        let Some(slowest) = told.iter().max_by_key(|(_, _, us)| *us) else {
            self.note(id, check, Level::Ok, format!("fewer than {SYNCS_MIN} syncs per node since the start"), "");
            return;
        };
        let all: Vec<String> = told.iter().map(|(_, name, us)| format!("{name} {}", ms(*us))).collect();
        let evidence = format!("p99 of an fsync since the start is at most: {}", list(&all));
        let (level, remedy) = match slowest.2 {
            us if us >= SYNC_WARNING_US => {
                (Level::Warning, "give the log a disk of its own, or a better one; see who else writes with iotop")
            }
            us if us >= SYNC_INFO_US => {
                (Level::Info, "every commit waits for a majority's fsync; a local SSD takes below 2 ms")
            }
            _ => (Level::Ok, ""),
        };
        self.note(id, check, level, evidence, remedy);
        let leader = told.iter().find(|(node, ..)| Some(*node) == self.leader).cloned();
        let voters = |node: &u64| self.members.voters.contains(&NodeId(*node));
        let quickest = told.iter().filter(|(node, ..)| voters(node)).min_by_key(|(_, _, us)| *us).cloned();
        if let (Some(leader), Some(quickest)) = (leader, quickest)
            && leader.2 >= SYNC_INFO_US
            && leader.2 >= SYNC_RATIO * quickest.2.max(1)
        {
            let evidence =
                format!("the leader {} takes {}, {} takes {}", leader.1, ms(leader.2), quickest.1, ms(quickest.2));
            let remedy = format!("hand leadership over: buttress cluster transfer {}", quickest.1);
            self.note(id, check, Level::Warning, evidence, remedy);
        }
    }

    fn lag(&mut self) {
        let (id, check) = ("DOC-07", "members keep up");
        let Some(ahead) = self.seen.iter().map(|(_, v)| v.committed).max() else { return };
        let behind: Vec<(String, u64, bool)> = self
            .seen
            .iter()
            .map(|(m, v)| {
                let snapshot = self.seen.iter().any(|(_, v)| v.peers.iter().any(|p| p.id == m.id && p.snapshot));
                (m.name.clone(), ahead.saturating_sub(v.applied), snapshot)
            })
            .collect();
        let late: Vec<String> = behind
            .iter()
            .filter(|(_, lag, _)| *lag > LAG_WARNING)
            .map(|(name, lag, snapshot)| {
                format!("{name} is {lag} entries behind{}", if *snapshot { " and gets a snapshot" } else { "" })
            })
            .collect();
        // They were not asked at one moment, so a small difference is none.
        let most = behind.iter().map(|(_, lag, _)| *lag).max().unwrap_or(0);
        if late.is_empty() {
            self.note(id, check, Level::Ok, format!("at most {most} entries behind index {ahead}"), "");
        } else {
            let remedy =
                "look at its disk, processor and network; until it has caught up it counts for little if another fails";
            self.note(id, check, Level::Warning, list(&late), remedy);
        }
        let inactive: Vec<String> = self
            .seen
            .iter()
            .filter(|(_, v)| v.leader == Some(v.node))
            .flat_map(|(_, v)| &v.peers)
            .filter(|peer| !peer.active && self.seen.iter().any(|(m, _)| m.id == peer.id))
            .map(|peer| self.name(peer.id))
            .collect();
        if !inactive.is_empty() {
            let evidence = format!("the leader does not hear {}, and we do", list(&inactive));
            let remedy = "see that the peer addresses are reachable between the nodes, in both directions";
            self.note(id, check, Level::Warning, evidence, remedy);
        }
    }

    fn leader_changes(&mut self) {
        let (id, check) = ("DOC-08", "leaders stay");
        let since = self.observed.now_ms.saturating_sub(LEADER_CHANGES_WITHIN_MS);
        // The first leader that a node hears of after its start is no change.
        let changes = |v: &Vitals| v.leaders.iter().skip(1).filter(|seen| seen.at_ms >= since).count();
        let Some((member, most)) = self.seen.iter().map(|(m, v)| (*m, changes(v))).max_by_key(|(_, most)| *most) else {
            return;
        };
        let evidence = format!("{most} changes of leader in 10 minutes, as {} saw it", member.name);
        let level = if most > LEADER_CHANGES_MAX { Level::Warning } else { Level::Ok };
        let remedy = match level {
            Level::Ok => "",
            _ => "a slow disk (DOC-06), an overloaded processor or a bad network makes leaders lose their followers",
        };
        self.note(id, check, level, evidence, remedy);
    }

    fn learners(&mut self) {
        let (id, check) = ("DOC-09", "learners become voters");
        if self.members.learners.is_empty() {
            self.note(id, check, Level::Ok, "no learners", "");
            return;
        }
        let learners: Vec<String> = self.members.learners.iter().map(|id| self.name(id.0)).collect();
        let ahead = self.seen.iter().map(|(_, v)| v.committed).max().unwrap_or(0);
        let forgotten: Vec<String> = self
            .seen
            .iter()
            .filter(|(m, v)| {
                let caught_up = ahead.saturating_sub(v.applied) <= LAG_WARNING;
                self.members.learners.contains(&NodeId(m.id)) && caught_up && v.up_ms > LEARNER_MS
            })
            .map(|(m, _)| m.name.clone())
            .collect();
        if forgotten.is_empty() {
            self.note(id, check, Level::Info, format!("learners: {}", list(&learners)), "they count in no quorum");
        } else {
            let evidence = format!("{} kept up for 10 minutes and is still no voter", list(&forgotten));
            let remedy = "buttress cluster promote NAME, unless it is a learner on purpose";
            self.note(id, check, Level::Warning, evidence, remedy);
        }
    }

    /// One finding over all nodes: the worst level, and every node that is not well.
    fn per_node(
        &mut self,
        (id, check): (&'static str, &'static str),
        fine: &str,
        remedy: &str,
        judge: impl Fn(&Vitals) -> (Level, String),
    ) {
        let judged: Vec<(Level, String)> = self
            .seen
            .iter()
            .map(|(m, v)| {
                let (level, what) = judge(v);
                (level, format!("{} {what}", m.name))
            })
            .collect();
        let worst = judged.iter().map(|(level, _)| *level).max().unwrap_or(Level::Ok);
        let shown: Vec<&str> = judged
            .iter()
            .filter(|(level, _)| *level == worst || *level > Level::Ok)
            .map(|(_, what)| what.as_str())
            .collect();
        let evidence = if judged.is_empty() { fine.to_owned() } else { shown.join("; ") };
        self.note(id, check, worst, evidence, if worst == Level::Ok { "" } else { remedy });
    }

    fn space(&mut self) {
        let remedy = "enlarge the disk, or shorten retention; a node whose disk is full stops itself";
        self.per_node(("DOC-10", "disks have room"), "nobody told", remedy, |v| {
            let Some(disk) = v.disk else { return (Level::Ok, "does not tell".into()) };
            let share = disk.free_bytes as f64 / disk.total_bytes.max(1) as f64;
            let below = |(part, least): (f64, u64)| share < part || disk.free_bytes < least;
            let level = match () {
                () if below(DISK_CRITICAL) => Level::Critical,
                () if below(DISK_WARNING) => Level::Warning,
                () => Level::Ok,
            };
            (level, format!("has {} of {} free", bytes(disk.free_bytes), bytes(disk.total_bytes)))
        });
    }

    fn memory(&mut self) {
        let remedy = "give it more, or move other processes away; a node that swaps loses its leadership";
        self.per_node(("DOC-11", "there is memory left"), "nobody told", remedy, |v| {
            let Some(memory) = v.memory else { return (Level::Ok, "does not tell".into()) };
            let share = memory.available_bytes as f64 / memory.total_bytes.max(1) as f64;
            let level = if share < MEMORY_WARNING { Level::Warning } else { Level::Ok };
            let (resident, free) = (bytes(memory.resident_bytes), bytes(memory.available_bytes));
            (level, format!("takes {resident}, {free} of {} are available", bytes(memory.total_bytes)))
        });
    }

    fn files(&mut self) {
        let remedy = "raise it: LimitNOFILE=65536 in the unit, or ulimit -n 65536 before the start";
        self.per_node(("DOC-12", "file descriptors"), "nobody told", remedy, |v| {
            let Some(files) = v.files else { return (Level::Ok, "does not tell".into()) };
            let level = match files.open as f64 / files.limit.max(1) as f64 {
                share if share > FILES_WARNING => Level::Warning,
                _ if files.limit < FILES_LIMIT_MIN => Level::Info,
                _ => Level::Ok,
            };
            (level, format!("has {} of {} open", files.open, files.limit))
        });
    }

    fn backlog(&mut self) {
        let remedy = "the disk does not keep up with what is written (DOC-06), or a follower is far behind (DOC-07)";
        self.per_node(("DOC-13", "no backlog"), "nobody told", remedy, |v| {
            let behind = v.applied.saturating_sub(v.store.checkpoint_index);
            let level = if v.store.log_bytes > LOG_BYTES_WARNING
                || v.store.pending_bytes > PENDING_BYTES_WARNING
                || behind > CHECKPOINT_LAG_WARNING
            {
                Level::Warning
            } else {
                Level::Ok
            };
            let (log, pending) = (bytes(v.store.log_bytes), bytes(v.store.pending_bytes));
            (level, format!("log {log}, not filed {pending}, {behind} entries behind the checkpoint"))
        });
    }

    fn versions(&mut self) {
        let (id, check) = ("DOC-14", "one version runs");
        let told: BTreeMap<&str, Vec<&str>> = self.seen.iter().fold(BTreeMap::new(), |mut told, (m, v)| {
            told.entry(v.version.as_str()).or_insert_with(Vec::new).push(m.name.as_str());
            told
        });
        let evidence: Vec<String> = told.iter().map(|(version, who)| format!("{version}: {}", list(who))).collect();
        let (level, remedy) = match told.len() {
            0 | 1 => (Level::Ok, ""),
            _ => (Level::Warning, "finish the rolling upgrade; two versions are for the time of an upgrade only"),
        };
        self.note(id, check, level, evidence.join("; "), remedy);
    }

    fn same_state(&mut self) {
        let (id, check) = ("DOC-15", "replicas are equal (STATE-1)");
        let mut windows: BTreeMap<(u64, u64), Vec<(String, String)>> = BTreeMap::new();
        for (m, v) in &self.seen {
            for digest in &v.digests {
                windows.entry((digest.from, digest.to)).or_default().push((m.name.clone(), digest.hash.clone()));
            }
        }
        windows.retain(|_, told| told.len() > 1);
        let differs = windows.iter().find(|(_, told)| told.iter().any(|(_, hash)| *hash != told[0].1));
        if let Some(((from, to), told)) = differs {
            let who: Vec<String> = told.iter().map(|(name, hash)| format!("{name} {hash}")).collect();
            let evidence = format!("entries {from} to {to} wrote different things: {}", list(&who));
            let remedy =
                "stop the member that stands alone and replace it under a new id; keep its directory, and report it";
            self.note(id, check, Level::Critical, evidence, remedy);
            return;
        }
        let evidence = match (windows.first_key_value(), windows.last_key_value()) {
            (Some(((from, _), _)), Some(((_, to), _))) => {
                format!(
                    "{} stretches of entries from {from} to {to} are equal wherever two members have them",
                    windows.len()
                )
            }
            _ => "too few entries since the members started to compare any".to_owned(),
        };
        self.note(id, check, Level::Ok, evidence, "");
    }

    fn reads(&mut self) {
        let (id, check) = ("DOC-16", "reads are as strong as needed");
        let (strong, stale) =
            self.seen.iter().fold((0, 0), |(a, b), (_, v)| (a + v.reads.linearizable, b + v.reads.serializable));
        let evidence = format!("{strong} linearizable and {stale} serializable reads of keys since the start");
        let (level, remedy) = if strong >= READS_MIN && strong > 9 * stale {
            (Level::Info, "where an answer that is milliseconds old will do, consistency=serializable asks nobody")
        } else {
            (Level::Ok, "")
        };
        self.note(id, check, level, evidence, remedy);
    }

    fn configuration(&mut self) {
        let (id, check) = ("DOC-17", "the file fits the cluster");
        let Some(configured) = &self.observed.configured else { return };
        let told: BTreeSet<(u64, String)> = self.observed.members.iter().map(|m| (m.id, m.http.clone())).collect();
        let wanted: BTreeSet<(u64, String)> = configured.iter().map(|(id, _, http)| (*id, http.clone())).collect();
        let text =
            |set: Vec<&(u64, String)>| set.iter().map(|(id, http)| format!("{id} at {http}")).collect::<Vec<_>>();
        let missing = text(wanted.difference(&told).collect());
        let more = text(told.difference(&wanted).collect());
        if missing.is_empty() && more.is_empty() {
            self.note(id, check, Level::Ok, format!("{} members in both", wanted.len()), "");
            return;
        }
        let evidence = format!("only in the file: {}; only in the cluster: {}", or_none(&missing), or_none(&more));
        let remedy = "members that joined later live in the log; correct the file where an address is wrong";
        self.note(id, check, Level::Info, evidence, remedy);
    }

    fn what_if(&mut self, wishes: &[Wish]) -> Result<(), Error> {
        let (id, check) = ("DOC-18", "a step keeps the quorum");
        let mut alive = self.alive();
        if wishes.is_empty() {
            if self.members.is_empty() {
                return Ok(());
            }
            let refused: Vec<String> = self
                .members
                .voters
                .iter()
                .filter(|id| {
                    let seen = preview(&self.members, &[MemberStep::Remove(**id)], &alive);
                    matches!(seen.verdict, Verdict::Refused(_))
                })
                .map(|id| self.name(id.0))
                .collect();
            let evidence = if refused.is_empty() {
                "removing any one voter would be possible".to_owned()
            } else {
                format!("removing {} would be refused", list(&refused))
            };
            self.note(id, check, Level::Ok, evidence, "");
            return Ok(());
        }
        let mut steps = Vec::new();
        for wish in wishes {
            let known = self.observed.members.iter().find(|m| m.name == wish.member || m.id.to_string() == wish.member);
            let member = match (wish.verb, known) {
                (Verb::Add, None) => {
                    // Whoever will be added is thought to be there, under an id that nobody has.
                    let next = self.observed.members.iter().map(|m| m.id).max().unwrap_or(0) + 1 + steps.len() as u64;
                    alive.insert(NodeId(next));
                    NodeId(next)
                }
                (_, Some(member)) => NodeId(member.id),
                (_, None) => {
                    let names: Vec<&str> = self.observed.members.iter().map(|m| m.name.as_str()).collect();
                    return Err(Error::new(Code::CONFIG, format!("there is no member \"{}\"", wish.member))
                        .hint(format!("members: {}", list(&names))));
                }
            };
            steps.push(match wish.verb {
                Verb::Add | Verb::Promote => MemberStep::Voter(member),
                Verb::Demote => MemberStep::Learner(member),
                Verb::Remove => MemberStep::Remove(member),
            });
        }
        let seen = preview(&self.members, &steps, &alive);
        let what = wishes.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and ");
        let joint = if seen.joint { " (both sets must agree meanwhile)" } else { "" };
        let arithmetic = format!("{what}: now {}; then {}{joint}", seen.before, seen.after);
        match seen.verdict {
            Verdict::Good => self.note(id, check, Level::Info, arithmetic, "it can be done"),
            Verdict::Worse(why) => self.note(id, check, Level::Info, arithmetic, format!("it can be done, but {why}")),
            Verdict::Refused(why) => {
                self.note(id, check, Level::Warning, arithmetic, format!("it would be refused: {why}"))
            }
        }
        Ok(())
    }
}

fn or_none(items: &[String]) -> String {
    if items.is_empty() { "none".into() } else { list(items) }
}
