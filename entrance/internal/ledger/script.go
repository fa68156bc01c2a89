package ledger

import (
	"time"

	"github.com/redis/go-redis/v9"
)

// Both scripts touch keys of one box alone, which are in one slot, and write nothing before they have
// read all that can fail. Numbers are doubles in Lua: no sum passes 2^53−1.
//
// addLua adds fields to the hash of a day: add(key, ttl, most, fields, amounts). A field is new or
// counted up; when the hash has most fields, new ones go to <hour>|other||<kind>.
const addLua = `
local function add(key, ttl, most, fields, amounts)
  local room = most - redis.call('HLEN', key)
  local others = {}
  for from = 1, #fields, 500 do
    local to = math.min(from + 499, #fields)
    local had = redis.call('HMGET', key, unpack(fields, from, to))
    local set = {}
    for i = from, to do
      local was = had[i - from + 1]
      if not was and room <= 0 then
        local field = string.sub(fields[i], 1, 3) .. 'other||' .. string.match(fields[i], '[^|]*$')
        others[field] = (others[field] or 0) + amounts[i]
      else
        if not was then room = room - 1 end
        set[#set + 1] = fields[i]
        set[#set + 1] = string.format('%.0f', math.min((tonumber(was or 0) or 0) + amounts[i], 9007199254740991))
      end
    end
    if #set > 0 then redis.call('HSET', key, unpack(set)) end
  end
  for field, amount in pairs(others) do
    local was = redis.call('HGET', key, field)
    redis.call('HSET', key, field, string.format('%.0f', math.min((tonumber(was or 0) or 0) + amount, 9007199254740991)))
  end
  redis.call('EXPIRE', key, ttl)
end
`

// markedScript counts a numbered batch, once.
//
// KEYS: MARKS, then days. ARGV: source, seq, now, seconds that MARKS lives, boots of the box to keep,
// fields of a day, "1" to count only where MARKS exists; bytes and deliveries dropped by the sender so far and the
// prefix of the fields where they are added, in the first day; boots of publishers to keep, sources with which
// MARKS is full: then it forgets those that were not used for longest; then for each day the seconds that it lives, how many fields, and each field with its amount. It returns 1: counted, 0: was counted
// before, -1: there are no MARKS.
var markedScript = redis.NewScript(addLua + `
local marks, source, seq = KEYS[1], ARGV[1], tonumber(ARGV[2])
if ARGV[7] == '1' and redis.call('EXISTS', marks) == 0 then return -1 end
local dropped_bytes, dropped_count = 0, 0
local mark = redis.call('HGET', marks, source)
if mark then
  local last, when, bytes, count = string.match(mark, '^(%d+) (%d+) (%d+) (%d+)$')
  if last then
    if tonumber(last) >= seq then return 0 end
    dropped_bytes, dropped_count = tonumber(bytes), tonumber(count)
  end
end
for i = 2, #KEYS do redis.call('HLEN', KEYS[i]) end -- fails here if at all

if not mark and redis.call('HLEN', marks) >= tonumber(ARGV[12]) then
  local kinds = {{}, {}}
  local all = redis.call('HGETALL', marks)
  for i = 1, #all, 2 do
    local of = kinds[string.sub(all[i], 1, 10) == 'publisher-' and 2 or 1]
    of[#of + 1] = {all[i], tonumber(string.match(all[i + 1], '^%d+ (%d+)') or 0)}
  end
  for kind, most in ipairs({tonumber(ARGV[5]), tonumber(ARGV[11])}) do
    local of = kinds[kind]
    table.sort(of, function(a, b) return a[2] < b[2] end)
    for i = 1, #of - most do redis.call('HDEL', marks, of[i][1]) end
  end
end
local bytes, count = math.max(dropped_bytes, tonumber(ARGV[8])), math.max(dropped_count, tonumber(ARGV[9]))
redis.call('HSET', marks, source, string.format('%.0f %s %.0f %.0f', seq, ARGV[3], bytes, count))
redis.call('EXPIRE', marks, ARGV[4])

local most, at = tonumber(ARGV[6]), 13
for k = 2, #KEYS do
  local fields, amounts = {}, {}
  if k == 2 and count > dropped_count then
    fields, amounts = {ARGV[10] .. 'dn'}, {count - dropped_count}
  end
  if k == 2 and bytes > dropped_bytes then
    fields[#fields + 1] = ARGV[10] .. 'db'
    amounts[#amounts + 1] = bytes - dropped_bytes
  end
  local n = tonumber(ARGV[at + 1])
  for i = 1, n do
    fields[#fields + 1] = ARGV[at + 2 * i]
    amounts[#amounts + 1] = tonumber(ARGV[at + 2 * i + 1])
  end
  if #fields > 0 then add(KEYS[k], ARGV[at], most, fields, amounts) end
  at = at + 2 + 2 * n
end
return 1
`)

// keyedScript counts deliveries that have no number, each once by its key.
//
// KEYS: MARKS, SEEN, the day. ARGV: now, seconds that MARKS lives, seconds that a key is remembered, how many
// are, fields of a day, seconds that the day lives; then for each delivery its key, the prefix of its
// fields, its bytes, and "1" where it failed. It returns how many were new, and their bytes.
var keyedScript = redis.NewScript(addLua + `
local marks, seen, day, now = KEYS[1], KEYS[2], KEYS[3], ARGV[1]
redis.call('HLEN', day) -- fails here if at all
redis.call('HSET', marks, 'keys', '0 ' .. now .. ' 0 0')
redis.call('EXPIRE', marks, ARGV[2])
local fields, amounts, at = {}, {}, {}
local function count(field, amount)
  local i = at[field]
  if not i then
    i = #fields + 1
    at[field], fields[i], amounts[i] = i, field, 0
  end
  amounts[i] = amounts[i] + amount
end
local new, total = 0, 0
for i = 7, #ARGV, 4 do
  if redis.call('ZADD', seen, 'NX', now, ARGV[i]) == 1 then
    local prefix, bytes = ARGV[i + 1], tonumber(ARGV[i + 2])
    new, total = new + 1, total + bytes
    count(prefix .. 'n', 1)
    if bytes > 0 then count(prefix .. 'b', bytes) end
    if ARGV[i + 3] == '1' then
      count(prefix .. 'fn', 1)
      if bytes > 0 then count(prefix .. 'fb', bytes) end
    end
  end
end
if new > 0 then
  redis.call('ZREMRANGEBYSCORE', seen, '-inf', tonumber(now) - tonumber(ARGV[3]))
  redis.call('ZREMRANGEBYRANK', seen, 0, -(tonumber(ARGV[4]) + 1))
  redis.call('EXPIRE', seen, ARGV[3])
  add(day, ARGV[6], tonumber(ARGV[5]), fields, amounts)
end
return {new, string.format('%.0f', total)}
`)

// Bounds of what is kept for one box, and for how long.
const (
	boxBoots       = 64  // boots of the box of which the last batch is known, at least
	publisherBoots = 192 // of publishers
	fullMarks      = 320 // of both: then they are cut to these, which is rare because it is dear
	fieldsPerDay   = 4096
	// Redirects make no new fields beyond half of them: publishers must not crowd out what the box says.
	redirectFields = fieldsPerDay / 2
	seenFor        = 10 * time.Minute // twice the report interval of an old box is 10 s
	seenKeys       = 20_000
	longestKey     = 64 // bytes of the key of an old box's delivery, behind log-
)
