"""The scripts that change a collection in Redis."""

from samclip_core.io import checkpoint

KINDS = "model", "vectors", "ids", "counts", "objects"
"""The keys of a collection, in the order of the scripts."""

# The script adds one item atomically and checks the model in the same step, because a service with
# another model may just have re-created the collection. It adds one item per call, because Redis
# serves no other client during a script, and an insertion into the graph takes about 1 ms. It
# removes an item before it adds it again, because Redis 8.0 neither logs nor replicates a VADD that
# changes an element.
UPSERT = """
local name, digest, dimension, dtype, id, vector, attributes, count, objects = unpack(ARGV)
if redis.call('HSETNX', KEYS[1], 'digest', digest) == 1 then
    redis.call('HSET', KEYS[1], 'dimension', dimension, 'dtype', dtype)
end
local found, found_dtype, word = unpack(redis.call('HMGET', KEYS[1], 'digest', 'dtype', 'word'))
found_dtype = found_dtype or ''  -- false in a collection without a recorded precision
if word then  -- another process has just made it in shards
    return {found, found_dtype, -1}
end
local added = 0
if (found == digest or found == string.sub(digest, 1, DIGITS)) and found_dtype == dtype then
    redis.call('HSET', KEYS[1], 'digest', digest)
    added = redis.call('ZADD', KEYS[3], 0, id)
    if added == 0 then
        redis.call('VREM', KEYS[2], id)
    end
    redis.call('VADD', KEYS[2], 'FP32', vector, id, 'NOQUANT', 'SETATTR', attributes)
    if KEYS[6] then
        redis.call('SADD', KEYS[6], name)
    end
    local before = redis.call('HGET', KEYS[4], id) or 0
    redis.call('HDEL', KEYS[4], id)
    redis.call('HDEL', KEYS[5], id)
    if count ~= '0' then
        redis.call('HSET', KEYS[4], id, count)
        redis.call('HSET', KEYS[5], id, objects)
    end
    redis.call('HINCRBY', KEYS[1], 'objects', count - before)
end
return {redis.call('HGET', KEYS[1], 'digest'), found_dtype, added}
""".replace("DIGITS", str(checkpoint.DIGITS))

# The script deletes one item atomically, with its objects.
DELETE = """
local id = ARGV[1]
redis.call('ZREM', KEYS[3], id)
local deleted = redis.call('VREM', KEYS[2], id)
local count = redis.call('HGET', KEYS[4], id)
if count then
    redis.call('HDEL', KEYS[4], id)
    redis.call('HDEL', KEYS[5], id)
    redis.call('HINCRBY', KEYS[1], 'objects', -count)
end
return deleted
"""

# The script records the model of a collection in shards, whose items are in other slots.
REGISTER = """
local digest, dimension, dtype, shards, word = unpack(ARGV)
if redis.call('HSETNX', KEYS[1], 'digest', digest) == 1 then
    redis.call('HSET', KEYS[1], 'dimension', dimension, 'dtype', dtype)
    redis.call('HSET', KEYS[1], 'shards', shards, 'word', word)
end
local found, found_dtype = unpack(redis.call('HMGET', KEYS[1], 'digest', 'dtype'))
if found == string.sub(digest, 1, DIGITS) and found_dtype == dtype then
    redis.call('HSET', KEYS[1], 'digest', digest)
end
return redis.call('HMGET', KEYS[1], 'digest', 'dtype', 'shards', 'word')
""".replace("DIGITS", str(checkpoint.DIGITS))
