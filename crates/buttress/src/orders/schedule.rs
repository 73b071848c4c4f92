//! What goes wrong and when, the same for both sides: flaky, slow, dead and recovering services, a coordinator that is
//! killed while a service is flaky, and a leader that is killed while all else is well.

use std::time::Duration;

use serde::Serialize;

use super::{part::Fault, shape::Role};

/// The killed coordinator and the killed node stay away this long, or this share of a short run.
const AWAY_MAX: Duration = Duration::from_secs(2);

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Deed {
    Fault(Role, Fault),
    Kill(Role),
    Start(Role),
    KillLeader,
    StartNode,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    pub at_s: f64,
    pub deed: Deed,
    pub kind: &'static str,
    pub says: String,
}

/// A time in which something is wrong; recovery counts from its end.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Window {
    pub what: &'static str,
    pub from_s: f64,
    pub to_s: f64,
}

const FLAKY: (f64, f64) = (0.10, 0.24);
const KILL_COORDINATOR: f64 = 0.17;
const SLOW: (f64, f64) = (0.34, 0.47);
const DEAD: (f64, f64) = (0.60, 0.68);
const RECOVERING: (f64, f64) = (0.68, 0.74);
const KILL_LEADER: f64 = 0.87;

pub fn windows(duration_s: f64) -> Vec<Window> {
    let window = |what, (from, to): (f64, f64)| Window { what, from_s: from * duration_s, to_s: to * duration_s };
    vec![
        window("payment flaky", FLAKY),
        window("inventory slow", SLOW),
        window("shipping dead, then recovering", (DEAD.0, RECOVERING.1)),
    ]
}

pub fn steps(duration_s: f64, can_lose_a_node: bool) -> Vec<Step> {
    let away_s = (duration_s * 0.03).min(AWAY_MAX.as_secs_f64());
    let step = |at: f64, deed, kind, says: &str| Step { at_s: at * duration_s, deed, kind, says: says.to_owned() };
    let flaky = Fault { fail: 0.2, lose: 0.2, slower: 1.0 };
    let slow = Fault { slower: 10.0, ..Fault::NONE };
    let recovering = Fault { slower: 2.0, ..Fault::NONE };
    let says = "payment is flaky: a fifth of requests fail, of another fifth the answer is lost";
    let mut steps = vec![
        step(FLAKY.0, Deed::Fault(Role::Payment, flaky), "flaky", says),
        step(KILL_COORDINATOR, Deed::Kill(Role::Coordinator), "kill", "SIGKILL to both coordinators"),
        Step {
            at_s: KILL_COORDINATOR * duration_s + away_s,
            deed: Deed::Start(Role::Coordinator),
            kind: "restart",
            says: "their successors read the journals".to_owned(),
        },
        step(FLAKY.1, Deed::Fault(Role::Payment, Fault::NONE), "well", "payment is well again"),
        step(SLOW.0, Deed::Fault(Role::Inventory, slow), "slow", "inventory takes ten times as long"),
        step(SLOW.1, Deed::Fault(Role::Inventory, Fault::NONE), "well", "inventory is as quick as before"),
        step(DEAD.0, Deed::Kill(Role::Shipping), "kill", "SIGKILL to both shipping services"),
        step(DEAD.1, Deed::Start(Role::Shipping), "restart", "shipping is back"),
        step(
            RECOVERING.0,
            Deed::Fault(Role::Shipping, recovering),
            "slow",
            "and takes twice as long while it warms up",
        ),
        step(RECOVERING.1, Deed::Fault(Role::Shipping, Fault::NONE), "well", "shipping is well again"),
    ];
    if can_lose_a_node {
        steps.push(step(KILL_LEADER, Deed::KillLeader, "kill", "SIGKILL to the log's leader"));
        steps.push(Step {
            at_s: KILL_LEADER * duration_s + away_s,
            deed: Deed::StartNode,
            kind: "restart",
            says: "the node is started again".to_owned(),
        });
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_in_order_and_everything_that_is_hurt_is_made_well_within_the_run() {
        for duration_s in [5.0, 60.0, 600.0] {
            let steps = steps(duration_s, true);
            assert!(steps.windows(2).all(|pair| pair[0].at_s <= pair[1].at_s), "{steps:?}");
            assert!(steps.iter().all(|step| step.at_s < duration_s));
            let count = |wanted: fn(&Deed) -> bool| steps.iter().filter(|step| wanted(&step.deed)).count();
            assert_eq!(count(|deed| matches!(deed, Deed::Kill(_))), count(|deed| matches!(deed, Deed::Start(_))));
            let hurt = count(|deed| matches!(deed, Deed::Fault(_, fault) if *fault != Fault::NONE));
            assert_eq!(hurt, count(|deed| matches!(deed, Deed::Fault(_, Fault::NONE))));
            assert!(windows(duration_s).iter().all(|window| window.to_s < duration_s));
        }
        assert!(!steps(60.0, false).iter().any(|step| step.deed == Deed::KillLeader));
    }
}
