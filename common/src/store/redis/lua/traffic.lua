-- KEYS: what a machine has moved in a month, the request. ARGV: how much more, for how many seconds it is kept. Answers the sum.
if is_first(KEYS[2]) then redis.call('INCRBY', b, ARGV[2]) end
redis.call('EXPIRE', b, ARGV[3])
return redis.call('GET', b) or '0'
