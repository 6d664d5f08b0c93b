"""Which commands the differential run sends: a table of forms, and the scripts that they run.

A form is written like the syntax lines of Redis' own documentation:

    ZADD z [NX|XX] [CH] {d m}+        optional in brackets, a choice with |, one to three times {}+

Words in capitals are sent as they are; the others name a kind of word, see `grammar.Case`. `#z` is
a count and as many words of that kind. Every key of a case carries the case's hash tag, so that
commands with several keys run on a cluster; only the commands that the proxy splits by itself take
keys of other tags (kinds that begin with `*`).

Left out, and why, is the list `EXCLUDED`: everything else that the proxy offers for data is here.
"""

FORMS = """
GET s
SET s v
SET s v IFEQ v
SET s v [NX|XX] [GET] [EX sec|PX ms|EXAT at|PXAT atms|KEEPTTL]
SETEX s sec v
PSETEX s ms v
SETNX s v
GETSET s v
GETDEL s
DELIFEQ s v
GETEX s [EX sec|PX ms|EXAT at|PXAT atms|PERSIST]
APPEND s v
STRLEN s
GETRANGE s i i
SUBSTR s i i
SETRANGE s off v
INCR s
DECR s
INCRBY s i
DECRBY s i
INCRBYFLOAT s d
SET c m
APPEND c (f|m)
LCS c c [LEN|IDX] [MINMATCHLEN n] [WITHMATCHLEN]
MSETNX {s v}+
MGET {*s}+
MSET {*s v}+
DEL {*any}+
UNLINK {*any}+
EXISTS {*any}+
TOUCH {*any}+
SETBIT s off b
GETBIT s off
BITCOUNT s
BITCOUNT s i i [BYTE|BIT]
BITPOS s b
BITPOS s b i [i]
BITPOS s b i i BIT
BITOP (AND|OR|XOR) s {s}+
BITOP NOT s s
BITFIELD s {(GET type off|SET type off i|INCRBY type off i)}+
BITFIELD s OVERFLOW (SAT|FAIL|WRAP) {(SET type off i|INCRBY type off i)}+
BITFIELD_RO s {GET type off}+
TYPE any
TTL any
PTTL any
EXPIRETIME any
PEXPIRETIME any
EXPIRE any sec [NX|XX]
PEXPIRE any ms [NX|XX]
EXPIREAT any at [NX|XX|GT|LT]
PEXPIREAT any atms [NX|XX|GT|LT]
PERSIST any
RENAME any any
RENAMENX any any
COPY any any [REPLACE]
OBJECT ENCODING any
OBJECT REFCOUNT l
OBJECT FREQ absent
OBJECT IDLETIME absent
DUMP s
RESTORE any (0|ms) payload [REPLACE]
SORT l [LIMIT i n] [ASC|DESC] [ALPHA]
SORT l ALPHA STORE l
SORT l BY nosort [GET #]
SORT_RO l [LIMIT i n] [DESC] ALPHA GET #
SORT_RO set ALPHA [DESC]
LPUSH l {v}+
RPUSH l {v}+
LPUSHX l {v}+
RPUSHX l {v}+
LPOP l [n]
RPOP l [n]
LLEN l
LRANGE l i i
LINDEX l i
LSET l i v
LTRIM l i i
LREM l i v
LINSERT l (BEFORE|AFTER) v v
LPOS l v [RANK i] [COUNT n] [MAXLEN n]
LMOVE l l (LEFT|RIGHT) (LEFT|RIGHT)
RPOPLPUSH l l
LMPOP #l (LEFT|RIGHT) [COUNT n]
BLPOP {l}+ soon
BRPOP {l}+ soon
BLPOP l (abc|-1|nan|1e400)
BLMOVE l l (LEFT|RIGHT) (LEFT|RIGHT) soon
BRPOPLPUSH l l soon
BLMPOP soon #l (LEFT|RIGHT) [COUNT n]
BLMPOP (soon|-1) (0|abc|9) l LEFT
HSET h {f v}+
HMSET h {f v}+
HSETNX h f v
HGET h f
HMGET h {f}+
HDEL h {f}+
HEXISTS h f
HLEN h
HSTRLEN h f
HKEYS h
HVALS h
HGETALL h
HINCRBY h f i
HINCRBYFLOAT h f d
HEXPIREAT h at [NX|XX] FIELDS #f
HPEXPIREAT h atms FIELDS #f
HEXPIRE h sec FIELDS #f
HEXPIRETIME h FIELDS #f
HPERSIST h FIELDS #f
HGETEX h [EXAT at|PERSIST] FIELDS #f
HGETDEL h FIELDS #f
HSETEX h [FNX|FXX] [EXAT at|KEEPTTL] FIELDS 1 f v
HRANDFIELD h 1000 [WITHVALUES]
HSCAN h 0 [MATCH glob] [COUNT 1000]
SADD set {m}+
SREM set {m}+
SCARD set
SISMEMBER set m
SMISMEMBER set {m}+
SMEMBERS set
SMOVE set set m
SPOP set 1000
SRANDMEMBER set 1000
SINTER {set}+
SUNION {set}+
SDIFF {set}+
SINTERSTORE set {set}+
SUNIONSTORE set {set}+
SDIFFSTORE set {set}+
SINTERCARD #set [LIMIT n]
SSCAN set 0 [MATCH glob] [COUNT 1000]
ZADD z {d m}+
ZADD z [NX|XX] [CH] {d m}+
ZADD z [XX] [GT|LT] [CH] {d m}+
ZADD z INCR d m
ZADD y {0 m}+
ZINCRBY z d m
ZREM z {m}+
ZCARD z
ZCOUNT z min max
ZLEXCOUNT y lex lex
ZSCORE z m
ZMSCORE z {m}+
ZRANK z m
ZREVRANK z m
ZRANGE z i i [WITHSCORES]
ZRANGE z i i REV
ZRANGE z min max BYSCORE [LIMIT i n] [WITHSCORES]
ZRANGE y lex lex BYLEX [REV] [LIMIT i n]
ZREVRANGE z i i [WITHSCORES]
ZRANGEBYSCORE z min max [WITHSCORES] [LIMIT i n]
ZREVRANGEBYSCORE z max min [WITHSCORES] [LIMIT i n]
ZRANGEBYLEX y lex lex [LIMIT i n]
ZREVRANGEBYLEX y lex lex [LIMIT i n]
ZRANGESTORE z z i i
ZREMRANGEBYRANK z i i
ZREMRANGEBYSCORE z min max
ZREMRANGEBYLEX y lex lex
ZPOPMIN z [n]
ZPOPMAX z [n]
ZMPOP #z (MIN|MAX) [COUNT n]
BZPOPMIN {z}+ soon
BZPOPMAX {z}+ soon
BZMPOP soon #z (MIN|MAX) [COUNT n]
ZUNION #z [AGGREGATE SUM|AGGREGATE MIN|AGGREGATE MAX] [WITHSCORES]
ZINTER #z [WITHSCORES]
ZDIFF #z [WITHSCORES]
ZUNION 2 z z WEIGHTS d d WITHSCORES
ZUNIONSTORE z #z [AGGREGATE MAX]
ZINTERSTORE z #z
ZDIFFSTORE z #z
ZINTERCARD #z [LIMIT n]
ZRANDMEMBER z 1000 [WITHSCORES]
ZSCAN z 0 [MATCH glob] [COUNT 1000]
GEOADD g [NX|XX] [CH] {lon lat m}+
GEOPOS g {m}+
GEODIST g m m [M|KM|FT|MI]
GEOHASH g {m}+
GEOSEARCH g FROMLONLAT lon lat BYRADIUS radius KM [ASC|DESC] [COUNT n] [WITHDIST]
GEOSEARCH g FROMLONLAT lon lat BYRADIUS radius KM ASC WITHCOORD WITHHASH
GEOSEARCH g FROMMEMBER m BYBOX radius radius KM ASC
GEOSEARCHSTORE g g FROMLONLAT lon lat BYRADIUS radius KM [ASC] [STOREDIST]
GEORADIUS g lon lat radius KM ASC [WITHDIST]
GEORADIUS g lon lat radius KM STORE g
GEORADIUS_RO g lon lat radius KM ASC
GEORADIUSBYMEMBER g m radius KM ASC
GEORADIUSBYMEMBER_RO g m radius KM ASC
PFADD p {v}+
PFCOUNT {p}+
PFMERGE p {p}+
XADD x [NOMKSTREAM] [MAXLEN = n|MAXLEN ~ n|MINID id] id {f v}+
XADD x [MAXLEN = n] part {f v}+
XLEN x
XRANGE x (-|id) (+|id) [COUNT n]
XREVRANGE x (+|id) (-|id) [COUNT n]
XDEL x {id}+
XTRIM x (MAXLEN n|MAXLEN = n|MINID id)
XREAD [COUNT n] STREAMS x id
XREAD STREAMS x x id id
XREAD [COUNT n] BLOCK 2 STREAMS x (id|$)
XREAD BLOCK (-1|abc) STREAMS x id
XSETID x id [ENTRIESADDED n MAXDELETEDID id]
XGROUP CREATE x gr (0|$|id) [MKSTREAM]
XGROUP CREATE x gr 0 MKSTREAM ENTRIESREAD n
XGROUP CREATECONSUMER x gr co
XGROUP DELCONSUMER x gr co
XGROUP SETID x gr (0|$|id)
XGROUP DESTROY x gr
XREADGROUP GROUP gr co [COUNT n] [NOACK] STREAMS x (>|0|id)
XREADGROUP GROUP gr co [COUNT n] BLOCK 2 STREAMS x (>|id)
XREADGROUP GROUP gr co STREAMS x x > >
XACK x gr {id}+
XPENDING x gr
XPENDING x gr IDLE 100000000 - + n [co]
XCLAIM x gr co 0 {id}+ JUSTID
XCLAIM x gr co 0 {id}+ [RETRYCOUNT n] [FORCE] [LASTID id]
XAUTOCLAIM x gr co 0 id [COUNT n] [JUSTID]
XINFO STREAM x
XINFO GROUPS x
EVAL script #s {v}+
EVAL script #l {v}+
EVAL script 1 any
EVAL script 0 [v]
EVAL script (-1|abc|7) s v
EVAL broken 1 s
EVAL_RO script #s {v}+
EVAL_RO script 1 any
EVALSHA sha #s {v}+
EVALSHA sha 1 any
EVALSHA_RO sha #s
FCALL (mark|peek|fail|nosuch) #s {v}+
FCALL mark 0
FCALL (mark|peek) (-1|abc|7) s
FCALL_RO (mark|peek) #s
SCRIPT LOAD script
SCRIPT LOAD broken
SCRIPT EXISTS {sha}+
FUNCTION LOAD (abc|library)
EXEC
DISCARD
UNWATCH
PUBLISH v v
SPUBLISH s v
PING [v]
ECHO v
SELECT 0
CLIENT GETNAME
CLIENT SETNAME name
"""

EXCLUDED = {
    "LCS of long values": "holds a node up for longer than the proxy waits for it",
    "RANDOMKEY": "random",
    "SPOP, SRANDMEMBER, HRANDFIELD, ZRANDMEMBER with a count below the size": "random",
    "XADD with the id *": "time",
    "XPENDING with a range, XINFO CONSUMERS, XINFO STREAM FULL": "idle times",
    "OBJECT IDLETIME, OBJECT FREQ": "time, and the clusters' own eviction policy",
    "MEMORY USAGE": "depends on the allocator's state",
    "TIME, LASTSAVE, INFO": "time",
    "DUMP of anything but a string": "the order inside depends on the node's hash seed",
    "SORT with BY or GET": "a cluster refuses them, a plain server does not",
    "CLIENT SETINFO": "the proxy knows it whatever the node's version, Redis since 7.2",
    "COPY with DB, MOVE, SELECT of another database": "a cluster has one database",
    "SUBSCRIBE and its kin": "several replies, and pushes between others",
    "blocking commands that wait long": "what wakes them comes from another connection",
    "SCAN, KEYS, DBSIZE, FLUSHALL, SCRIPT FLUSH": "of a whole cluster, other cases' data too",
}

# What EVAL runs: every kind of reply, errors raised and caught, writes of several types.
SCRIPTS = (
    b"return {KEYS, ARGV}",
    b"return redis.call('INCR', KEYS[1])",
    b"return redis.pcall('LPUSH', KEYS[1], ARGV[1])",
    b"redis.call('SET', KEYS[1], ARGV[1]) return redis.call('GET', KEYS[1])",
    b"return {1, 2.9, false, true, {ok='fine'}, {err='ERR inner'}, 'text', nil, 5}",
    b"return redis.error_reply('MINE of a script')",
    b"return redis.status_reply('DONE')",
    b"redis.setresp(3) return {redis.call('ZSCORE', KEYS[1], 'm1'), {double=3.5}, {map={a=1}}}",
    b"return redis.call('LRANGE', KEYS[1], 0, -1)",
    b"return redis.call('NOSUCH', KEYS[1])",
    b"return redis.call('GET')",
    b"return nosuch",
    b"error('of mine')",
    b"local kept = redis.call('TYPE', KEYS[1]) redis.call('DEL', KEYS[1]) return {kept}",
    b"#!lua flags=no-writes\nreturn redis.call('EXISTS', KEYS[1])",
    b"#!lua flags=no-writes\nreturn redis.call('SET', KEYS[1], '1')",
    b"#!lua flags=nosuch\nreturn 1",
    b"return redis.sha1hex(ARGV[1] or '')",
)
BROKEN = (b"return (", b"\xff", b"#!js\nreturn 1", b"", b"return redis.call('GET', KEYS[1]")
LIBRARY = b"""#!lua name=differential
redis.register_function('mark', function(keys, args)
  return redis.call('APPEND', keys[1], args[1] or '!')
end)
redis.register_function{function_name='peek', flags={'no-writes'}, callback=function(keys, args)
  return {#keys, redis.call('EXISTS', keys[1])}
end}
redis.register_function('fail', function(keys, args) return redis.call('LPUSH', keys[1]) end)
"""

# Replies whose order is the node's own: compared as multisets of groups of this many elements.
UNORDERED = {
    "HGETALL": 2,
    "HKEYS": 1,
    "HVALS": 1,
    "HRANDFIELD": 1,
    "SMEMBERS": 1,
    "SINTER": 1,
    "SUNION": 1,
    "SDIFF": 1,
    "SPOP": 1,
    "SRANDMEMBER": 1,
    "ZRANDMEMBER": 1,
    "HSCAN": 1,
    "SSCAN": 1,
    "ZSCAN": 1,
}

# Replies that are a time: they may differ by this much, in their own unit.
TOLERANCE = {"TTL": 2, "EXPIRETIME": 2, "PTTL": 3000, "PEXPIRETIME": 3000}
