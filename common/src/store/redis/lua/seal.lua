if redis.call('EXISTS', b) == 0 then return 0 end
local time = now()
redis.call('HSETNX', b, 'sealed', text(time))
close(b, time)
return 1
