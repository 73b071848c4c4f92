//! Explores every model and prints what it showed.
//!
//!     cargo xtask model [--small] [--only MODEL] [--output json]

use std::process::ExitCode;

use anyhow::bail;
use buttress_model::report::{Row, Size, jobs, table};
use serde_json::json;

fn main() -> ExitCode {
    match run(std::env::args().skip(1).collect()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(args: Vec<String>) -> anyhow::Result<bool> {
    let (mut size, mut as_json, mut only) = (Size::Full, false, None);
    let mut args = args.iter().map(String::as_str);
    while let Some(arg) = args.next() {
        match (arg, arg.starts_with("--output")) {
            ("--small", _) => size = Size::Small,
            ("--only", _) => only = Some(args.next().unwrap_or_default().to_owned()),
            ("--output=json", _) => as_json = true,
            ("--output", _) if args.next() == Some("json") => as_json = true,
            _ => bail!("unexpected '{arg}'\n\nusage: cargo xtask model [--small] [--only MODEL] [--output json]"),
        }
    }
    let mut jobs = jobs(size);
    if let Some(only) = &only {
        jobs.retain(|job| job.model == only);
        if jobs.is_empty() {
            bail!("there is no model '{only}'");
        }
    }
    let mut rows: Vec<Row> = Vec::new();
    for job in jobs {
        eprintln!("{}{} …", job.model, job.seeded.map_or(String::new(), |bug| format!(", with a bug: {bug}")));
        rows.push(job.run());
    }
    let ok = rows.iter().all(|row| row.ok);
    if as_json {
        let states: usize = rows.iter().filter(|row| row.seeded.is_none()).map(|row| row.states).sum();
        println!("{:#}", json!({ "models": rows, "states": states, "ok": ok }));
    } else {
        print!("{}", table(&rows));
    }
    Ok(ok)
}
