//! The plant's readings with their labels as a CSV file, from which `examples/fleet-model/train.py` trains.

use std::{
    fs::File,
    io::{BufWriter, Write as _},
    path::Path,
};

use anyhow::Context as _;

use super::plant::{Plant, machine_name};

/// Writes `rounds` readings of each of `machines` machines.
///
/// # Errors
/// When the file cannot be written.
pub fn dump_training(path: &Path, machines: u32, rounds: u32, seed: u64) -> anyhow::Result<()> {
    let file = File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
    let mut out = BufWriter::new(file);
    let mut plant = Plant::new(machines, seed);
    writeln!(out, "machine,temperature,vibration,speed,torque,wear,failed")?;
    for _ in 0..rounds {
        for machine in 0..machines {
            let sample = plant.read(machine);
            let v = sample.values;
            writeln!(
                out,
                "{},{},{},{},{},{},{}",
                machine_name(machine),
                v.temperature,
                v.vibration,
                v.speed,
                v.torque,
                v.wear,
                u8::from(sample.failed)
            )?;
        }
    }
    out.flush().with_context(|| format!("cannot write {}", path.display()))
}
