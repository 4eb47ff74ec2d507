-- KEYS: the month's traffic of a machine, the request id. ARGV: bytes to add, TTL in seconds. Replies the sum.
if is_first(KEYS[2]) then redis.call('INCRBY', b, ARGV[2]) end
redis.call('EXPIRE', b, ARGV[3])
return redis.call('GET', b) or '0'
