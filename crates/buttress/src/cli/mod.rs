//! The command line: `buttress <noun> <verb>`. Data goes to standard output, everything else to standard error; every
//! command that changes something ends by naming a command that may come next.

pub mod args;
mod backup;
mod cluster;
mod functions;
pub mod join;
mod kv;
mod lock;
mod models;
mod records;
pub(crate) mod show;
mod topics;
mod uplink;

use std::process::ExitCode;

use buttress_core::Error;

use args::{Command, DemoKind};

/// Exit codes: done, the answer is no, it failed.
const DONE: u8 = 0;
const NO: u8 = 1;
const FAILED: u8 = 2;

/// Runs the command and tells its exit code.
pub fn run(args: args::Args) -> ExitCode {
    let result = match args.command {
        // A node says what ended it in its log, in the log's form.
        Command::Serve(serve) => {
            return ExitCode::from(if crate::serve::run(&serve) { DONE } else { FAILED });
        }
        Command::Host(host) => {
            return ExitCode::from(if crate::engines::host::run(&host) { DONE } else { FAILED });
        }
        Command::Dev(dev) => crate::dev::run(&dev),
        Command::Demo(demo) => match demo.kind() {
            DemoKind::Fleet(options) => crate::demo::cli::run(options),
            DemoKind::Orders(options) => crate::orders::cli::run(options),
        },
        Command::Backup(backup) => backup::run(backup),
        Command::Restore(restore) => backup::restore(&restore),
        Command::Doctor(doctor) => crate::doctor::run(doctor),

        Command::Chaos(crate::chaos::cli::ChaosCommand::Consensus(options)) => crate::chaos::cli::consensus(&options),
        Command::Proxy(proxy) => crate::proxy::run(&proxy),
        Command::OrdersPart(part) => crate::orders::part::run(part),
        Command::Mock(mock) => crate::mock::run(&mock),
        Command::Explain(args) => crate::proxy::explain::run(&args),
        Command::Apply(args) => crate::resources::cli::apply(&args),
        Command::Get(args) => crate::resources::cli::get(&args),
        Command::Describe(args) => crate::resources::cli::describe(&args),
        Command::Diff(args) => crate::resources::cli::diff(&args),
        Command::Delete(args) => crate::resources::cli::delete(&args),
        Command::Edit(args) => crate::resources::cli::edit(&args),
        Command::Schema(args) => crate::resources::cli::schema(&args),
        Command::Route(command) => crate::resources::route::run(&command),
        Command::Topic(command) => on_client(topics::run(command)),
        Command::Produce(command) => on_client(records::produce(command)),
        Command::Consume(command) => on_client(records::consume(command)),
        Command::Fn(command) => on_client(functions::run(command)),
        Command::Model(command) => on_client(models::run(command)),
        Command::Kv(command) => on_client(kv::run(command)),
        Command::Uplink(command) => on_client(uplink::run(command)),
        // The command's own exit code is ours.
        Command::Lock(command) => return lock::run(command),
        Command::Cluster(args::ClusterCommand::Join(join)) => match join::run(&join) {
            // A node says itself what ended it.
            Ok(Some(ended_well)) => return ExitCode::from(if ended_well { DONE } else { FAILED }),
            Ok(None) => Ok(true),
            Err(error) => Err(error),
        },
        Command::Cluster(command) => on_client(cluster::run(command)),
    };
    match result {
        Ok(true) => ExitCode::from(DONE),
        Ok(false) => ExitCode::from(NO),
        Err(error) => {
            if show::is_broken_pipe(&error) {
                return ExitCode::from(DONE);
            }
            eprintln!("error: {}", show::describe(&error));
            ExitCode::from(FAILED)
        }
    }
}

/// Whether the answer is yes, or why there is none.
pub type Answer = anyhow::Result<bool>;

fn on_client(command: impl Future<Output = Result<(), Error>>) -> Answer {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(command)?;
    Ok(true)
}
