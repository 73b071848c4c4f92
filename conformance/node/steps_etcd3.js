// The steps of an ordinary user of the npm package etcd3.
'use strict';

const { begin, end, step, errorOf, eventually, sleep } = require(process.env.CHECKS);
const { Etcd3 } = require('etcd3');
const { version } = require('etcd3/package.json');

const p = `conformance/npm-etcd3/${Date.now()}${process.pid}/`;
const client = new Etcd3({ hosts: process.env.ETCD_ENDPOINTS.split(',').map((e) => `http://${e}`) });
const etcd = client.namespace(p);
const put = (key, value) => etcd.put(key).value(value).exec();
const names = (pairs) => Object.keys(pairs).join(' ');
const event = (kind) => (kv, before) => [kind, kv.key.toString(), kv.value.toString(), before?.value.length ? `(${before.value})` : ''].filter(Boolean).join(' ');

/** Opens a watch, does something once it is open, and collects events. */
async function watching(builder, count, action = async () => {}) {
  const events = [];
  const watcher = await builder.create();
  watcher.on('put', (kv, before) => events.push(event('PUT')(kv, before)));
  watcher.on('delete', (kv, before) => events.push(event('DELETE')(kv, before)));
  await action();
  await eventually(() => events.length >= count);
  await watcher.cancel();
  return events;
}

async function change() {
  await put('w', '1');
  await put('w', '2');
  await etcd.delete().key('w');
}

async function main() {
  begin('npm-etcd3', version);

  // Keys and ranges.
  await step('get of a missing key', null, () => etcd.get('nothing').string());
  await step('put answers with a revision', true, async () => Number((await put('a', '1')).header.revision) > 0);
  await step('get returns what was put', '1', () => etcd.get('a').string());
  await step('a number and JSON', [1, { n: 1 }], async () => {
    await put('json', '{"n":1}');
    return [await etcd.get('a').number(), await etcd.get('json').json()];
  });
  await step('bytes come back as they were sent', true, async () => {
    const bytes = Buffer.from([...Array(256).keys()]);
    await put('bin', bytes);
    return bytes.equals(await etcd.get('bin').buffer());
  });
  await step('put returns the previous pair', '1', async () => (await etcd.put('a').value('2').getPrevious()).value.toString());
  await step('whether a key is there', [true, false], async () => [await etcd.get('bin').exists(), await etcd.get('nothing').exists()]);
  await step('delete counts', '2', async () => (await etcd.delete().inRange({ start: 'bin', end: 'jsoo' })).deleted);
  for (const k of 'bcde') await put(k, `v-${k}`);
  await step('get of everything', { a: '2', b: 'v-b', c: 'v-c', d: 'v-d', e: 'v-e' }, () => etcd.getAll().strings());
  await step('get by prefix', 'b', async () => names(await etcd.getAll().prefix('b').strings()));
  await step('get of a range leaves out its end', 'b c', async () => names(await etcd.getAll().inRange({ start: 'b', end: 'd' }).strings()));
  await step('get with a limit', 'a b', async () => names(await etcd.getAll().limit(2).strings()));
  await step('keys only', ['a', 'b', 'c', 'd', 'e'], () => etcd.getAll().keys());
  await step('a count', 5, () => etcd.getAll().count());
  await step('sorted by key, descending', ['e', 'd', 'c', 'b', 'a'], () => etcd.getAll().sort('Key', 'Descend').keys());
  await step('sorted by modification', ['b', 'c', 'd', 'e', 'a'], async () => {
    await put('a', '3');
    return etcd.getAll().sort('Mod', 'Ascend').keys();
  });
  await step('sorted by version', 'a', async () => (await etcd.getAll().sort('Version', 'Descend').keys())[0]);
  await step('sorted by value', ['a', 'b', 'c', 'd', 'e'], () => etcd.getAll().sort('Value', 'Ascend').keys());
  const now = Number((await put('a', '4')).header.revision);
  await step('get at an older revision', '3', () => etcd.get('a').revision(now - 1).string());
  await step('bounds of the modification', ['a'], () => etcd.getAll().minModRevision(now).keys());
  await step('a serializable get', '4', () => etcd.get('a').serializable(true).string());
  await step('delete returns what was there', 'v-e', async () => (await etcd.delete().key('e').getPrevious())[0].value.toString());
  await step('touching a key keeps its value', '4', async () => {
    await etcd.put('a').touch();
    return etcd.get('a').string();
  });

  // Transactions.
  await step('a transaction whose compare holds', [true, '5'], async () => {
    const done = await etcd.if('a', 'Value', '==', '4').and('a', 'Version', '>', 1).then(etcd.put('a').value('5'), etcd.get('a')).else(etcd.get('a')).commit();
    return [done.succeeded, done.responses[1].response_range.kvs[0].value.toString()];
  });
  await step('a transaction whose compare does not hold', [false, '5'], async () => {
    const done = await etcd.if('a', 'Create', '==', 0).then(etcd.put('a').value('6')).else(etcd.get('a')).commit();
    return [done.succeeded, done.responses[0].response_range.kvs[0].value.toString()];
  });
  await step('software transactional memory', '15', async () => {
    await put('n', '5');
    const add = () => etcd.stm().transact(async (tx) => {
      const n = await tx.get('n').number();
      await tx.put('n').value(n + 5);
    });
    await Promise.all([add(), add()]);
    return etcd.get('n').string();
  });

  // Watches.
  const all = ['PUT w 1', 'PUT w 2', 'DELETE w'];
  const start = Number((await put('mark', '')).header.revision);
  await step('a live watch', all, () => watching(etcd.watch().key('w'), 3, change));
  await step('a watch from an older revision', all, () => watching(etcd.watch().key('w').startRevision(String(start + 1)), 3));
  await step('a watch with what was before', ['PUT w 1', 'PUT w 2 (1)', 'DELETE w (2)'], () => watching(etcd.watch().key('w').withPreviousKV(), 3, change));
  await step('a watch of deletes only', ['DELETE w'], () => watching(etcd.watch().key('w').only('delete'), 1, change));
  await step('a watch of puts only', ['PUT w 1', 'PUT w 2'], () => watching(etcd.watch().key('w').only('put'), 2, change));
  await step('a watch of a prefix', ['PUT w1 x', 'PUT w2 y'], () => watching(etcd.watch().prefix('w'), 2, async () => { await put('w1', 'x'); await put('w2', 'y'); }));

  // Compaction.
  await step('a future revision', 'etcdserver: mvcc: required revision is a future revision', () => errorOf(
    () => etcd.get('a').revision(1e12).string(), 'etcdserver: mvcc: required revision is a future revision'));
  await step('compaction', true, async () => Boolean(await client.kv.compact({ revision: String(now), physical: true })));
  await step('a read of what was compacted', 'etcdserver: mvcc: required revision has been compacted', () => errorOf(
    () => etcd.get('a').revision(now - 1).string(), 'etcdserver: mvcc: required revision has been compacted'));
  await step('a watch of what was compacted ends with an error', true, async () => {
    await sleep(500); // it may come to a member that has not compacted yet
    const watcher = etcd.watch().key('a').startRevision('1').watcher();
    return new Promise((resolve) => {
      watcher.on('error', (error) => resolve(/canceled/.test(error.message) || error.message));
      watcher.on('end', () => resolve('end'));
    });
  });

  // Leases.
  await step('a lease keeps its key alive and takes it along', ['1', '1', null], async () => {
    const lease = etcd.lease(2);
    await lease.put('leased').value('1').exec();
    const seen = [await etcd.get('leased').string()];
    await sleep(4_000);
    seen.push(await etcd.get('leased').string());
    await lease.revoke();
    return [...seen, await etcd.get('leased').string()];
  });
  await step('a key goes with its expired lease', [true, true], async () => {
    const lease = etcd.lease(2, { autoKeepAlive: false });
    await lease.put('short').value('1').exec();
    return [await etcd.get('short').exists(), await eventually(async () => !(await etcd.get('short').exists()), 15_000)];
  });
  await step('keeping alive once', '60', async () => {
    const lease = etcd.lease(60, { autoKeepAlive: false });
    await lease.grant();
    return (await lease.keepaliveOnce()).TTL;
  });
  await step('a lease that is lost is told', 'lost', async () => {
    const lease = etcd.lease(2);
    const id = await lease.grant();
    const lost = new Promise((resolve) => lease.on('lost', () => resolve('lost')));
    await client.leaseClient.leaseRevoke({ ID: id });
    return lost;
  });
  await step('a put with a lease that is not there', 'etcdserver: requested lease not found', () => errorOf(
    () => etcd.put('l').value('1').lease('99').exec(), 'etcdserver: requested lease not found'));

  // Locks and elections.
  await step('a lock is held by one, and handed on', ['held', 'Failed to acquire a lock', 'held again'], async () => {
    const first = await etcd.lock('lock').ttl(10).acquire();
    const second = await errorOf(() => etcd.lock('lock').ttl(10).acquire(), 'Failed to acquire a lock');
    await first.release();
    return ['held', second.slice(0, 24), await etcd.lock('lock').do(() => 'held again')];
  });
  await step('an election is won, told, and handed on', ['one', 'one', 'two'], async () => {
    const election = etcd.election('election', 10);
    const one = election.campaign('one');
    await one.wait();
    const seen = [await election.leader()];
    const observer = await election.observe();
    seen.push(observer.leader());
    const two = election.campaign('two');
    const elected = new Promise((resolve) => two.on('elected', resolve));
    await one.resign();
    await elected;
    seen.push(await election.leader());
    await observer.cancel();
    await two.resign();
    return seen;
  });

  // The cluster, and what is wrong.
  await step('members have names and addresses', true, async () => (await client.cluster.memberList({})).members.every(
    (m) => m.name && m.peerURLs.length && m.clientURLs.length));
  await step('status names version and leader', true, async () => {
    const status = await client.maintenance.status();
    return status.version.startsWith('3.') && Number(status.leader) !== 0 && Number(status.raftIndex) > 0;
  });
  await step('no alarm is raised', 0, async () => (await client.maintenance.alarm({ action: 'Get' })).alarms.length);
  await step('an empty key', 'etcdserver: key is not provided', () => errorOf(() => client.put('').value('1').exec(), 'etcdserver: key is not provided'));
  await step('a key twice in one transaction', 'etcdserver: duplicate key given in txn request', () => errorOf(
    () => etcd.if('a', 'Version', '>', 0).then(etcd.put('z').value('1'), etcd.put('z').value('2')).commit(), 'etcdserver: duplicate key given in txn request'));
  await step('a value that is too large', 'etcdserver: request is too large', () => errorOf(
    () => put('large', 'x'.repeat(1_700_000)), 'etcdserver: request is too large'));
  end();
  process.exit(0);
}

main();
