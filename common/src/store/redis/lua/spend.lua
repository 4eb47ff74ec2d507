if redis.call('EXISTS', b) == 0 then return 0 end
spend(b, 2)
return 1
