//! Named limits with their arithmetic. Edges check them before the log, so that nothing oversized is ever proposed.

/// Largest encoded entry. Raft keeps entries in memory until they are checkpointed; four in flight are 32 MiB.
pub const ENTRY_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Largest record batch, Kafka's `max.message.bytes` default rounded up to 1 MiB + the batch header.
pub const RECORD_BATCH_BYTES_MAX: usize = 1024 * 1024 + 4096;
/// Largest value of one key, etcd's default request limit of 1.5 MiB.
pub const VALUE_BYTES_MAX: usize = 1536 * 1024;
/// Largest key.
pub const KEY_BYTES_MAX: usize = 8 * 1024;
/// Parts (guards, puts, appends, …) of one entry. An edge that packs a full second of 10,000 devices into one entry fits.
pub const ENTRY_PARTS_MAX: usize = 16 * 1024;
/// Levels of transactions within transactions, the outermost included. Clients nest once or twice; each level costs the
/// stack a frame wherever a transaction is decoded, checked and applied.
pub const TXN_DEPTH_MAX: usize = 16;
/// What one transaction may read and delete, in bytes of keys and values with 64 for each row: 128 MiB are a million keys
/// of 70 bytes. What needs more is refused whole, for every node carries it out, and answers it out of memory.
pub const TXN_BYTES_MAX: usize = 128 * 1024 * 1024;
/// Topic name, as in Kafka.
pub const TOPIC_NAME_BYTES_MAX: usize = 249;
/// Partitions of one topic; each costs a sparse index and a tail ring.
pub const PARTITIONS_PER_TOPIC_MAX: u32 = 1024;
/// Clients whose results are remembered for retries; the oldest is forgotten first.
pub const REQUEST_CLIENTS_MAX: usize = 1024;
/// Unacknowledged results remembered per client.
pub const REQUEST_RESULTS_PER_CLIENT_MAX: usize = 4096;
/// Producers (Kafka idempotent producers and devices) remembered per partition.
pub const PRODUCERS_PER_PARTITION_MAX: usize = 1_000_000;
/// Entries kept for followers that lag, beyond those not yet checkpointed; on disk, but for the newest.
pub const LOG_TAIL_BYTES: usize = 32 * 1024 * 1024;
/// Committed records that wait to be written into their segments before nothing new is proposed: 20 ms at 100 MB/s.
pub const UNFILED_BYTES_MAX: u64 = 2 * 1024 * 1024;
/// Bytes of applied entries that stay in memory: what a follower that is a few round trips behind still needs. One that lags
/// further is sent what the disk has.
pub const LOG_MEMORY_BYTES: usize = 2 * 1024 * 1024;
