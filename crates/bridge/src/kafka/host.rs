//! What a host of functions needs beside [`Stream`](buttress_core::Stream) and [`Ledger`](buttress_core::Ledger): topics that
//! it did not make, fencing without running, rows of one claim, and appends that are repeated until they are there.

use std::collections::{BTreeMap, HashMap};

use buttress_core::{Append, AppendOutcome, Code, Error, LogId, Offset};
use buttress_wire::kafka::{
    ErrorCode,
    list_offsets::{EARLIEST, LATEST},
    produce::{ProducePartition, ProduceRequest, ProduceResponse, ProduceTopic},
};
use bytes::Bytes;

use super::{Kafka, Place, TOPICS_MAX, client::Failure, errors, fetch, session::Session};
use crate::patience::{Patience, lock};

/// A batch that is not there yet: which append it is, where it goes, its bytes.
struct Left {
    at: usize,
    topic: String,
    partition: i32,
    batch: Bytes,
}

impl Kafka {
    /// Makes a topic known that exists already; whether it does.
    ///
    /// # Errors
    /// `TOO_LARGE` beyond [`TOPICS_MAX`], or Kafka does not answer.
    pub async fn follow(&self, topic: &str) -> Result<bool, Error> {
        let inner = &*self.inner;
        let name = inner.physical(topic);
        if lock(&inner.topics).contains(&name) && inner.client.topic(&name).is_some() {
            return Ok(true);
        }
        inner.client.refresh(std::slice::from_ref(&name)).await.map_err(Failure::into_error)?;
        if inner.client.topic(&name).is_none() {
            return Ok(false);
        }
        {
            let mut topics = lock(&inner.topics);
            if topics.len() >= TOPICS_MAX && !topics.contains(&name) {
                return Err(Error::new(Code::TOO_LARGE, format!("{TOPICS_MAX} topics are followed already")));
            }
            topics.insert(name.clone());
        }
        let (id, partitions) = inner.client.topic(&name).map_or(([0; 16], 0), |meta| (meta.id, meta.partitions.len()));
        for log in inner.logs_of(&name, id, partitions) {
            self.bounds(log).await?;
        }
        Ok(true)
    }

    /// Where a partition begins, and where what is committed ends, now.
    ///
    /// # Errors
    /// `TOPIC_UNKNOWN`, or Kafka does not answer.
    pub async fn bounds(&self, log: LogId) -> Result<(Offset, Offset), Error> {
        let inner = &*self.inner;
        let place = inner.place(log)?;
        let of = |which| fetch::list_offset(&inner.client, &place, which, inner.deadline());
        let (start, end) = futures::future::try_join(of(EARLIEST), of(LATEST)).await?;
        let offset = |found: Option<(Offset, i64)>| found.map_or(Offset(0), |(offset, _)| offset);
        inner.saw(log, offset(start), offset(end));
        Ok((offset(start), offset(end)))
    }

    /// Fences whoever has claimed a cursor, and ends what they have left open, without claiming it: nothing that was claimed
    /// before this is committed after it.
    ///
    /// # Errors
    /// `TOPIC_UNKNOWN`, what Kafka answers, or that it does not.
    pub async fn fence(&self, group: &str, log: LogId) -> Result<(), Error> {
        let inner = &*self.inner;
        let place = inner.place(log)?;
        let id = inner.transactional_id(group, &place.topic, place.partition);
        Session::claim(&inner.client, id, inner.options.transaction_max, inner.deadline()).await.map(drop)
    }

    /// Rows of the state of a cursor that is claimed here.
    ///
    /// # Errors
    /// `EPOCH_STALE` where it is not.
    pub async fn rows(
        &self,
        group: &str,
        log: LogId,
        space: &str,
        keys: Vec<Bytes>,
    ) -> Result<Vec<Option<Bytes>>, Error> {
        let claim = lock(&self.inner.claims).get(&(group.to_owned(), log)).cloned();
        let claim = claim.ok_or_else(|| {
            Error::new(Code::EPOCH_STALE, format!("the cursor of '{group}' is not claimed here")).hint("claim it first")
        })?;
        let claim = claim.lock().await;
        if claim.changelog.is_none() {
            return Err(Error::new(Code::BAD_REQUEST, "the cursor was claimed without its state"));
        }
        let Some(rows) = claim.rows.spaces.get(space) else { return Ok(vec![None; keys.len()]) };
        Ok(keys.iter().map(|key| rows.get(key).cloned()).collect())
    }

    /// Appends batches without a transaction: each is there at least once when this returns, in its partition in the order of
    /// the call. What is sent again after a fault may be there twice, so its reader has to know a record when it comes again.
    ///
    /// # Errors
    /// What Kafka answers, or that it does not: some of the batches may be there all the same.
    pub async fn append(&self, appends: &[Append]) -> Result<Vec<AppendOutcome>, Error> {
        let inner = &*self.inner;
        let mut outcomes = vec![AppendOutcome::UnknownLog; appends.len()];
        // A request takes one batch of a partition, so the second of a partition goes in the second round.
        let mut rounds: Vec<Vec<Left>> = Vec::new();
        let mut seen: BTreeMap<LogId, usize> = BTreeMap::new();
        for (at, append) in appends.iter().enumerate() {
            let Ok(Place { topic, partition, .. }) = inner.place(append.log) else { continue };
            let round = seen.entry(append.log).or_insert(0);
            if rounds.len() == *round {
                rounds.push(Vec::new());
            }
            rounds[*round].push(Left { at, topic, partition, batch: append.batch.clone() });
            *round += 1;
        }
        for mut left in rounds {
            let mut patience = Patience::new(inner.deadline());
            loop {
                let (again, why) = self.send(left, &mut outcomes).await?;
                left = again;
                if left.is_empty() {
                    break;
                }
                let mut stale: Vec<String> = left.iter().map(|left| left.topic.clone()).collect();
                stale.sort_unstable();
                stale.dedup();
                if !patience.pause().await {
                    return Err(why.unwrap_or_else(|| errors::no_leader(&stale)));
                }
                if let Err(Failure::Refused(error)) = inner.client.refresh(&stale).await {
                    return Err(error);
                }
            }
        }
        Ok(outcomes)
    }

    /// Sends each batch once, and gives back what has to be sent again.
    async fn send(
        &self,
        batches: Vec<Left>,
        outcomes: &mut [AppendOutcome],
    ) -> Result<(Vec<Left>, Option<Error>), Error> {
        let client = &self.inner.client;
        let mut by_leader: HashMap<String, Vec<Left>> = HashMap::new();
        let (mut again, mut why) = (Vec::new(), None);
        for left in batches {
            match client.leader(&left.topic, left.partition) {
                Some((address, _)) => by_leader.entry(address).or_default().push(left),
                None => again.push(left),
            }
        }
        let sent = by_leader.into_iter().map(|(address, batches)| async move {
            let mut topics: Vec<ProduceTopic> = Vec::new();
            for Left { topic, partition, batch, .. } in &batches {
                let data = ProducePartition { index: *partition, records: batch.clone().into() };
                match topics.iter_mut().find(|known| known.name == *topic) {
                    Some(known) => known.partition_data.push(data),
                    None => topics.push(ProduceTopic {
                        name: topic.clone(),
                        partition_data: vec![data],
                        ..ProduceTopic::default()
                    }),
                }
            }
            let request = ProduceRequest { transactional_id: None, acks: -1, timeout_ms: 10_000, topic_data: topics };
            let wait = std::time::Duration::from_secs(10);
            let answer = client.ask::<_, ProduceResponse>(&address, 12, &request, wait).await;
            (batches, answer)
        });
        for (batches, answer) in futures::future::join_all(sent).await {
            let answer = match answer {
                Ok(answer) => answer,
                Err(Failure::Refused(error)) => return Err(error),
                Err(failure) => {
                    why = Some(failure.into_error());
                    again.extend(batches);
                    continue;
                }
            };
            for left in batches {
                let topic = answer.responses.iter().find(|t| t.name == left.topic);
                let found = topic.and_then(|t| t.partition_responses.iter().find(|p| p.index == left.partition));
                match found.map(|p| (p.error_code, p.base_offset)) {
                    Some((ErrorCode::NONE, base)) => {
                        outcomes[left.at] = AppendOutcome::Appended { base_offset: Offset(base) };
                    }
                    Some((code, _)) => {
                        let error = errors::of(code, &format!("a produce to {}/{}", left.topic, left.partition));
                        if !error.retryable {
                            return Err(error);
                        }
                        why = Some(error);
                        again.push(left);
                    }
                    None => again.push(left),
                }
            }
        }
        Ok((again, why))
    }
}
