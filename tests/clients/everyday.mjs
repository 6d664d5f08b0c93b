// Sixty everyday operations with ioredis and node-redis; prints the results as JSON.
//
//     node everyday.mjs {ioredis|node-redis}[-cluster] redis://127.0.0.1:6379
//
// The same operations run against a plain Redis and through the proxy; the outputs must be equal.

const [library, url] = process.argv.slice(2);

const NAMES = ['text', 'new', 'n', 'f', 'h', 'l', 's', 'z', 'bits', 'geo', 'log', 'visitors', 'a', 'b', 'c', 'bin'];

// The names of the libraries' methods differ, and so do the shapes of their arguments.
const ioredis = (r) => [
  () => r.ping(),
  () => r.echo('hello'),
  () => r.del(...NAMES),
  () => r.set('text', 'value'),
  () => r.get('text'),
  () => r.get('missing'),
  () => r.set('text', 'other', 'NX'),
  () => r.set('text', 'newer', 'XX', 'GET'),
  () => r.set('new', 'short-lived', 'EX', 1000),
  () => r.ttl('new'),
  () => r.persist('new'),
  () => r.expire('new', 500),
  () => r.getex('new', 'PERSIST'),
  () => r.append('text', '!'),
  () => r.strlen('text'),
  () => r.getrange('text', 0, 2),
  () => r.set('bin', Buffer.from([0, 13, 10, 255])),
  () => r.getBuffer('bin'),
  () => r.incr('n'),
  () => r.incrby('n', 41),
  () => r.decr('n'),
  () => r.incrbyfloat('f', 2.5),
  () => r.mset('a', 1, 'b', 2, 'c', 3),
  () => r.mget('a', 'b', 'missing', 'c'),
  () => r.exists('a', 'b', 'missing', 'a'),
  () => r.unlink('a', 'b', 'missing'),
  () => r.getdel('c'),
  () => r.type('text'),
  () => r.hset('h', { name: 'Ada', born: 1815 }),
  () => r.hget('h', 'name'),
  () => r.hgetall('h'),
  () => r.hmget('h', 'name', 'missing'),
  () => r.hincrby('h', 'born', 1),
  () => r.hdel('h', 'name', 'missing'),
  () => r.hexists('h', 'name'),
  () => r.rpush('l', 'one', 'two', 'three'),
  () => r.lpush('l', 'zero'),
  () => r.lrange('l', 0, -1),
  () => r.lpop('l'),
  () => r.rpop('l', 2),
  () => r.llen('l'),
  () => r.ltrim('l', 0, 10),
  () => r.sadd('s', 'x', 'y', 'z'),
  () => r.smembers('s').then((members) => members.sort()),
  () => r.sismember('s', 'x'),
  () => r.srem('s', 'x'),
  () => r.scard('s'),
  () => r.zadd('z', 1, 'a', 2.5, 'b', 3, 'c'),
  () => r.zrange('z', 0, -1, 'WITHSCORES'),
  () => r.zincrby('z', 10, 'a'),
  () => r.zrank('z', 'a'),
  () => r.zscore('z', 'b'),
  () => r.zrangebyscore('z', 2, 3),
  () => r.zpopmin('z'),
  () => r.setbit('bits', 7, 1),
  () => r.bitcount('bits'),
  () => r.pfadd('visitors', 'ada', 'bob'),
  () => r.pfcount('visitors'),
  () => r.geoadd('geo', 13.4, 52.5, 'berlin', 11.6, 48.1, 'munich'),
  () => r.geodist('geo', 'berlin', 'munich', 'km'),
  () => r.xadd('log', '1-1', 'event', 'start'),
  () => r.xrange('log', '-', '+'),
  () => r.xread('STREAMS', 'log', '0'),
  () => r.lpush('text', 'a list needs no text'),
  () => r.call('GET', 'a', 'b'),
  () => r.pipeline().set('a', 1).get('a').incr('a').lpush('text', 'x').get('a').exec()
    .then((pairs) => pairs.map(([error, value]) => (error ? String(error) : value))),
];

const nodeRedis = (r) => [
  () => r.ping(),
  () => r.echo('hello'),
  () => r.del(NAMES),
  () => r.set('text', 'value'),
  () => r.get('text'),
  () => r.get('missing'),
  () => r.set('text', 'other', { NX: true }),
  () => r.set('text', 'newer', { XX: true, GET: true }),
  () => r.set('new', 'short-lived', { EX: 1000 }),
  () => r.ttl('new'),
  () => r.persist('new'),
  () => r.expire('new', 500),
  () => r.getEx('new', { type: 'PERSIST' }),
  () => r.append('text', '!'),
  () => r.strLen('text'),
  () => r.getRange('text', 0, 2),
  () => r.set('bin', Buffer.from([0, 13, 10, 127])),
  () => r.get('bin'),
  () => r.incr('n'),
  () => r.incrBy('n', 41),
  () => r.decr('n'),
  () => r.incrByFloat('f', 2.5),
  () => r.mSet({ a: '1', b: '2', c: '3' }),
  () => r.mGet(['a', 'b', 'missing', 'c']),
  () => r.exists(['a', 'b', 'missing', 'a']),
  () => r.unlink(['a', 'b', 'missing']),
  () => r.getDel('c'),
  () => r.type('text'),
  () => r.hSet('h', { name: 'Ada', born: 1815 }),
  () => r.hGet('h', 'name'),
  () => r.hGetAll('h'),
  () => r.hmGet('h', ['name', 'missing']),
  () => r.hIncrBy('h', 'born', 1),
  () => r.hDel('h', ['name', 'missing']),
  () => r.hExists('h', 'name'),
  () => r.rPush('l', ['one', 'two', 'three']),
  () => r.lPush('l', 'zero'),
  () => r.lRange('l', 0, -1),
  () => r.lPop('l'),
  () => r.rPopCount('l', 2),
  () => r.lLen('l'),
  () => r.lTrim('l', 0, 10),
  () => r.sAdd('s', ['x', 'y', 'z']),
  () => r.sMembers('s').then((members) => [...members].sort()),
  () => r.sIsMember('s', 'x'),
  () => r.sRem('s', 'x'),
  () => r.sCard('s'),
  () => r.zAdd('z', [{ score: 1, value: 'a' }, { score: 2.5, value: 'b' }, { score: 3, value: 'c' }]),
  () => r.zRangeWithScores('z', 0, -1),
  () => r.zIncrBy('z', 10, 'a'),
  () => r.zRank('z', 'a'),
  () => r.zScore('z', 'b'),
  () => r.zRangeByScore('z', 2, 3),
  () => r.zPopMin('z'),
  () => r.setBit('bits', 7, 1),
  () => r.bitCount('bits'),
  () => r.pfAdd('visitors', ['ada', 'bob']),
  () => r.pfCount('visitors'),
  () => r.geoAdd('geo', [
    { longitude: 13.4, latitude: 52.5, member: 'berlin' },
    { longitude: 11.6, latitude: 48.1, member: 'munich' },
  ]),
  () => r.geoDist('geo', 'berlin', 'munich', 'km'),
  () => r.xAdd('log', '1-1', { event: 'start' }),
  () => r.xRange('log', '-', '+'),
  () => r.xRead({ key: 'log', id: '0' }),
  () => r.lPush('text', 'a list needs no text'),
  () => r.sendCommand(['GET', 'a', 'b']),
  () => Promise.all([r.set('a', 1), r.get('a'), r.incr('a'), r.get('a')]),
];

const { hostname: host, port } = new URL(url);

async function open() {
  if (library === 'ioredis-cluster') {
    const { Cluster } = await import('ioredis');
    const client = new Cluster([{ host, port: Number(port) }]);
    return [ioredis(client), () => client.quit()];
  }
  if (library === 'node-redis-cluster') {
    const { createCluster } = await import('redis');
    const client = await createCluster({ rootNodes: [{ url }] }).connect();
    // Of a cluster's client, what has no key and what is raw is asked in other ways.
    const node = await client.nodeClient(client.masters[0]);
    const whole = new Proxy(client, {
      get: (of, name) => (name === 'sendCommand' || name === 'ping' || name === 'echo'
        ? node[name].bind(node) : typeof of[name] === 'function' ? of[name].bind(of) : of[name]),
    });
    return [nodeRedis(whole), () => client.close()];
  }
  if (library === 'ioredis') {
    const { default: Redis } = await import('ioredis');
    const client = new Redis(url, { maxRetriesPerRequest: 3 });
    return [ioredis(client), () => client.quit()];
  }
  const { createClient } = await import('redis');
  const client = await createClient({ url }).connect();
  return [nodeRedis(client), () => client.close()];
}

const [operations, close] = await open();
const results = [];
for (const operation of operations) {
  try {
    results.push(await operation());
  } catch (error) {
    results.push(String(error));
  }
}
await close();
console.log(JSON.stringify(results));
