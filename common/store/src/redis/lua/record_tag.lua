-- Records a target tag if the writer still holds its lease. KEYS: the lease; the scope, the index of scopes, the scope
-- of partial images; the hash of the pair of source and target, the source's targets, the target's sources, all
-- sources; then for other sources the first two of these. ARGV: holder, token; a tag that is complete now and its
-- buckets, or empty; source and target, and the tag with its buckets and record, or empty; the scope's name and TTL;
-- the number of tags to cache, and these as for `cache_tags`; then the other sources. First reply: 1 recorded, 0 lease
-- lost; then the target's sources.
if not is_lease_held(b, ARGV[2], ARGV[3]) then return {0, {}} end
local complete, from, to, tag = ARGV[4], ARGV[7], ARGV[8], ARGV[9]
local last = 15 + 4 * tonumber(ARGV[15])
local sources = {}
if tag ~= '' then
    record_provenance(KEYS[5], KEYS[6], KEYS[7], KEYS[8], from, to, 9)
    -- A tag has one provenance record.
    for at = 9, #KEYS, 2 do
        local other = ARGV[last + 1 + (at - 9) / 2]
        forget_provenance(KEYS[at], KEYS[at + 1], KEYS[7], KEYS[8], other, to, 9, 9)
    end
    sources = redis.call('SMEMBERS', KEYS[7])
end
if complete ~= '' then
    for _, key in ipairs({KEYS[4], KEYS[4] .. ':' .. ARGV[5], KEYS[4] .. ':' .. ARGV[6]}) do
        redis.call('HDEL', key, complete)
    end
end
if last > 15 then cache_tags(KEYS[2], KEYS[3], ARGV[13], ARGV[14], 16, last) end
return {1, sources}
