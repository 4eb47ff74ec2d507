-- KEYS: the account's permits. ARGV: holder, limit, in use, wanted, TTL. The same algorithm as the concurrency
-- allocator in Rust.
local TURN = 1000
local time = now()
local me, limit, using, wanted = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local mine = {held = 0, hungry = 0, since = 0}
local others, count, contended, starving, oldest = 0, 0, false, false, true
local waiting, since = {}, {}
local all = redis.call('HGETALL', b)
for at = 1, #all, 2 do
    local held, ends, hungry, from = string.match(all[at + 1], '^(%d+)|(%d+)|(%d+)|(%d+)$')
    held, ends, hungry, from = tonumber(held), tonumber(ends), tonumber(hungry), tonumber(from)
    if ends <= time then
        redis.call('HDEL', b, all[at])
    elseif all[at] == me then
        mine = {held = held, hungry = hungry, since = from}
    else
        count = count + 1
        others = others + held
        if held > 0 then since[#since + 1] = from end
        if hungry > 0 then
            contended = true
            waiting[#waiting + 1] = hungry
            if held == 0 then starving = true end
        end
    end
end
if wanted == 0 and using == 0 then
    redis.call('HDEL', b, me)
    return {0, 0}
end
local fair = math.max(math.floor(limit / (count + 1)), 1)
local want = math.min(wanted, limit)
if contended then want = math.min(want, fair) end
for _, from in ipairs(since) do
    if from < mine.since then oldest = false end
end
if starving and count + 1 > limit and mine.since > 0 and time - mine.since >= TURN and oldest then want = 0 end
local has = math.max(mine.held, using)
local ahead = 0
for _, hungry in ipairs(waiting) do
    if mine.hungry == 0 or hungry < mine.hungry then ahead = ahead + 1 end
end
local room = math.max(limit - others - has - ahead, 0)
local may = math.min(want, has + room)
local held = math.max(may, using)
local hungry, from = 0, 0
if may < math.min(wanted, limit, fair) then hungry = mine.hungry > 0 and mine.hungry or time end
if held > 0 then from = mine.since > 0 and mine.since or time end
redis.call('HSET', b, me, table.concat({text(held), text(time + tonumber(ARGV[6])), text(hungry), text(from)}, '|'))
redis.call('PEXPIRE', b, tonumber(ARGV[6]) + 60000)
return {may, contended and 1 or 0}
