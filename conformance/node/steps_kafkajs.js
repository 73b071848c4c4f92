// The steps of an ordinary user of kafkajs.
'use strict';

const { begin, end, step, errorOf, eventually } = require(process.env.CHECKS);
const { Kafka, CompressionTypes, CompressionCodecs, ConfigResourceTypes, PartitionAssigners, logLevel } = require('kafkajs');
const { version } = require('kafkajs/package.json');
const zstd = require('@bokuweb/zstd-wasm');
const LZ4 = require('kafkajs-lz4');

CompressionCodecs[CompressionTypes.Snappy] = require('kafkajs-snappy');
CompressionCodecs[CompressionTypes.LZ4] = new LZ4().codec;
CompressionCodecs[CompressionTypes.ZSTD] = () => ({
  compress: async (encoder) => Buffer.from(zstd.compress(encoder.buffer, 3)),
  decompress: async (buffer) => Buffer.from(zstd.decompress(buffer)),
});

const t = `conformance-kafkajs-${Date.now()}${process.pid}`;
const kafka = new Kafka({ clientId: 'conformance', brokers: process.env.KAFKA_BOOTSTRAP.split(','), logLevel: logLevel.NOTHING, retry: { retries: 3 } });
const admin = kafka.admin();

async function produce(topic, values, { compression, ...config } = {}) {
  const producer = kafka.producer({ allowAutoTopicCreation: true, ...config });
  await producer.connect();
  try {
    return await producer.send({ topic, compression, messages: values.map((value) => (typeof value === 'object' && value !== null ? value : { value, partition: 0 })) });
  } finally {
    await producer.disconnect();
  }
}

/** A member of a group that collects what it reads; `has` are the partitions it was given last. */
async function member(groupId, topic, { from = true, assigners = [PartitionAssigners.roundRobin], auto = true, ...config } = {}) {
  const consumer = kafka.consumer({ groupId, sessionTimeout: 10_000, heartbeatInterval: 500, rebalanceTimeout: 10_000, partitionAssigners: assigners, maxWaitTimeInMs: 500, ...config });
  const self = { consumer, got: [], has: [] };
  consumer.on(consumer.events.GROUP_JOIN, ({ payload }) => { self.has = payload.memberAssignment[topic] ?? []; });
  await consumer.connect();
  await consumer.subscribe({ topics: [topic], fromBeginning: from });
  await consumer.run({ autoCommit: auto, eachMessage: async ({ partition, message }) => { self.got.push({ partition, ...message }); } });
  return self;
}

async function read(topic, count, config = {}) {
  const self = await member(`${t}-reader-${Math.random()}`, topic, config);
  try {
    await eventually(() => self.got.length >= count, 15_000);
    return self.got.map((m) => m.value?.toString() ?? null);
  } finally {
    await self.consumer.disconnect();
  }
}

async function main() {
  await zstd.init();
  begin('kafkajs', version);
  await admin.connect();

  // The cluster and its topics.
  await step('the cluster is described', true, async () => {
    const cluster = await admin.describeCluster();
    return Boolean(cluster.clusterId) && cluster.brokers.length > 0;
  });
  await step('a topic is created', true, () => admin.createTopics({ topics: [{ topic: t, numPartitions: 3, replicationFactor: 1, configEntries: [{ name: 'retention.ms', value: '3600000' }] }] }));
  await step('a topic that is there', false, () => admin.createTopics({ topics: [{ topic: t, numPartitions: 3 }] }));
  await step('a name that cannot be', 'attempted to perform an operation on an invalid topic', () => errorOf(
    () => admin.createTopics({ topics: [{ topic: 'no/good' }] }).catch((e) => { throw e.errors?.[0] ?? e; }), 'attempted to perform an operation on an invalid topic'));
  await step('the topic is listed', true, async () => (await admin.listTopics()).includes(t));
  await step('the topic is described', 3, async () => (await admin.fetchTopicMetadata({ topics: [t] })).topics[0].partitions.length);
  const configOf = async (name) => (await admin.describeConfigs({ includeSynonyms: false, resources: [{ type: ConfigResourceTypes.TOPIC, name: t }] })).resources[0]
    .configEntries.find((entry) => entry.configName === name)?.configValue;
  await step('configurations are told, given ones and defaults', ['3600000', 'delete'], async () => [await configOf('retention.ms'), await configOf('cleanup.policy')]);
  await step('a configuration is changed', '7200000', async () => {
    await admin.alterConfigs({ resources: [{ type: ConfigResourceTypes.TOPIC, name: t, configEntries: [{ name: 'retention.ms', value: '7200000' }] }] });
    await eventually(async () => (await configOf('retention.ms')) === '7200000');
    return configOf('retention.ms');
  });
  await step('partitions are added', 5, async () => {
    await admin.createPartitions({ topicPartitions: [{ topic: t, count: 5 }] });
    const count = async () => (await admin.fetchTopicMetadata({ topics: [t] })).topics[0].partitions.length;
    await eventually(async () => (await count()) === 5);
    return count();
  });

  // Producing and reading.
  for (const [name, compression] of [['none', CompressionTypes.None], ['gzip', CompressionTypes.GZIP], ['snappy', CompressionTypes.Snappy], ['lz4', CompressionTypes.LZ4], ['zstd', CompressionTypes.ZSTD]]) {
    const lines = [...Array(300).keys()].map((n) => `${name} line ${n} of some length to compress`);
    await step(`reads back what was written with ${name}`, lines, async () => {
      await produce(`${t}-${name}`, lines, { compression });
      return read(`${t}-${name}`, 300);
    });
  }
  await step('an idempotent producer', ['0', '100'], async () => {
    const producer = kafka.producer({ idempotent: true });
    await producer.connect();
    const seen = [];
    for (let batch = 0; batch < 2; batch += 1) {
      const [done] = await producer.send({ topic: `${t}-idem`, acks: -1, messages: [...Array(100).keys()].map((n) => ({ value: `${batch * 100 + n}`, partition: 0 })) });
      seen.push(done.baseOffset);
    }
    await producer.disconnect();
    return seen;
  });
  await step('key, headers, timestamp and a tombstone', ['k', 'v', '1', '1700000000123', null], async () => {
    await admin.createTopics({ waitForLeaders: true, topics: [{ topic: `${t}-whole`, numPartitions: 1 }] });
    await produce(`${t}-whole`, [{ key: 'k', value: 'v', headers: { a: '1' }, timestamp: '1700000000123' }, { key: 'k', value: null }]);
    const self = await member(`${t}-whole-reader`, `${t}-whole`);
    await eventually(() => self.got.length >= 2, 15_000);
    await self.consumer.disconnect();
    const [first, second] = self.got;
    return [first.key.toString(), first.value.toString(), first.headers.a.toString(), first.timestamp, second.value];
  });
  await step('the first and the next offset', [['0', '200']], async () => (await admin.fetchTopicOffsets(`${t}-idem`)).map((p) => [p.low, p.high]));
  await step('offsets by time', ['3', '5'], async () => {
    for (let n = 0; n < 5; n += 1) await produce(`${t}-time`, [{ value: `${n}`, partition: 0, timestamp: `${1_700_000_000_000 + n * 1000}` }]);
    return [(await admin.fetchTopicOffsetsByTimestamp(`${t}-time`, 1_700_000_002_500))[0].offset, (await admin.fetchTopicOffsetsByTimestamp(`${t}-time`, Date.now() + 3_600_000))[0].offset];
  });
  await step('records are deleted up to an offset', '2', async () => {
    await admin.deleteTopicRecords({ topic: `${t}-time`, partitions: [{ partition: 0, offset: '2' }] });
    return (await admin.fetchTopicOffsets(`${t}-time`))[0].low;
  });

  // Groups.
  await step('two members share the partitions; when one leaves the other has all', [[2, 3], 5], async () => {
    const one = await member(`${t}-group`, t);
    const two = await member(`${t}-group`, t);
    await eventually(() => one.has.length && two.has.length && one.has.length + two.has.length === 5, 20_000);
    const seen = [[one.has.length, two.has.length].sort()];
    await two.consumer.disconnect();
    await eventually(() => one.has.length === 5, 20_000);
    seen.push(one.has.length);
    await one.consumer.disconnect();
    return seen;
  });
  await step('commits, and resumes where it was', ['0', '10', 'note', '10'], async () => {
    const topic = `${t}-idem`;
    const one = await member(`${t}-commit`, topic, { auto: false });
    await eventually(() => one.got.length >= 10);
    await one.consumer.commitOffsets([{ topic, partition: 0, offset: '10', metadata: 'note' }]);
    await one.consumer.disconnect();
    const told = (await admin.fetchOffsets({ groupId: `${t}-commit`, topics: [topic] }))[0].partitions[0];
    const two = await member(`${t}-commit`, topic, { auto: false });
    await eventually(() => two.got.length > 0);
    await two.consumer.disconnect();
    return [one.got[0].value.toString(), told.offset, told.metadata, two.got[0].value.toString()];
  });
  await step('a consumer is moved to an offset', '150', async () => {
    const one = await member(`${t}-seek`, `${t}-idem`);
    await eventually(() => one.got.length > 0);
    one.got.length = 0;
    one.consumer.seek({ topic: `${t}-idem`, partition: 0, offset: '150' });
    await eventually(() => one.got.some((m) => m.offset === '150'));
    const at = one.got.findIndex((m) => m.offset === '150');
    await one.consumer.disconnect();
    return one.got[at]?.value.toString();
  });
  await step('a living group is described with its members', ['Stable', 'consumer', 'RoundRobinAssigner', ['conformance']], async () => {
    const one = await member(`${t}-living`, t);
    await eventually(() => one.has.length === 5);
    const [group] = (await admin.describeGroups([`${t}-living`])).groups;
    await one.consumer.disconnect();
    return [group.state, group.protocolType, group.protocol, group.members.map((m) => m.clientId)];
  });
  await step('groups are listed', true, async () => (await admin.listGroups()).groups.some((g) => g.groupId === `${t}-commit` && g.protocolType === 'consumer'));
  await step("a group's offsets are set from outside", '7', async () => {
    await admin.setOffsets({ groupId: `${t}-commit`, topic: `${t}-idem`, partitions: [{ partition: 0, offset: '7' }] });
    return (await admin.fetchOffsets({ groupId: `${t}-commit`, topics: [`${t}-idem`] }))[0].partitions[0].offset;
  });
  await step('a group is deleted', false, async () => {
    await admin.deleteGroups([`${t}-commit`]);
    return (await admin.listGroups()).groups.some((g) => g.groupId === `${t}-commit`);
  });

  // What cannot be.
  await step('a message that is too large', 'The request included a message larger than the max message size', () => errorOf(
    () => produce(t, ['x'.repeat(2_000_000)]), 'The request included a message larger than the max message size'));
  await step('a topic that there is not', 'This server does not host this topic-partition', () => errorOf(
    () => admin.fetchTopicOffsets(`${t}-missing`), 'This server does not host this topic-partition'));
  await step('transactions commit and abort', ['a', 'b', 'c'], async () => {
    const producer = kafka.producer({ transactionalId: t, maxInFlightRequests: 1, idempotent: true });
    await producer.connect();
    try {
      for (const [texts, commit] of [[['a', 'b'], true], [['never'], false], [['c'], true]]) {
        const transaction = await producer.transaction();
        await transaction.send({ topic: `${t}-tx`, messages: texts.map((value) => ({ value, partition: 0 })) });
        await (commit ? transaction.commit() : transaction.abort());
      }
    } finally {
      await producer.disconnect();
    }
    return read(`${t}-tx`, 3, { readUncommitted: false });
  });
  await step('a topic is deleted', true, async () => {
    await admin.deleteTopics({ topics: [t] });
    return eventually(async () => !(await admin.listTopics()).includes(t));
  });
  end();
  process.exit(0);
}

main();
