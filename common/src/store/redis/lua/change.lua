-- ARGV: from which control to which; answers what it is then, -1 where there is no such batch.
if redis.call('EXISTS', b) == 0 then return -1 end
local control = number(b, 'control')
if control ~= tonumber(ARGV[2]) then return control end
redis.call('HSET', b, 'control', ARGV[3])
return tonumber(ARGV[3])
