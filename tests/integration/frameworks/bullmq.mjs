// BullMQ with its documented prefix for clusters: jobs with delays, priorities, a schedule, and a
// worker that dies in the middle of a job, which another one then does.
import assert from 'node:assert'
import { fork } from 'node:child_process'
import { FlowProducer, Queue, QueueEvents, Worker } from 'bullmq'

const [port, count] = process.argv.slice(2).map(Number)
const connection = { host: '127.0.0.1', port, maxRetriesPerRequest: null }
const options = { connection, prefix: '{bull}' }
const stall = { stalledInterval: 500, lockDuration: 1000, maxStalledCount: 2 }

if (process.argv[4] === 'dying') {
  // Takes one job and goes without a word.
  new Worker('fragile', async () => process.exit(1), { ...options, ...stall })
} else {
  await main()
}

async function main () {
  const queue = new Queue('jobs', options)
  const done = new Map()
  const events = new QueueEvents('jobs', options)
  await events.waitUntilReady()
  for (let n = 0; n < count; n++) {
    const extra = n % 10 === 0 ? { delay: 300 } : n % 10 === 1 ? { priority: 1 + n % 7 } : {}
    await queue.add('add', { n }, { ...extra, attempts: 2 })
  }
  await queue.upsertJobScheduler('tick', { every: 200, limit: 3 }, { name: 'tick' })
  let ticks = 0
  const worker = new Worker('jobs', async job => {
    if (job.name === 'tick') return ++ticks
    if (job.data.n % 50 === 7 && job.attemptsMade === 0) throw new Error('once more')
    done.set(job.data.n, (done.get(job.data.n) ?? 0) + 1)
    return job.data.n * 2
  }, { ...options, concurrency: 20 })
  await until(() => done.size === count && ticks >= 3)
  assert.ok([...done.values()].every(times => times === 1))
  const flow = await new FlowProducer(options).add({
    name: 'parent', queueName: 'flows', children: [{ name: 'child', queueName: 'flows' }]
  })
  const order = []
  const flows = new Worker('flows', async job => { order.push(job.name) }, options)
  await until(() => order.length === 2)
  assert.deepEqual(order, ['child', 'parent'])
  assert.ok(flow.job.id)
  await survive()
  await Promise.all([worker.close(), flows.close(), events.close()])
  console.log('done')
  process.exit(0)
}

async function survive () {
  const queue = new Queue('fragile', options)
  await queue.add('job', {})
  const dying = fork(process.argv[1], [port, count, 'dying'])
  await new Promise(resolve => dying.on('exit', resolve))
  let did = 0
  const worker = new Worker('fragile', async () => { did++ }, { ...options, ...stall })
  await until(() => did === 1)
  await worker.close()
}

async function until (condition) {
  const end = Date.now() + 60_000
  while (!condition()) {
    if (Date.now() > end) throw new Error('waited in vain for ' + condition)
    await new Promise(resolve => setTimeout(resolve, 20))
  }
}
