//! Writes the plant's readings and labels as CSV for `examples/fleet-model/train.py`:
//! `cargo run --release -p buttress --example dump_training -- FILE [MACHINES] [ROUNDS] [SEED]`

use std::path::Path;

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let path =
        arguments.next().ok_or_else(|| anyhow::anyhow!("usage: dump_training FILE [MACHINES] [ROUNDS] [SEED]"))?;
    let mut number = |default: u64| arguments.next().map_or(Ok(default), |text| text.parse::<u64>());
    let (machines, rounds, seed) = (number(4_000)?, number(150)?, number(1)?);
    buttress::demo::training::dump_training(Path::new(&path), u32::try_from(machines)?, u32::try_from(rounds)?, seed)
}
