-- ARGV: the part of the batch that it is noted in, the field, and the note, which is kept for as long as the batch.
if redis.call('EXISTS', b) == 0 then return 0 end
local key = b .. ARGV[2]
redis.call('HSET', key, ARGV[3], ARGV[4])
local left = redis.call('PTTL', b)
if left > 0 then redis.call('PEXPIRE', key, left) end
return 1
