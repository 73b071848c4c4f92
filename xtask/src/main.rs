//! The repository chores.

mod guests;

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["guests"] => guests::run(false),
        ["guests", "--check"] => guests::run(true),
        _ => anyhow::bail!("no such chore\n\ncargo xtask guests [--check]"),
    }
}
