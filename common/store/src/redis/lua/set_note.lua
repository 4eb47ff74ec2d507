-- ARGV: suffix of the batch's hash, field, value. The value is kept as long as the batch.
if redis.call('EXISTS', b) == 0 then return 0 end
local key = b .. ARGV[2]
redis.call('HSET', key, ARGV[3], ARGV[4])
local left = redis.call('PTTL', b)
if left > 0 then redis.call('PEXPIRE', key, left) end
return 1
