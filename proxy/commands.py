"""The command table: one row for every command and sub-command of Redis 7 and Valkey 9.

A command without a row is unknown, and a row says `refused` until somebody has thought about it,
so an upgrade of a node cannot open anything. Policies, handlers and the data plane all read this
table; the conformance test holds it against the COMMAND of real servers.

Columns
  name        lower case; `container|word` for a sub-command
  arity       Redis' rule: the number of words, negative for "at least"; where two versions
              differ, the one that lets more through, because the node checks it again
  path        what the data plane does (`wire.rules.Path`)
  keys        `-` none · `1` · `1:2` · `1:-1` first to last · `1:-1:2` with a step · `n1` a count in
              word 1 and that many keys · `n1:2` the same, each before its value · `n2+1` as n2 and
              word 1 is a key · streams sort geo
  flags       those of Redis' flags that mean something here
  categories  those ACL categories that do not follow from the flags; the first is the family
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from proxy import effects, errors
from proxy.wire.rules import Command, CountErrors, Grows, KeyKind, Keys, Makes, Path, Pause

# No client may send more: `limits: {arguments: …}` of a role.
MOST_WORDS = 1 << 20

FAMILIES = ("string", "hash", "list", "set", "zset", "stream", "generic", "connection")


class Row(NamedTuple):
    """One line of the table."""

    name: bytes
    arity: int
    path: Path
    keys: Keys
    flags: frozenset[str]
    groups: tuple[str, ...]

    @property
    def container(self) -> bytes:
        """Return the first word of the command."""
        return self.name.partition(b"|")[0]

    @property
    def offered(self) -> bool:
        return self.path is not Path.REFUSED

    def arity_fits(self, count: int) -> bool:
        """Return whether the command may have this many words."""
        return count == self.arity or count >= -self.arity > 0

    @property
    def write(self) -> bool:
        """Return whether the command may change data; scripts may, whatever their flags say."""
        return "write" in self.flags or (
            "scripting" in self.groups
            and self.keys.kind is KeyKind.NUMKEYS
            and "readonly" not in self.flags
        )

    @property
    def categories(self) -> frozenset[str]:
        """Return all ACL categories, the derived ones too, without the @."""
        derived: set[str] = {"fast" if "fast" in self.flags else "slow"}
        derived |= self.flags & {"write", "admin", "pubsub", "blocking"}
        # What a script reads is known to nobody, so Redis does not call running one a read.
        if "readonly" in self.flags and "scripting" not in self.groups:
            derived.add("read")
        if "admin" in self.flags:
            derived.add("dangerous")
        return frozenset(derived.union(self.groups))


# SPLIT rows are forwarded while their keys share a slot. COPY and SORT are LOCAL because their
# arguments decide: `COPY ... DB` leaves the database, `SORT ... BY pattern` reads foreign keys.
# AUTH, HELLO and RESET change who the client is, and no command may run under two identities.
TABLE = """
# name                     arity path      keys    flags                  categories

# keyspace
copy                           -3 local     1:2     write,denyoom          keyspace
dbsize                          1 local     -       readonly,fast          keyspace
del                            -2 split     1:-1    write                  keyspace
dump                            2 forward   1       readonly               keyspace
exists                         -2 split     1:-1    readonly,fast          keyspace
expire                         -3 forward   1       write,fast             keyspace
expireat                       -3 forward   1       write,fast             keyspace
expiretime                      2 forward   1       readonly,fast          keyspace
keys                            2 local     -       readonly               keyspace,dangerous
migrate                        -6 refused   -       write                  keyspace,dangerous
move                            3 refused   1       write,fast             keyspace
object                         -2 container -       -                      -
object|encoding                 3 forward   2       readonly               keyspace
object|freq                     3 forward   2       readonly               keyspace
object|help                     2 local     -       -                      keyspace
object|idletime                 3 forward   2       readonly               keyspace
object|refcount                 3 forward   2       readonly               keyspace
persist                         2 forward   1       write,fast             keyspace
pexpire                        -3 forward   1       write,fast             keyspace
pexpireat                      -3 forward   1       write,fast             keyspace
pexpiretime                     2 forward   1       readonly,fast          keyspace
pttl                            2 forward   1       readonly,fast          keyspace
randomkey                       1 local     -       readonly               keyspace
rename                          3 forward   1:2     write                  keyspace
renamenx                        3 forward   1:2     write,fast             keyspace
restore                        -4 forward   1       write,denyoom          keyspace,dangerous
restore-asking                 -4 refused   1       write,denyoom          keyspace,dangerous
scan                           -2 local     -       readonly               keyspace
sort                           -2 local     sort    write,denyoom  set,sortedset,list,dangerous
sort_ro                        -2 local     sort    readonly  set,sortedset,list,dangerous
touch                          -2 split     1:-1    readonly,fast          keyspace
ttl                             2 forward   1       readonly,fast          keyspace
type                            2 forward   1       readonly,fast          keyspace
unlink                         -2 split     1:-1    write,fast             keyspace
# string
append                          3 forward   1       write,denyoom,fast     string
decr                            2 forward   1       write,denyoom,fast     string
decrby                          3 forward   1       write,denyoom,fast     string
delifeq                         3 forward   1       write,fast             string
get                             2 forward   1       readonly,fast          string
getdel                          2 forward   1       write,fast             string
getex                          -2 forward   1       write,fast             string
getrange                        4 forward   1       readonly               string
getset                          3 forward   1       write,denyoom,fast     string
incr                            2 forward   1       write,denyoom,fast     string
incrby                          3 forward   1       write,denyoom,fast     string
incrbyfloat                     3 forward   1       write,denyoom,fast     string
lcs                            -3 forward   1:2     readonly               string
mget                           -2 split     1:-1    readonly,fast          string
mset                           -3 split     1:-1:2  write,denyoom          string
msetex                         -4 forward   n1:2    write,denyoom          string
msetnx                         -3 forward   1:-1:2  write,denyoom          string
psetex                          4 forward   1       write,denyoom          string
set                            -3 forward   1       write,denyoom          string
setex                           4 forward   1       write,denyoom          string
setnx                           3 forward   1       write,denyoom,fast     string
setrange                        4 forward   1       write,denyoom          string
strlen                          2 forward   1       readonly,fast          string
substr                          4 forward   1       readonly               string
# bitmap
bitcount                       -2 forward   1       readonly               bitmap
bitfield                       -2 forward   1       write,denyoom          bitmap
bitfield_ro                    -2 forward   1       readonly,fast          bitmap
bitop                          -4 forward   2:-1    write,denyoom          bitmap
bitpos                         -3 forward   1       readonly               bitmap
getbit                          3 forward   1       readonly,fast          bitmap
setbit                          4 forward   1       write,denyoom          bitmap
# hyperloglog
pfadd                          -2 forward   1       write,denyoom,fast     hyperloglog
pfcount                        -2 forward   1:-1    readonly               hyperloglog
pfdebug                         3 refused   2       write,denyoom,admin    hyperloglog
pfmerge                        -2 forward   1:-1    write,denyoom          hyperloglog
pfselftest                      1 refused   -       admin                  hyperloglog
# hash
hdel                           -3 forward   1       write,fast             hash
hexists                         3 forward   1       readonly,fast          hash
hexpire                        -6 forward   1       write,fast             hash
hexpireat                      -6 forward   1       write,fast             hash
hexpiretime                    -5 forward   1       readonly,fast          hash
hget                            3 forward   1       readonly,fast          hash
hgetall                         2 forward   1       readonly               hash
hgetdel                        -5 forward   1       write,fast             hash
hgetex                         -5 forward   1       write,fast             hash
hincrby                         4 forward   1       write,denyoom,fast     hash
hincrbyfloat                    4 forward   1       write,denyoom,fast     hash
hkeys                           2 forward   1       readonly               hash
hlen                            2 forward   1       readonly,fast          hash
hmget                          -3 forward   1       readonly,fast          hash
hmset                          -4 forward   1       write,denyoom,fast     hash
hpersist                       -5 forward   1       write,fast             hash
hpexpire                       -6 forward   1       write,fast             hash
hpexpireat                     -6 forward   1       write,fast             hash
hpexpiretime                   -5 forward   1       readonly,fast          hash
hpttl                          -5 forward   1       readonly,fast          hash
hrandfield                     -2 forward   1       readonly               hash
hscan                          -3 forward   1       readonly               hash
hset                           -4 forward   1       write,denyoom,fast     hash
hsetex                         -6 forward   1       write,denyoom,fast     hash
hsetnx                          4 forward   1       write,denyoom,fast     hash
hstrlen                         3 forward   1       readonly,fast          hash
httl                           -5 forward   1       readonly,fast          hash
hvals                           2 forward   1       readonly               hash
# list
blmove                          6 barrier   1:2     write,denyoom,blocking list
blmpop                         -5 barrier   n2      write,blocking         list
blpop                          -3 barrier   1:-2    write,blocking         list
brpop                          -3 barrier   1:-2    write,blocking         list
brpoplpush                      4 barrier   1:2     write,denyoom,blocking list
lindex                          3 forward   1       readonly               list
linsert                         5 forward   1       write,denyoom          list
llen                            2 forward   1       readonly,fast          list
lmove                           5 forward   1:2     write,denyoom          list
lmpop                          -4 forward   n1      write                  list
lpop                           -2 forward   1       write,fast             list
lpos                           -3 forward   1       readonly               list
lpush                          -3 forward   1       write,denyoom,fast     list
lpushx                         -3 forward   1       write,denyoom,fast     list
lrange                          4 forward   1       readonly               list
lrem                            4 forward   1       write                  list
lset                            4 forward   1       write,denyoom          list
ltrim                           4 forward   1       write                  list
rpop                           -2 forward   1       write,fast             list
rpoplpush                       3 forward   1:2     write,denyoom          list
rpush                          -3 forward   1       write,denyoom,fast     list
rpushx                         -3 forward   1       write,denyoom,fast     list
# set
sadd                           -3 forward   1       write,denyoom,fast     set
scard                           2 forward   1       readonly,fast          set
sdiff                          -2 forward   1:-1    readonly               set
sdiffstore                     -3 forward   1:-1    write,denyoom          set
sinter                         -2 forward   1:-1    readonly               set
sintercard                     -3 forward   n1      readonly               set
sinterstore                    -3 forward   1:-1    write,denyoom          set
sismember                       3 forward   1       readonly,fast          set
smembers                        2 forward   1       readonly               set
smismember                     -3 forward   1       readonly,fast          set
smove                           4 forward   1:2     write,fast             set
spop                           -2 forward   1       write,fast             set
srandmember                    -2 forward   1       readonly               set
srem                           -3 forward   1       write,fast             set
sscan                          -3 forward   1       readonly               set
sunion                         -2 forward   1:-1    readonly               set
sunionstore                    -3 forward   1:-1    write,denyoom          set
# sortedset
bzmpop                         -5 barrier   n2      write,blocking         sortedset
bzpopmax                       -3 barrier   1:-2    write,blocking,fast    sortedset
bzpopmin                       -3 barrier   1:-2    write,blocking,fast    sortedset
zadd                           -4 forward   1       write,denyoom,fast     sortedset
zcard                           2 forward   1       readonly,fast          sortedset
zcount                          4 forward   1       readonly,fast          sortedset
zdiff                          -3 forward   n1      readonly               sortedset
zdiffstore                     -4 forward   n2+1    write,denyoom          sortedset
zincrby                         4 forward   1       write,denyoom,fast     sortedset
zinter                         -3 forward   n1      readonly               sortedset
zintercard                     -3 forward   n1      readonly               sortedset
zinterstore                    -4 forward   n2+1    write,denyoom          sortedset
zlexcount                       4 forward   1       readonly,fast          sortedset
zmpop                          -4 forward   n1      write                  sortedset
zmscore                        -3 forward   1       readonly,fast          sortedset
zpopmax                        -2 forward   1       write,fast             sortedset
zpopmin                        -2 forward   1       write,fast             sortedset
zrandmember                    -2 forward   1       readonly               sortedset
zrange                         -4 forward   1       readonly               sortedset
zrangebylex                    -4 forward   1       readonly               sortedset
zrangebyscore                  -4 forward   1       readonly               sortedset
zrangestore                    -5 forward   1:2     write,denyoom          sortedset
zrank                          -3 forward   1       readonly,fast          sortedset
zrem                           -3 forward   1       write,fast             sortedset
zremrangebylex                  4 forward   1       write                  sortedset
zremrangebyrank                 4 forward   1       write                  sortedset
zremrangebyscore                4 forward   1       write                  sortedset
zrevrange                      -4 forward   1       readonly               sortedset
zrevrangebylex                 -4 forward   1       readonly               sortedset
zrevrangebyscore               -4 forward   1       readonly               sortedset
zrevrank                       -3 forward   1       readonly,fast          sortedset
zscan                          -3 forward   1       readonly               sortedset
zscore                          3 forward   1       readonly,fast          sortedset
zunion                         -3 forward   n1      readonly               sortedset
zunionstore                    -4 forward   n2+1    write,denyoom          sortedset
# geo
geoadd                         -5 forward   1       write,denyoom          geo
geodist                        -4 forward   1       readonly               geo
geohash                        -2 forward   1       readonly               geo
geopos                         -2 forward   1       readonly               geo
georadius                      -6 forward   geo     write,denyoom          geo
georadius_ro                   -6 forward   1       readonly               geo
georadiusbymember              -5 forward   geo     write,denyoom          geo
georadiusbymember_ro           -5 forward   1       readonly               geo
geosearch                      -7 forward   1       readonly               geo
geosearchstore                 -8 forward   1:2     write,denyoom          geo
# stream
xack                           -4 forward   1       write,fast             stream
xadd                           -5 forward   1       write,denyoom,fast     stream
xautoclaim                     -6 forward   1       write,fast             stream
xclaim                         -6 forward   1       write,fast             stream
xdel                           -3 forward   1       write,fast             stream
xgroup                         -2 container -       -                      -
xgroup|create                  -5 forward   2       write,denyoom          stream
xgroup|createconsumer           5 forward   2       write,denyoom          stream
xgroup|delconsumer              5 forward   2       write                  stream
xgroup|destroy                  4 forward   2       write                  stream
xgroup|help                     2 local     -       -                      stream
xgroup|setid                   -5 forward   2       write                  stream
xinfo                          -2 container -       -                      -
xinfo|consumers                 4 forward   2       readonly               stream
xinfo|groups                    3 forward   2       readonly               stream
xinfo|help                      2 local     -       -                      stream
xinfo|stream                   -3 forward   2       readonly               stream
xlen                            2 forward   1       readonly,fast          stream
xpending                       -3 forward   1       readonly               stream
xrange                         -4 forward   1       readonly               stream
xread                          -4 forward   streams readonly,blocking      stream
xreadgroup                     -7 forward   streams write,blocking         stream
xrevrange                      -4 forward   1       readonly               stream
xsetid                         -3 forward   1       write,denyoom,fast     stream
xtrim                          -4 forward   1       write                  stream
# scripting
eval                           -3 local     n2      -                      scripting
eval_ro                        -3 local     n2      readonly               scripting
evalsha                        -3 local     n2      -                      scripting
evalsha_ro                     -3 local     n2      readonly               scripting
fcall                          -3 local     n2      -                      scripting
fcall_ro                       -3 local     n2      readonly               scripting
function                       -2 container -       -                      -
function|delete                 3 local     -       write                  scripting
function|dump                   2 local     -       -                      scripting
function|flush                 -2 local     -       write                  scripting
function|help                   2 local     -       -                      scripting
function|kill                   2 local     -       -                      scripting
function|list                  -2 local     -       -                      scripting
function|load                  -3 local     -       write,denyoom          scripting
function|restore               -3 local     -       write,denyoom          scripting
function|stats                  2 barrier   -       -                      scripting
script                         -2 container -       -                      -
script|debug                   -3 refused   -       -                      scripting
script|exists                  -3 local     -       -                      scripting
script|flush                   -2 local     -       -                      scripting
script|help                     2 local     -       -                      scripting
script|kill                     2 local     -       -                      scripting
script|load                     3 local     -       -                      scripting
script|show                     3 local     -       -                      scripting
# transaction
discard                         1 local     -       fast                   transaction
exec                            1 local     -       -                      transaction
multi                           1 local     -       fast                   transaction
unwatch                         1 barrier   -       fast                   transaction
watch                          -2 barrier   1:-1    fast                   transaction
# pubsub
psubscribe                     -2 barrier   -       pubsub                 -
publish                         3 local     -       pubsub,fast            -
pubsub                         -2 container -       -                      -
pubsub|channels                -2 local     -       pubsub                 -
pubsub|help                     2 local     -       -                      -
pubsub|numpat                   2 local     -       pubsub                 -
pubsub|numsub                  -2 local     -       pubsub                 -
pubsub|shardchannels           -2 local     -       pubsub                 -
pubsub|shardnumsub             -2 local     -       pubsub                 -
punsubscribe                   -1 barrier   -       pubsub                 -
spublish                        3 local     1       pubsub,fast            -
ssubscribe                     -2 barrier   1:-1    pubsub                 -
subscribe                      -2 barrier   -       pubsub                 -
sunsubscribe                   -1 barrier   1:-1    pubsub                 -
unsubscribe                    -1 barrier   -       pubsub                 -
# connection
auth                           -2 barrier   -       fast,no_auth           connection
client                         -2 container -       -                      -
client|caching                  3 refused   -       -                      connection
client|capa                    -3 refused   -       -                      connection
client|getname                  2 local     -       -                      connection
client|getredir                 2 local     -       -                      connection
client|help                     2 local     -       -                      connection
client|id                       2 local     -       -                      connection
client|import-source            3 refused   -       -                      connection
client|info                     2 local     -       -                      connection
client|kill                    -3 local     -       admin                  connection
client|list                    -2 local     -       admin                  connection
client|no-evict                 3 local     -       admin                  connection
client|no-touch                 3 local     -       -                      connection
client|pause                   -3 local     -       admin                  connection
client|reply                    3 barrier   -       -                      connection
client|setinfo                  4 local     -       -                      connection
client|setname                  3 local     -       -                      connection
client|tracking                -3 refused   -       -                      connection
client|trackinginfo             2 refused   -       -                      connection
client|unblock                 -3 local     -       admin                  connection
client|unpause                  2 local     -       admin                  connection
echo                            2 local     -       fast                   connection
hello                          -1 barrier   -       fast,no_auth           connection
ping                           -1 local     -       fast                   connection
quit                           -1 barrier   -       fast,no_auth           connection
reset                           1 barrier   -       fast,no_auth           connection
select                          2 barrier   -       fast                   connection
# cluster
asking                          1 local     -       fast                   connection
cluster                        -2 container -       -                      -
cluster|addslots               -3 refused   -       admin                  -
cluster|addslotsrange          -4 refused   -       admin                  -
cluster|bumpepoch               2 refused   -       admin                  -
cluster|cancelslotmigrations    2 refused   -       admin                  -
cluster|count-failure-reports   3 local     -       admin                  -
cluster|countkeysinslot         3 local     -       -                      -
cluster|delslots               -3 refused   -       admin                  -
cluster|delslotsrange          -4 refused   -       admin                  -
cluster|failover               -2 refused   -       admin                  -
cluster|flushslot              -3 refused   -       write,admin            keyspace
cluster|flushslots              2 refused   -       admin                  -
cluster|forget                  3 refused   -       admin                  -
cluster|getkeysinslot           4 refused   -       -                      -
cluster|getslotmigrations       2 refused   -       admin                  -
cluster|help                    2 local     -       -                      -
cluster|info                    2 local     -       -                      -
cluster|keyslot                 3 local     -       -                      -
cluster|links                   2 local     -       -                      -
cluster|meet                   -4 refused   -       admin                  -
cluster|migrateslots           -4 refused   -       admin                  -
cluster|myid                    2 local     -       -                      -
cluster|myshardid               2 local     -       -                      -
cluster|nodes                   2 local     -       -                      -
cluster|replicas                3 local     -       admin                  -
cluster|replicate              -3 refused   -       admin                  -
cluster|reset                  -2 refused   -       admin                  -
cluster|saveconfig              2 refused   -       admin                  -
cluster|set-config-epoch        3 refused   -       admin                  -
cluster|setslot                -4 refused   -       admin                  -
cluster|shards                  2 local     -       -                      -
cluster|slaves                  3 local     -       admin                  -
cluster|slot-stats             -4 refused   -       -                      -
cluster|slots                   2 local     -       -                      -
cluster|syncslots              -3 refused   -       admin                  -
clusterscan                    -2 refused   1       readonly               keyspace
readonly                        1 local     -       fast                   connection
readwrite                       1 local     -       fast                   connection
# server
acl                            -2 container -       -                      -
acl|cat                        -2 local     -       -                      -
acl|deluser                    -3 refused   -       admin                  -
acl|dryrun                     -4 local     -       admin                  -
acl|genpass                    -2 local     -       -                      -
acl|getuser                     3 local     -       admin                  -
acl|help                        2 local     -       -                      -
acl|list                        2 local     -       admin                  -
acl|load                        2 refused   -       admin                  -
acl|log                        -2 local     -       admin                  -
acl|save                        2 refused   -       admin                  -
acl|setuser                    -3 refused   -       admin                  -
acl|users                       2 local     -       admin                  -
acl|whoami                      2 local     -       -                      -
bgrewriteaof                    1 refused   -       admin                  -
bgsave                         -1 refused   -       admin                  -
command                        -1 container -       -                      connection
command|count                   2 local     -       -                      connection
command|docs                   -2 local     -       -                      connection
command|getkeys                -3 local     -       -                      connection
command|getkeysandflags        -3 local     -       -                      connection
command|help                    2 local     -       -                      connection
command|info                   -2 local     -       -                      connection
command|list                   -2 local     -       -                      connection
commandlog                     -2 container -       -                      -
commandlog|get                  4 refused   -       admin                  -
commandlog|help                 2 refused   -       -                      -
commandlog|len                  3 refused   -       admin                  -
commandlog|reset                3 refused   -       admin                  -
config                         -2 container -       -                      -
config|get                     -3 local     -       admin                  -
config|help                     2 local     -       -                      -
config|resetstat                2 local     -       admin                  -
config|rewrite                  2 refused   -       admin                  -
config|set                     -4 refused   -       admin                  -
debug                          -2 refused   -       admin                  -
failover                       -1 refused   -       admin                  -
flushall                       -1 local     -       write                  keyspace,dangerous
flushdb                        -1 local     -       write                  keyspace,dangerous
info                           -1 local     -       -                      dangerous
lastsave                        1 local     -       fast                   admin,dangerous
latency                        -2 container -       -                      -
latency|doctor                  2 local     -       admin                  -
latency|graph                   3 local     -       admin                  -
latency|help                    2 local     -       -                      -
latency|histogram              -2 local     -       admin                  -
latency|history                 3 local     -       admin                  -
latency|latest                  2 local     -       admin                  -
latency|reset                  -2 local     -       admin                  -
lolwut                         -1 local     -       readonly,fast          -
memory                         -2 container -       -                      -
memory|doctor                   2 local     -       -                      -
memory|help                     2 local     -       -                      -
memory|malloc-stats             2 local     -       -                      -
memory|purge                    2 local     -       -                      -
memory|stats                    2 local     -       -                      -
memory|usage                   -3 forward   2       readonly               -
module                         -2 container -       -                      -
module|help                     2 local     -       -                      -
module|list                     2 local     -       admin                  -
module|load                    -3 refused   -       admin                  -
module|loadex                  -3 refused   -       admin                  -
module|unload                   3 refused   -       admin                  -
monitor                         1 barrier   -       admin                  -
psync                          -3 refused   -       admin                  -
replconf                       -1 refused   -       admin                  -
replicaof                       3 refused   -       admin                  -
role                            1 local     -       fast                   admin,dangerous
save                            1 refused   -       admin                  -
shutdown                       -1 refused   -       admin                  -
slaveof                         3 refused   -       admin                  -
slowlog                        -2 container -       -                      -
slowlog|get                    -2 local     -       admin                  -
slowlog|help                    2 local     -       -                      -
slowlog|len                     2 local     -       admin                  -
slowlog|reset                   2 local     -       admin                  -
swapdb                          3 refused   -       write,fast             keyspace,dangerous
sync                            1 refused   -       admin                  -
time                            1 local     -       fast                   -
wait                            3 barrier   -       -                      connection
waitaof                         4 barrier   -       blocking               connection
"""

# Reads that may not be sent a second time: PFCOUNT may write a cached count, a cursor belongs to
# the node that gave it.
_NOT_REPEATABLE = {b"pfcount", b"hscan", b"sscan", b"zscan"}

# Replies that carry the names of keys, NOGROUP errors included.
_NAMES_IN_REPLY = {
    b"lmpop", b"zmpop", b"xread", b"xreadgroup",
    b"xpending", b"xclaim", b"xautoclaim", b"xinfo|consumers",
    b"xgroup|createconsumer", b"xgroup|delconsumer", b"xgroup|setid",
}  # fmt: skip

# A transaction is paid for by its commands: behind a MULTI that is refused they would run one by
# one. Who has no room left in its limits may still end what it has begun; so may it say who else it
# is, and leave.
_FREE = {b"multi", b"exec", b"discard", b"unwatch"}

# Redis pauses with writes whatever may have to be replicated, without being flagged a write.
_PAUSED_WITH_WRITES = {b"exec", b"publish", b"spublish", b"pfcount"}

# How commands refuse a number of keys. Scripts take 0 of them.
_SCRIPT_COUNT = errors.NEGATIVE_KEYS, errors.TOO_MANY_KEYS
_COUNT_ERRORS: Mapping[bytes, CountErrors] = {
    b"msetex": CountErrors(errors.MSETEX_NUMKEYS, errors.MSETEX_NUMKEYS, errors.MSETEX_PAIRS),
    b"sintercard": CountErrors(errors.NUMKEYS, errors.NUMKEYS, errors.TOO_MANY_KEYS),
    **{
        name: CountErrors(errors.NOT_AN_INTEGER, errors.no_input_key(name), errors.SYNTAX)
        for name in (
            b"zdiff", b"zdiffstore", b"zinter", b"zintercard", b"zinterstore", b"zunion",
            b"zunionstore",
        )
    },
    **dict.fromkeys(
        (b"eval", b"eval_ro", b"evalsha", b"evalsha_ro"),
        CountErrors(errors.NOT_AN_INTEGER, *_SCRIPT_COUNT),
    ),
    **dict.fromkeys(
        (b"fcall", b"fcall_ro"),
        CountErrors(errors.BAD_NUMBER_OF_KEYS, *_SCRIPT_COUNT),
    ),
}  # fmt: skip
# LMPOP, ZMPOP, their blocking forms, and commands that are no part of Redis.
_OTHER_COUNT_ERRORS = CountErrors(errors.NUMKEYS, errors.NUMKEYS, errors.SYNTAX)

_FAMILY_OF_GROUP: Mapping[str, str] = {
    "bitmap": "string", "hyperloglog": "string", "sortedset": "zset", "geo": "zset",
    "keyspace": "generic", "scripting": "generic", "pubsub": "generic", "transaction": "generic",
    "string": "string", "hash": "hash", "list": "list", "set": "set", "stream": "stream",
}  # fmt: skip


def _keys(text: str) -> Keys:
    """Return the key rule that a cell of the column `keys` describes."""
    if text == "-":
        return Keys(KeyKind.NONE)
    if text in ("streams", "sort"):
        return Keys(KeyKind[text.upper()])
    if text == "geo":
        return Keys(KeyKind.GEORADIUS)
    if text.startswith("n"):
        count, _, step = text[1:].partition(":")
        first, _, extra = count.partition("+")
        return Keys(KeyKind.NUMKEYS, int(first), int(extra or 0), int(step or 1))
    numbers = [int(number) for number in text.split(":")]
    first_key = numbers[0]
    last = numbers[1] if len(numbers) > 1 else first_key
    return Keys(KeyKind.RANGE, first_key, last, numbers[2] if len(numbers) > 2 else 1)


def _parse(table: str) -> tuple[Row, ...]:
    rows = []
    for text in table.splitlines():
        if not text or text.startswith("#"):
            continue
        name, arity, path, keys, flags, groups = text.split()
        rows.append(
            Row(
                name=name.encode(),
                arity=int(arity),
                path=Path[path.upper()],
                keys=_keys(keys),
                flags=frozenset(flags.split(",")) - {"-"},
                groups=tuple(group for group in groups.split(",") if group != "-"),
            )
        )
    return tuple(rows)


def _family(row: Row) -> int:
    for group in row.groups:
        if group in _FAMILY_OF_GROUP:
            # SORT works on three types, so none of them is its family.
            generic = len(row.groups) > 2
            return FAMILIES.index("generic" if generic else _FAMILY_OF_GROUP[group])
    return FAMILIES.index("connection" if row.keys.kind is KeyKind.NONE else "generic")


def _refused_error(row: Row) -> bytes:
    """Return what a row that is not offered answers, or a container to a word without a row."""
    container, is_subcommand, word = row.name.partition(b"|")
    if row.path is Path.CONTAINER:
        return errors.unknown_subcommand(container, None)
    if is_subcommand:
        return errors.unknown_subcommand(container, word)
    return errors.unknown_command(row.name)


def _pause(row: Row) -> Pause:
    """Return which CLIENT PAUSE holds a command: what can end the pause is never held."""
    if row.write or row.name in _PAUSED_WITH_WRITES:
        return Pause.WRITE
    return Pause.NEVER if "connection" in row.groups else Pause.ALL


def _path(row: Row) -> Path:
    """Return what the data plane does with a row.

    A handler refuses what changes a cluster: in which words depends on the client's listener.
    """
    return Path.LOCAL if row.container == b"cluster" and not row.offered else row.path


def _count_errors(row: Row) -> CountErrors | None:
    if row.keys.kind is not KeyKind.NUMKEYS:
        return None
    return _COUNT_ERRORS.get(row.name, _OTHER_COUNT_ERRORS)


def _told(row: Row, line: bytes) -> bytes:
    """Return an error line as the command says it: EXEC always tells that it has discarded."""
    return errors.discarded(line) if row.name == b"exec" else line


def command(row: Row) -> Command:
    """Return a line as the data plane takes it."""
    plain_read = "readonly" in row.flags and "blocking" not in row.flags
    family = _family(row)
    effect = effects.effect(row.name)
    return Command(
        name=row.name,
        arity=row.arity,
        path=_path(row),
        keys=row.keys,
        write=row.write,
        repeatable=plain_read and row.name not in _NOT_REPEATABLE,
        unauthenticated="no_auth" in row.flags,
        free="no_auth" in row.flags or row.name in _FREE,
        names_in_reply=row.name in _NAMES_IN_REPLY,
        pause=_pause(row),
        family=family,
        arity_error=_told(row, errors.wrong_arity(row.name)),
        refused_error=_told(row, _refused_error(row)),
        count_errors=_count_errors(row),
        denied_error=_told(row, errors.no_command(row.name)),
        types=effects.types(row.name, FAMILIES[family]),
        makes=Makes.DECLARED if "module" in row.groups and row.write else effect.makes,
        time=effect.time,
        values=effect.values,
        members=effect.members,
        leaves=effects.leaves(row.name),
        grows=effects.GROWS.get(row.name, Grows.NOTHING),
        touches=effects.touches(row.name, FAMILIES[family]),
        looks_up=effects.looks_up(row.name),
    )


def added(name: str, keys: str, write: bool, arity: int | None) -> Row:
    """Return the row of a command that is no part of Redis, as `keys` of the table spells it.

    Raises ValueError for an arity that lets its keys be missing.
    """
    places = _keys(keys)
    # Up to a word that is counted from the end there must be one key at least.
    fewest = places.first - places.last if places.last < 0 else places.last + 1
    if arity is not None and abs(arity) < fewest:
        raise ValueError(f"its keys need {fewest} words, so the arity is at least {fewest}")
    if arity is not None and abs(arity) > MOST_WORDS:
        raise ValueError(f"no command has more than {MOST_WORDS} words")
    flags = frozenset(["write", "denyoom"] if write else ["readonly"])
    return Row(name.lower().encode(), arity or -fewest, Path.FORWARD, places, flags, ("module",))


def offered(name: str, arguments: int, more: bool, reads: bool) -> Row:
    """Return the row of a command that a script answers, with so many arguments or more."""
    arity = -(1 + arguments) if more else 1 + arguments
    flags = frozenset(["readonly"] if reads else ["write", "denyoom"])
    # Its keys stand in its run, behind its name, digest and their number.
    keys = Keys(KeyKind.RENDERED, 2)
    return Row(name.lower().encode(), arity, Path.LOCAL, keys, flags, ("module",))


def known(rows: Sequence[Command]) -> tuple[Row, ...]:
    """Return the lines of the rows of some rules: those of the table, and what was added."""
    return COMMANDS + tuple(_line(row) for row in rows[len(COMMANDS) :])


def _line(row: Command) -> Row:
    flags = frozenset(["write", "denyoom"] if row.write else ["readonly"])
    return Row(row.name, row.arity, row.path, row.keys, flags, ("module",))


def _by_category(rows: tuple[Row, ...]) -> dict[str, frozenset[bytes]]:
    names = sorted({category for row in rows for category in row.categories})
    return {name: frozenset(row.name for row in rows if name in row.categories) for name in names}


COMMANDS = _parse(TABLE)
# The same rows, in the same order, as the data plane takes them.
ROWS = tuple(command(row) for row in COMMANDS)
INDEX: Mapping[bytes, int] = {row.name: index for index, row in enumerate(COMMANDS)}
# ACL category, without the @, to the names of its commands and sub-commands.
CATEGORIES: Mapping[str, frozenset[bytes]] = _by_category(COMMANDS)
