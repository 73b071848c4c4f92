//! The batch trigger: one instance per partition, alive from batch to batch.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use buttress_core::{
    Code, Error,
    guest::{BatchCall, BatchInstance, BatchOutcome, GuestOutput},
    limits,
};
use wasmtime::{
    Store,
    component::{ComponentType, Func, Lift, Lower},
};

use super::{
    block,
    engine::{Counters, Inner},
    epoch::{Clock, TICK_MS},
    failure,
    host::Context,
    lend,
};

/// A record as it is lowered into the guest: borrowed, so that each byte is copied once.
#[derive(Clone, Copy, ComponentType, Lower)]
#[component(record)]
pub(crate) struct Record<'a> {
    key: &'a [u8],
    value: &'a [u8],
    #[component(name = "timestamp-ms")]
    timestamp_ms: i64,
    partition: i32,
    offset: i64,
}

#[derive(ComponentType, Lift)]
#[component(record)]
pub(crate) struct Output {
    topic: String,
    key: Vec<u8>,
    value: Vec<u8>,
}

pub(crate) type HandleParams<'a> = (&'a [Record<'a>],);
pub(crate) type HandleResults = (Result<Vec<Output>, String>,);

/// Bytes of outputs per batch: half an entry, as for state changes.
const OUTPUT_BYTES_MAX: usize = limits::ENTRY_BYTES_MAX / 2;
/// Outputs per batch, so that empty ones are bounded too.
const OUTPUTS_MAX: usize = 64 * 1024;

/// Past the epoch deadline a guest can only be waiting in the host; this ends that wait too.
pub(crate) fn patience(deadline_ms: u64) -> Duration {
    Duration::from_millis(deadline_ms + 2 * TICK_MS)
}

pub(crate) struct Instance {
    inner: Arc<Inner>,
    store: Store<Context>,
    handle: Func,
    /// Set by the first failure. What a failed call left in the guest's memory is anybody's guess.
    failed: bool,
}

impl Instance {
    pub(crate) fn start(inner: Arc<Inner>) -> Result<Self, Error> {
        if !inner.exports.batches {
            return Err(Error::new(Code::EXPORT_MISSING, "the component does not export `handle-batch`")
                .hint("deploy it with an HTTP trigger"));
        }
        let mut store = inner.store();
        let deadline_ms = inner.limits.deadline_ms;
        store.set_epoch_deadline(Clock::ticks(deadline_ms));
        let started = {
            let _running = inner.shared.clock.run();
            let _timers = inner.shared.timers().enter();
            let start = inner.pre.instantiate_async(&mut store);
            block::on(tokio::time::timeout(patience(deadline_ms), start))
        };
        let instance = match started {
            Ok(Ok(instance)) => instance,
            Ok(Err(error)) => return Err(failure::explain(&error, store.data())),
            Err(_) => return Err(failure::deadline(deadline_ms)),
        };
        let handle = instance.get_func(&mut store, "handle-batch").expect("the exports were checked");
        Counters::add(&inner.shared.counters.instances_started, 1);
        Ok(Self { inner, store, handle, failed: false })
    }

    fn call(&mut self, call: BatchCall<'_>) -> Result<BatchOutcome, Error> {
        let records: Vec<_> = call
            .records
            .iter()
            .map(|record| Record {
                key: &record.key,
                value: &record.value,
                timestamp_ms: record.timestamp_ms,
                partition: record.partition,
                offset: record.offset,
            })
            .collect();
        let deadline_ms = self.inner.limits.deadline_ms;
        let handle = self.handle;
        let inner = &self.inner;
        self.store.data_mut().start(call.models, call.now_ms);
        self.store.set_epoch_deadline(Clock::ticks(deadline_ms));
        let answered = lend::with(
            &mut self.store,
            |store| &mut store.data_mut().state,
            call.state,
            |store| {
                let handle = handle
                    .typed::<HandleParams<'_>, HandleResults>(&mut *store)
                    .expect("the export's type was checked when it was compiled");
                let _running = inner.shared.clock.run();
                let _timers = inner.shared.timers().enter();
                block::on(tokio::time::timeout(patience(deadline_ms), handle.call_async(&mut *store, (&records,))))
            },
        );
        let context = self.store.data_mut();
        let answer = match answered {
            Ok(Ok((answer,))) => answer,
            Ok(Err(error)) => return Err(failure::explain(&error, context)),
            Err(_) => return Err(failure::deadline(deadline_ms)),
        };
        if let Some(problem) = &context.state_problem {
            let message = format!("the function's state cannot be read: {}", failure::quote(problem));
            return Err(Error::new(Code::FUNCTION_FAILED, message).retryable());
        }
        let outputs = answer.map_err(|message| {
            Error::new(Code::FUNCTION_FAILED, format!("the function answered: {}", failure::quote(&message)))
        })?;
        check(context, &outputs)?;
        let outputs = outputs
            .into_iter()
            .map(|output| GuestOutput { topic: output.topic, key: output.key.into(), value: output.value.into() })
            .collect();
        Ok(BatchOutcome {
            outputs,
            state: std::mem::take(&mut context.state_changes),
            logs: context.output.take(),
            models_used: std::mem::take(&mut context.models_used),
            memory_bytes: context.memory.bytes,
        })
    }
}

/// Outputs must fit an entry and go where the function may produce.
fn check(context: &Context, outputs: &[Output]) -> Result<(), Error> {
    let mut bytes = 0;
    for output in outputs {
        bytes += output.topic.len() + output.key.len() + output.value.len();
        if !context.may_produce_to(&output.topic) {
            let topic = failure::quote(&output.topic);
            return Err(Error::new(
                Code::FUNCTION_FAILED,
                format!("the function gave a record for topic `{topic}`, which it may not produce to"),
            )
            .hint(format!("grant the topic `{topic}` at deploy")));
        }
    }
    if bytes > OUTPUT_BYTES_MAX || outputs.len() > OUTPUTS_MAX {
        return Err(Error::new(
            Code::FUNCTION_FAILED,
            format!("the function gave {} records of {bytes} bytes for one batch; at most {OUTPUTS_MAX} of {OUTPUT_BYTES_MAX} are taken", outputs.len()),
        )
        .hint("give it smaller batches"));
    }
    Ok(())
}

impl BatchInstance for Instance {
    fn handle(&mut self, call: BatchCall<'_>) -> Result<BatchOutcome, Error> {
        assert!(!self.failed, "an instance is dropped after its first error");
        let started = Instant::now();
        let outcome = self.call(call);
        self.failed = outcome.is_err();
        let counters = &self.inner.shared.counters;
        Counters::add(&counters.batches, 1);
        Counters::add(&counters.batches_failed, u64::from(self.failed));
        Counters::add(&counters.batch_micros, started.elapsed().as_micros() as u64);
        outcome
    }
}
