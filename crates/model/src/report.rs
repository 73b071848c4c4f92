//! All models with their bounds and their seeded bugs, as a table and as JSON.

use serde::Serialize;

use crate::{
    design::{Design, Explored, check},
    functions::{self, Functions},
    guards::{self, Guards},
    locks::{self, Locks},
    snapshots::{self, Snapshots},
};

/// How much is tried: in seconds on a developer's machine, or as far as is worth waiting for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    Small,
    Full,
}

/// What exploring one model showed.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub model: &'static str,
    pub bounds: String,
    /// Ids of the invariants checked in every state.
    pub checks: Vec<&'static str>,
    /// A bug that was put in on purpose and must be found; `None` for the model of what is.
    pub seeded: Option<&'static str>,
    pub states: usize,
    pub steps: usize,
    pub depth: usize,
    pub seconds: f64,
    /// The invariant that does not hold.
    pub broken: Option<&'static str>,
    /// What was found, and the shortest way there.
    pub found: Option<String>,
    pub path: Vec<String>,
    /// What was to be seen and was not.
    pub missing: Vec<&'static str>,
    /// Clean where nothing is seeded; found where something is.
    pub ok: bool,
}

impl Row {
    /// Explores a model of what is. Small bounds need not show every witness.
    fn clean<D: Design>(design: D, size: Size) -> Self {
        let bounds = design.bounds();
        let mut explored = check(design);
        if size == Size::Small {
            explored.missing.clear();
        }
        Self { ok: explored.ok(), ..Self::of::<D>(bounds, explored) }
    }

    /// Looks for a seeded bug, which must break the invariant of this id.
    fn seeded<D: Design>(design: D, bug: &'static str, id: &str) -> Self {
        let bounds = design.bounds();
        let explored = check(design);
        let ok = explored.broken.as_ref().is_some_and(|broken| broken.violation.id == id);
        Self { ok, seeded: Some(bug), missing: Vec::new(), ..Self::of::<D>(bounds, explored) }
    }

    fn of<D: Design>(bounds: String, explored: Explored) -> Self {
        let broken = explored.broken;
        Self {
            model: D::NAME,
            bounds,
            checks: D::CHECKS.iter().map(|check| check.id).collect(),
            seeded: None,
            states: explored.states,
            steps: explored.steps,
            depth: explored.depth,
            seconds: explored.seconds,
            broken: broken.as_ref().map(|broken| broken.violation.id),
            found: broken.as_ref().map(|broken| broken.violation.found.clone()),
            path: broken.map_or(Vec::new(), |broken| broken.steps),
            missing: explored.missing,
            ok: false,
        }
    }
}

/// One exploration, not yet done.
pub struct Job {
    pub model: &'static str,
    pub seeded: Option<&'static str>,
    run: Box<dyn FnOnce() -> Row>,
}

impl Job {
    fn clean<D: Design>(size: Size, small: D, full: D) -> Self {
        let design = if size == Size::Small { small } else { full };
        Self { model: D::NAME, seeded: None, run: Box::new(move || Row::clean(design, size)) }
    }

    fn seeded<D: Design>(design: D, bug: &'static str, id: &'static str) -> Self {
        Self { model: D::NAME, seeded: Some(bug), run: Box::new(move || Row::seeded(design, bug, id)) }
    }

    pub fn run(self) -> Row {
        (self.run)()
    }
}

/// Every model, each followed by its seeded bugs. Those are looked for within the full bounds, since finding them takes
/// no longer there.
pub fn jobs(size: Size) -> Vec<Job> {
    let mut jobs = Vec::new();
    jobs.push(Job::clean(size, Guards::small(), Guards::full()));
    for (bug, name, id) in guards::BUGS {
        jobs.push(Job::seeded(Guards { bug: Some(bug), ..Guards::full() }, name, id));
    }
    jobs.push(Job::clean(size, Functions::small(), Functions::full()));
    for (bug, name, id) in functions::BUGS {
        jobs.push(Job::seeded(Functions { bug: Some(bug), ..Functions::full() }, name, id));
    }
    jobs.push(Job::clean(size, Snapshots::small(), Snapshots::full()));
    if size == Size::Full {
        jobs.push(Job::clean(size, Snapshots::elected(), Snapshots::elected()));
    }
    for (bug, name, id) in snapshots::BUGS {
        jobs.push(Job::seeded(Snapshots { bug: Some(bug), ..Snapshots::full() }, name, id));
    }
    jobs.push(Job::clean(size, Locks::small(), Locks::full()));
    for (bug, name, id) in locks::BUGS {
        jobs.push(Job::seeded(Locks { bug: Some(bug), ..Locks::full() }, name, id));
    }
    jobs
}

/// The rows as a table for people.
pub fn table(rows: &[Row]) -> String {
    let mut text = format!(
        "{:<10} {:<58} {:>9} {:>9} {:>5} {:>8}  result\n",
        "model", "bounds, or the bug put in", "states", "steps", "depth", "seconds"
    );
    for row in rows {
        let what = row.seeded.map_or(row.bounds.clone(), |bug| format!("  bug: {bug}"));
        let result = match (row.seeded, row.broken) {
            (None, None) if row.missing.is_empty() => "holds".to_owned(),
            (None, None) => format!("NEVER SEEN: {}", row.missing.join("; ")),
            (None, Some(id)) => format!("BREAKS {id}"),
            (Some(_), Some(id)) if row.ok => format!("found: {id}"),
            (Some(_), Some(id)) => format!("FOUND OTHERWISE: {id}"),
            (Some(_), None) => "NOT FOUND".to_owned(),
        };
        text += &format!(
            "{:<10} {what:<58} {:>9} {:>9} {:>5} {:>8.1}  {result}\n",
            row.model, row.states, row.steps, row.depth, row.seconds
        );
        if row.seeded.is_none()
            && let Some(found) = &row.found
        {
            text += &format!("  {}\n  => {found}\n", row.path.join("\n  "));
        }
    }
    text
}

/// A violation as a test's transcript shows it: the steps, then what they break.
pub fn story(explored: &Explored) -> String {
    match &explored.broken {
        None => "everything holds\n".into(),
        Some(broken) => format!("{}\n=> {}\n", broken.steps.join("\n"), broken.violation),
    }
}
