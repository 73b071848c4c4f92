//! Runs `testdata/groups/*.txt` (commands, `----`, what the group answers; `UPDATE_EXPECT=1` rewrites the answers), and groups
//! against what must hold whatever happens.
//!
//! | command | does |
//! |---|---|
//! | `join ID [as=MEMBER] [instance=I] [session=MS] [rebalance=MS] [type=T] [protocols=a:x,b:y] [known] [skip]` | a join by the client ID; `known`: it must know its id first, `skip`: it can skip assigning |
//! | `sync MEMBER gen=N [instance=I] [protocol=P] [parts=MEMBER:x,…]` | |
//! | `heartbeat MEMBER gen=N [instance=I]` | |
//! | `leave MEMBER[/INSTANCE] …` | |
//! | `commit MEMBER gen=N [instance=I]` | asks whether offsets may be committed |
//! | `saved [N]` | the oldest save, or this one, is in the log |
//! | `tick` | |
//! | `restore` | another node takes over, with what was saved last |
//! | `show` | state, generation and members |
//!
//! Any command takes `at=MS`, at which the clock stands from then on. A new member of the client `c` gets the id `c-1`, then
//! `c-2`. `-` stands for no member id.

use std::{collections::BTreeMap, fmt::Write as _, fs, path::Path};

use buttress_wire::kafka::ErrorCode;
use bytes::Bytes;
use proptest::prelude::*;

use super::{
    group::{Answer, Group, Identity, Input, Join, Ms, Output, SaveId, State, Sync, Times, Token},
    record::Record,
};

const TIMES: Times = Times { initial_delay_ms: 3_000 };

struct World {
    group: Group,
    now: Ms,
    ids: usize,
    tokens: Token,
    saves: BTreeMap<SaveId, Record>,
    last: Option<Record>,
}

/// The words of a line: plain ones, and those with a name.
fn words(line: &str) -> (Vec<&str>, BTreeMap<&str, &str>) {
    let (named, plain): (Vec<&str>, Vec<&str>) = line.split_whitespace().partition(|word| word.contains('='));
    (plain, named.into_iter().map(|word| word.split_once('=').expect("partitioned by =")).collect())
}

fn member(word: &str) -> String {
    if word == "-" { String::new() } else { word.to_owned() }
}

fn pairs(text: &str) -> Vec<(String, Bytes)> {
    let pair = |pair: &str| {
        let (name, value) = pair.split_once(':').unwrap_or((pair, ""));
        (name.to_owned(), Bytes::copy_from_slice(value.as_bytes()))
    };
    text.split(',').filter(|text| !text.is_empty()).map(pair).collect()
}

fn text(bytes: &Bytes) -> String {
    bytes.escape_ascii().to_string()
}

fn show(out: &mut String, output: &Output) {
    let _ = match output {
        Output::Save(id, record) => {
            let part = |m: &super::record::MemberRecord| format!("{}:{}", m.id, text(&m.assignment));
            let parts: Vec<_> = record.members.iter().map(part).collect();
            writeln!(out, "save {id}: generation {} [{}]", record.generation, parts.join(" "))
        }
        Output::Answer(token, Answer::Joined(joined)) if joined.error.is_error() => {
            writeln!(out, "{token}: {} {}", joined.error, joined.member_id)
        }
        Output::Answer(token, Answer::Joined(joined)) => {
            let _ = write!(
                out,
                "{token}: {} joined generation {} by {} led by {}",
                joined.member_id,
                joined.generation,
                joined.protocol.as_deref().unwrap_or("none"),
                joined.leader
            );
            if joined.skip_assignment {
                out.push_str(", need not assign");
            }
            let one = |(id, instance, metadata): &(String, Option<String>, Bytes)| {
                let instance = instance.as_ref().map_or(String::new(), |instance| format!("/{instance}"));
                format!("{id}{instance}:{}", text(metadata))
            };
            let members: Vec<_> = joined.members.iter().map(one).collect();
            if members.is_empty() { writeln!(out) } else { writeln!(out, " of [{}]", members.join(" ")) }
        }
        Output::Answer(token, Answer::Synced(synced)) if synced.error.is_error() => {
            writeln!(out, "{token}: {}", synced.error)
        }
        Output::Answer(token, Answer::Synced(synced)) => writeln!(out, "{token}: part {:?}", text(&synced.assignment)),
        Output::Answer(token, Answer::Code(code)) => writeln!(out, "{token}: {code}"),
        Output::Answer(token, Answer::Left(codes)) => writeln!(out, "{token}: {codes:?}"),
    };
}

impl World {
    fn new() -> Self {
        let group = Group::new(TIMES);
        Self { group, now: 0, ids: 0, tokens: 0, saves: BTreeMap::new(), last: None }
    }

    fn step(&mut self, input: Input) -> Vec<Output> {
        let outputs = self.group.step(self.now, input);
        for output in &outputs {
            if let Output::Save(id, record) = output {
                let again = Record::decode(record.encode()).expect("what was encoded decodes");
                assert_eq!(again, *record);
                self.saves.insert(*id, again);
            }
        }
        outputs
    }

    fn run(&mut self, line: &str) -> String {
        let (plain, mut named) = words(line);
        if let Some(at) = named.remove("at") {
            self.now = at.parse().expect("milliseconds");
        }
        let number = |named: &BTreeMap<&str, &str>, name: &str, or: Ms| {
            named.get(name).map_or(or, |n| n.parse().expect("a number"))
        };
        let identity = |named: &BTreeMap<&str, &str>| Identity {
            member_id: member(plain[1]),
            instance: named.get("instance").map(|i| (*i).to_owned()),
            generation: named.get("gen").map_or(-1, |n| n.parse().expect("a generation")),
        };
        let token = self.tokens;
        let input = match plain[0] {
            "join" => {
                let client = plain[1];
                self.ids += usize::from(!named.contains_key("as"));
                Input::Join(
                    token,
                    Join {
                        member_id: named.get("as").map(|id| member(id)).unwrap_or_default(),
                        instance: named.get("instance").map(|i| (*i).to_owned()),
                        client_id: client.into(),
                        client_host: "/127.0.0.1".into(),
                        protocol_type: named.get("type").unwrap_or(&"consumer").to_string(),
                        protocols: pairs(named.get("protocols").unwrap_or(&"range:x")),
                        session_ms: number(&named, "session", 10_000),
                        rebalance_ms: number(&named, "rebalance", 60_000),
                        fresh_id: format!("{client}-{}", self.ids),
                        must_know_id: plain.contains(&"known"),
                        can_skip_assignment: plain.contains(&"skip"),
                    },
                )
            }
            "sync" => Input::Sync(
                token,
                Sync {
                    who: identity(&named),
                    protocol_type: None,
                    protocol: named.get("protocol").map(|p| (*p).to_owned()),
                    assignments: pairs(named.get("parts").unwrap_or(&"")),
                },
            ),
            "heartbeat" => Input::Heartbeat(token, identity(&named)),
            "commit" => Input::Commit(token, identity(&named)),
            "leave" => {
                let leaver = |word: &&str| match word.split_once('/') {
                    Some((id, instance)) => (member(id), Some(instance.to_owned())),
                    None => (member(word), None),
                };
                Input::Leave(token, plain[1..].iter().map(leaver).collect())
            }
            "saved" => {
                let id = match plain.get(1) {
                    Some(id) => id.parse().expect("a save"),
                    None => *self.saves.keys().next().expect("something is being saved"),
                };
                self.last = Some(self.saves.remove(&id).expect("it is being saved"));
                Input::Saved(id)
            }
            "tick" => Input::Tick,
            "restore" => {
                let record = self.last.clone().expect("something was saved");
                self.saves.clear();
                self.group = Group::restore(TIMES, record, self.now);
                return self.show();
            }
            "show" => return self.show(),
            other => panic!("no command {other:?}"),
        };
        self.tokens += u64::from(!matches!(input, Input::Saved(_) | Input::Tick));
        let mut out = String::new();
        for output in self.step(input) {
            show(&mut out, &output);
        }
        out
    }

    fn show(&self) -> String {
        let mut out = self.group.state().name().to_owned();
        if let Some(deadline) = self.group.next_deadline() {
            let _ = write!(out, " until {deadline}");
        }
        out.push('\n');
        for member in self.group.members() {
            let instance = member.instance.map_or(String::new(), |instance| format!("/{instance}"));
            let _ = writeln!(out, "{}{instance} {:?}", member.id, text(&member.assignment));
        }
        out
    }
}

/// Blocks of command lines and answers, separated by empty lines; the clock and the group live through a file.
fn answer(transcript: &str) -> String {
    let mut world = World::new();
    let mut out = String::new();
    for block in transcript.split("\n\n").map(str::trim).filter(|block| !block.is_empty()) {
        let commands: Vec<&str> = block.lines().take_while(|line| *line != "----").collect();
        if !out.is_empty() {
            out.push('\n');
        }
        for command in &commands {
            let _ = writeln!(out, "{command}");
        }
        if commands.iter().all(|line| line.starts_with('#')) {
            continue;
        }
        out.push_str("----\n");
        for command in commands.iter().filter(|line| !line.starts_with('#')) {
            out.push_str(&world.run(command));
        }
    }
    out
}

#[test]
fn transcripts() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/groups");
    let mut files: Vec<_> = fs::read_dir(dir).expect("testdata is there").map(|f| f.expect("a file").path()).collect();
    files.sort();
    assert!(files.len() >= 6, "transcripts are missing: {files:?}");
    for file in files {
        let expected = fs::read_to_string(&file).expect("a transcript can be read");
        expect_test::expect_file![&file].assert_eq(&answer(&expected));
    }
}

#[test]
fn a_record_that_is_not_one_is_refused() {
    let record = Record { generation: 7, ..Record::default() };
    let bytes = record.encode();
    assert_eq!(Record::decode(bytes.clone()), Ok(record));
    for at in 0..bytes.len() {
        assert!(Record::decode(bytes.slice(..at)).is_err());
    }
    assert!(Record::decode([&bytes[..], &[0]].concat().into()).is_err());
    assert!(Record::decode(Bytes::from_static(b"{\"generation\":7}")).is_err());
}

/// What a member in the property test does next.
#[derive(Clone, Debug)]
enum Deed {
    Join(usize),
    Sync(usize),
    Heartbeat(usize),
    Leave(usize),
    Commit(usize),
    Saved,
    Pass(Ms),
    /// Another node takes over.
    Restore,
}

fn deed() -> impl Strategy<Value = Deed> {
    let who = || 0..4usize;
    prop_oneof![
        4 => who().prop_map(Deed::Join),
        4 => who().prop_map(Deed::Sync),
        2 => who().prop_map(Deed::Heartbeat),
        1 => who().prop_map(Deed::Leave),
        2 => who().prop_map(Deed::Commit),
        3 => Just(Deed::Saved),
        3 => (1..9_000u64).prop_map(Deed::Pass),
        1 => Just(Deed::Restore),
    ]
}

/// A client: what it was told last.
#[derive(Clone, Debug, Default)]
struct Client {
    id: String,
    generation: i32,
    leads: bool,
    members: Vec<String>,
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever members and nodes do: a part is given only under a generation that was saved and to one of its members; who
    /// may commit is a member of the last generation that was agreed; generations never go back; nothing waits for ever.
    #[test]
    fn groups_keep_their_word(deeds in proptest::collection::vec(deed(), 1..120), known in any::<bool>()) {
        let mut world = World::new();
        let mut clients = vec![Client::default(); 4];
        let mut asked: BTreeMap<Token, (usize, &str)> = BTreeMap::new();
        // As whom commits were asked for: one may wait until the group is this coordinator's, and its client join anew meanwhile.
        let mut commits: BTreeMap<Token, Identity> = BTreeMap::new();
        let mut saved: Option<i32> = None;
        let mut highest = 0;
        let all = deeds.into_iter().chain((0..40).flat_map(|_| [Deed::Saved, Deed::Pass(30_000)]));
        for deed in all {
            world.tokens += 1;
            let token = world.tokens;
            let identity = |client: &Client| {
                Identity { member_id: client.id.clone(), instance: None, generation: client.generation }
            };
            let input = match deed {
                Deed::Join(who) => {
                    asked.insert(token, (who, "join"));
                    Input::Join(token, Join {
                        member_id: clients[who].id.clone(),
                        protocol_type: "consumer".into(),
                        protocols: pairs(["a:1,b:2", "b:3", "b:4,a:5", "a,b,c"][who]),
                        session_ms: 10_000,
                        rebalance_ms: 20_000,
                        fresh_id: format!("{who}-{token}"),
                        must_know_id: known,
                        ..Join::default()
                    })
                }
                Deed::Sync(who) => {
                    asked.insert(token, (who, "sync"));
                    let client = &clients[who];
                    let part = |id: &String| (id.clone(), Bytes::copy_from_slice(id.as_bytes()));
                    let assignments = client.members.iter().filter(|_| client.leads).map(part).collect();
                    Input::Sync(token, Sync { who: identity(client), assignments, ..Sync::default() })
                }
                Deed::Heartbeat(who) => {
                    asked.insert(token, (who, "heartbeat"));
                    Input::Heartbeat(token, identity(&clients[who]))
                }
                Deed::Leave(who) => {
                    asked.insert(token, (who, "leave"));
                    Input::Leave(token, vec![(clients[who].id.clone(), None)])
                }
                Deed::Commit(who) => {
                    asked.insert(token, (who, "commit"));
                    let who = Identity { generation: clients[who].generation.max(0), ..identity(&clients[who]) };
                    commits.insert(token, who.clone());
                    Input::Commit(token, who)
                }
                Deed::Saved => {
                    let Some((id, record)) = world.saves.pop_first() else { continue };
                    saved = Some(record.generation);
                    world.last = Some(record);
                    Input::Saved(id)
                }
                Deed::Pass(ms) => {
                    world.now += ms;
                    Input::Tick
                }
                Deed::Restore => {
                    let Some(record) = world.last.clone() else { continue };
                    world.saves.clear();
                    let old = std::mem::replace(&mut world.group, Group::restore(TIMES, record, world.now));
                    for (token, _) in old.abandon(ErrorCode::NOT_COORDINATOR) {
                        prop_assert!(asked.remove(&token).is_some(), "{token} was answered twice");
                    }
                    // What no save has seen may happen again.
                    highest = saved.unwrap_or(0);
                    continue;
                }
            };
            for output in world.step(input) {
                let Output::Answer(token, answer) = output else { continue };
                let (who, what) = asked.remove(&token).expect("what is answered was asked, once");
                let client = &mut clients[who];
                match answer {
                    Answer::Joined(joined) if joined.error == ErrorCode::MEMBER_ID_REQUIRED => client.id = joined.member_id,
                    Answer::Joined(joined) if joined.error.is_error() => *client = Client::default(),
                    Answer::Joined(joined) => {
                        prop_assert!(joined.generation >= highest, "generation {} after {highest}", joined.generation);
                        highest = joined.generation;
                        prop_assert!(joined.protocol.is_some());
                        let members = joined.members.into_iter().map(|(id, ..)| id).collect();
                        let leads = joined.leader == joined.member_id;
                        *client = Client { id: joined.member_id, generation: joined.generation, leads, members };
                    }
                    Answer::Synced(synced) if !synced.error.is_error() => {
                        prop_assert_eq!(saved, Some(client.generation), "a part of a generation that is not in the log");
                        prop_assert_eq!(text(&synced.assignment), client.id.clone());
                    }
                    Answer::Code(ErrorCode::NONE) if what == "commit" => {
                        let by = &commits[&token];
                        prop_assert!(world.last.as_ref().is_some_and(|last| {
                            last.generation == by.generation && last.members.iter().any(|m| m.id == by.member_id)
                        }), "{by:?} may commit, but the log has {:?}", world.last);
                    }
                    _ => {}
                }
            }
            let deadline = world.group.next_deadline();
            let waits_for_log = !world.saves.is_empty();
            prop_assert!(deadline.is_some() || waits_for_log || world.group.state() == State::Empty);
        }
        // Everybody has been silent for long: nobody is left, and nobody waits.
        prop_assert_eq!(world.group.state(), State::Empty);
        prop_assert_eq!(asked.len(), 0, "{:?} were never answered", asked);
    }
}
