//! `buttress doctor`: looks at a cluster from outside and names what is wrong, or will be.
//!
//! [`collect`] asks every member what it knows of itself and measures its clock; [`checks`] judges what came, without
//! asking anybody anything, so that every judgement has a test. Each check has an id that stays; its page is
//! `docs/reference/doctor.md`.

mod checks;
mod collect;
#[cfg(test)]
mod tests;

use buttress_core::Error;
use serde::Serialize;

pub use checks::{Findings, examine};
pub use collect::{Observation, Observed, collect};

use crate::{
    cli::{
        Answer,
        args::{DoctorArgs, Output},
        show,
    },
    config::Config,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    Ok,
    /// Worth knowing.
    Info,
    /// Should be mended.
    Warning,
    /// Must be mended now.
    Critical,
}

impl Level {
    fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Info => "info",
            Self::Warning => "WARNING",
            Self::Critical => "CRITICAL",
        }
    }
}

/// What one check found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub id: &'static str,
    pub check: &'static str,
    pub level: Level,
    pub evidence: String,
    /// What would mend it; empty where nothing is to be done.
    pub remedy: String,
}

pub fn run(args: DoctorArgs) -> Answer {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let what_if = args.what_if.iter().map(|wish| checks::Wish::parse(wish)).collect::<Result<Vec<_>, _>>()?;
    let observed = runtime.block_on(look(&args))?;
    let findings = examine(&observed, &what_if)?;
    let worst = findings.iter().map(|finding| finding.level).max().unwrap_or(Level::Ok);
    print(&observed, &findings, args.output, args.all)?;
    Ok(worst < Level::Warning)
}

async fn look(args: &DoctorArgs) -> Result<Observed, Error> {
    let config: Option<Config> = args.config.as_deref().map(Config::load).transpose()?;
    let mut servers = args.servers.clone();
    if let Some(config) = &config {
        servers.extend(config.members.iter().map(|member| format!("http://{}", member.http)));
    } else if servers.is_empty() {
        servers.push("http://127.0.0.1:7380".into());
    }
    let mut observed = collect(&servers).await?;
    if let Some(config) = config {
        observed.configured = Some(config.members.iter().map(|m| (m.id, m.name.clone(), m.http.clone())).collect());
    }
    Ok(observed)
}

fn print(observed: &Observed, findings: &[Finding], output: Output, all: bool) -> std::io::Result<()> {
    let count = |level| findings.iter().filter(|finding| finding.level == level).count();
    if output == Output::Json {
        return show::json(&serde_json::json!({
            "cluster_id": observed.cluster_id,
            "healthy": findings.iter().all(|finding| finding.level < Level::Warning),
            "critical": count(Level::Critical),
            "warnings": count(Level::Warning),
            "findings": findings,
            "nodes": observed.members.iter().map(|m| serde_json::json!({
                "id": m.id,
                "name": m.name,
                "http": m.http,
                "reachable": m.vitals.is_some(),
                "error": m.error,
                "clock_offset_ms": m.clock.map(|(offset, _)| offset),
                "clock_uncertainty_ms": m.clock.map(|(_, uncertainty)| uncertainty),
            })).collect::<Vec<_>>(),
        }));
    }
    let answered = observed.members.iter().filter(|member| member.vitals.is_some()).count();
    eprintln!("cluster {}: {answered} of {} members answer\n", observed.cluster_id, observed.members.len());
    let mut shown: Vec<&Finding> = findings.iter().filter(|finding| all || finding.level > Level::Ok).collect();
    // The worst first; among equals the order of the checks.
    shown.sort_by_key(|finding| std::cmp::Reverse(finding.level));
    let mut rows = Vec::new();
    for finding in &shown {
        let head = vec![finding.level.word().to_owned(), finding.id.to_owned(), finding.check.to_owned()];
        rows.push([head, vec![finding.evidence.clone()]].concat());
        if !finding.remedy.is_empty() {
            let empty = vec![String::new(); 3];
            rows.push([empty, vec![format!("-> {}", finding.remedy)]].concat());
        }
    }
    if !rows.is_empty() {
        show::table(&["LEVEL", "ID", "CHECK", "EVIDENCE AND REMEDY"], &rows)?;
        eprintln!();
    }
    let quiet = count(Level::Ok);
    eprintln!(
        "{} critical, {} warnings, {} worth knowing, {quiet} checks without a finding{}",
        count(Level::Critical),
        count(Level::Warning),
        count(Level::Info),
        if all || quiet == 0 { "" } else { " (--all shows them)" }
    );
    if count(Level::Critical) + count(Level::Warning) > 0 {
        eprintln!("docs/reference/doctor.md says more of each id");
    }
    Ok(())
}
