// Two Socket.IO servers that share their rooms through the Redis adapter, and a client of each.
import assert from 'node:assert'
import { createServer } from 'node:http'
import { createAdapter } from '@socket.io/redis-adapter'
import { createClient } from 'redis'
import { Server } from 'socket.io'
import { io } from 'socket.io-client'

const url = `redis://127.0.0.1:${process.argv[2]}`

async function start () {
  const publisher = createClient({ url })
  const subscriber = publisher.duplicate()
  await Promise.all([publisher.connect(), subscriber.connect()])
  const http = createServer()
  const server = new Server(http, { adapter: createAdapter(publisher, subscriber) })
  server.on('connection', socket => {
    socket.on('join', (room, reply) => { socket.join(room); reply() })
    socket.on('say', (room, text) => server.to(room).emit('said', text))
  })
  await new Promise(resolve => http.listen(0, '127.0.0.1', resolve))
  const client = io(`http://127.0.0.1:${http.address().port}`, { transports: ['websocket'] })
  await new Promise(resolve => client.on('connect', resolve))
  const heard = []
  client.on('said', text => heard.push(text))
  return { server, client, heard }
}

const [one, two] = await Promise.all([start(), start()])
const joined = [one, two].map(side => new Promise(resolve => side.client.emit('join', 'r', resolve)))
await Promise.all(joined)
for (let n = 0; n < 100; n++) one.client.emit('say', 'r', n)
await until(() => two.heard.length === 100 && one.heard.length === 100)
assert.deepEqual(two.heard, [...Array(100).keys()])
assert.equal((await one.server.fetchSockets()).length, 2)
two.server.serverSideEmit('hello')
one.server.in('r').disconnectSockets()
await until(() => !two.client.connected)
console.log('done')
process.exit(0)

async function until (condition) {
  const end = Date.now() + 20_000
  while (!condition()) {
    if (Date.now() > end) throw new Error('waited in vain for ' + condition)
    await new Promise(resolve => setTimeout(resolve, 10))
  }
}
