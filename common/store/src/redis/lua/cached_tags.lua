-- The tags of a scope are in one hash until it outgrows the compact encoding, then in 16 more, then in 256 more. ARGV:
-- per tag its name, its bucket of 16 and its bucket of 256.
local known = {}
for at = 2, #ARGV, 3 do
    local tag = ARGV[at]
    known[#known + 1] = redis.call('HGET', b, tag) or redis.call('HGET', b .. ':' .. ARGV[at + 1], tag)
        or redis.call('HGET', b .. ':' .. ARGV[at + 2], tag) or ''
end
return known
