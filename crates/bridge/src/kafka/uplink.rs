//! A lane of an uplink: batches into one partition, with the lane's position in the same transaction.
//!
//! The position is the offset of a group of the lane's own on the target's partition; it counts the records of the log at the
//! edge, so Kafka never compares it with anything of its own. A lane has a transactional id of its own, too: whoever claims it
//! fences who had it before, and reads where that one has ended (see `session.rs`).

use buttress_core::{Code, Error, Offset};
use buttress_wire::{
    kafka::{
        ErrorCode,
        metadata::{MetadataRequest, MetadataRequestTopic, MetadataResponse},
    },
    records::BatchView,
};
use bytes::Bytes;

use super::{
    Failure, Kafka, Move, Session, Target, errors,
    session::{self, Position},
};

/// Where a lane goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LanePlace {
    pub transactional_id: String,
    pub group: String,
    pub topic: String,
    pub partition: i32,
    /// Partitions that the topic needs; with these it is made where it is missing and that is wanted.
    pub partitions: u32,
    pub create: bool,
    /// The topic of gap records, made where it is missing.
    pub gaps: String,
}

/// A claimed lane.
pub struct LaneSession {
    session: Session,
    place: LanePlace,
}

impl Kafka {
    /// Claims a lane: ends what an earlier holder has left open, fences it, and reads its position.
    ///
    /// # Errors
    /// `TOPIC_UNKNOWN`, `TOPIC_INVALID` for one with too few partitions, what Kafka answers, or that it does not.
    pub async fn claim_lane(&self, place: LanePlace) -> Result<(LaneSession, Option<(Offset, String)>), Error> {
        let inner = &self.inner;
        match self.partitions_of(&place.topic).await {
            Ok(found) if found < place.partitions as usize => {
                let message = format!(
                    "topic '{}' of the Kafka has {found} partitions, the uplink's has {}",
                    place.topic, place.partitions
                );
                let hint = format!("kafka-topics --alter --topic {} --partitions {}", place.topic, place.partitions);
                return Err(Error::new(Code::TOPIC_INVALID, message).hint(hint));
            }
            Err(error) if error.code == Code::TOPIC_UNKNOWN && place.create => {
                inner.ensure(&place.topic, place.partitions, &[]).await?;
            }
            Err(error) if error.code == Code::TOPIC_UNKNOWN => {
                let message = format!("the Kafka has no topic '{}'", place.topic);
                let hint = "make it there, or let the uplink make it: `buttress uplink create … --create-topics`";
                return Err(Error::new(Code::TOPIC_UNKNOWN, message).hint(hint));
            }
            Err(error) => return Err(error),
            Ok(_) => {}
        }
        inner.ensure(&place.gaps, 1, &[("retention.ms", "-1".into())]).await?;
        inner.client.refresh(&[place.topic.clone(), place.gaps.clone()]).await.map_err(Failure::into_error)?;
        let (max, deadline) = (inner.options.transaction_max, inner.deadline());
        let session = Session::claim(&inner.client, place.transactional_id.clone(), max, deadline).await?;
        let found =
            session::position_with_text(&inner.client, &place.group, &place.topic, place.partition, deadline).await?;
        let found = found.map(|Position { next, text }| (next, text));
        Ok((LaneSession { session, place }, found))
    }

    /// Commits batches, a gap record and the position behind them as one transaction. After an error the lane must be
    /// claimed again.
    ///
    /// # Errors
    /// What Kafka answers; `TIMEOUT` where the outcome is not known.
    pub async fn commit_lane(
        &self,
        lane: &mut LaneSession,
        batches: &[Bytes],
        gap: Option<Bytes>,
        next: Offset,
        text: &str,
    ) -> Result<(), Error> {
        let LanePlace { topic, partition, gaps, group, .. } = lane.place.clone();
        let mut targets = Vec::new();
        let view = |batch: &Bytes| Ok::<_, Error>((None, BatchView::parse_stored(batch.clone())?));
        if let Some(gap) = gap {
            targets.push(Target { topic: gaps, partition: 0, batches: vec![view(&gap)?] });
        }
        if !batches.is_empty() {
            let batches = batches.iter().map(view).collect::<Result<_, _>>()?;
            targets.push(Target { topic: topic.clone(), partition, batches });
        }
        let moved = Move { group, topic, partition, next, metadata: text.to_owned() };
        let done = lane.session.commit(&self.inner.client, &targets, &[], Some(&moved)).await;
        done.map(drop).map_err(buttress_core::SubmitError::into_error)
    }

    /// How many partitions a topic has; an error of Kafka's about it is told as such.
    async fn partitions_of(&self, topic: &str) -> Result<usize, Error> {
        let named = MetadataRequestTopic { name: Some(topic.to_owned()), ..MetadataRequestTopic::default() };
        let request = MetadataRequest {
            topics: Some(vec![named]),
            allow_auto_topic_creation: false,
            ..MetadataRequest::default()
        };
        let answer: MetadataResponse = self.inner.client.ask_any(10, &request).await.map_err(Failure::into_error)?;
        let found = answer.topics.into_iter().next();
        match found {
            Some(found) if found.error_code.is_error() => {
                Err(errors::of(found.error_code, &format!("the question for topic '{topic}'")))
            }
            Some(found) => Ok(found.partitions.len()),
            None => {
                Err(errors::of(ErrorCode::UNKNOWN_TOPIC_OR_PARTITION, &format!("the question for topic '{topic}'")))
            }
        }
    }
}
