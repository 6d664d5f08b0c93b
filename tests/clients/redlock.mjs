// What two owners do with locks of the library redlock; prints what came of it as JSON.
//
//     node redlock.mjs {redlock|redlock-4} redis://127.0.0.1:6379 KEY...
//
// The last key is the one that the rival wants.

import Redis from 'ioredis';

const [version, url, ...keys] = process.argv.slice(2);
const imported = (await import(version)).default;
const Redlock = imported.default ?? imported;
const last = keys.at(-1);

const clients = [new Redis(url), new Redis(url)];
const [own, rival] = clients.map((client) => new Redlock([client], { retryCount: 0 }));
for (const redlock of [own, rival]) redlock.on('error', () => {});
const take = (redlock, names) => (redlock.lock ?? redlock.acquire).call(redlock, names, 10000);
const release = (lock) => (lock.unlock ?? lock.release).call(lock);
const succeeds = (promise) => promise.then(() => true, () => false);

const found = {};
let lock = await take(own, keys);
found.acquired = (await clients[1].pttl(last)) > 9000;
found.rival = await succeeds(take(rival, [last]));
lock = await lock.extend(30000);
found.extended = (await Promise.all(keys.map((key) => clients[1].pttl(key)))).every((ms) => ms > 20000);
found.released = await succeeds(release(lock));
found['rival extends'] = await succeeds(lock.extend(10000));
found.left = await clients[1].exists(...keys);
const second = await take(rival, [last]);
found['rival again'] = await succeeds(release(second));
console.log(JSON.stringify(found));
for (const client of clients) client.disconnect();
