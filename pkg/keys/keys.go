// Package keys declares every Redis key of Dandelion once: its name, type, owner and lifetime
// (docs/protocol.md). Other programs read and write these keys: names and types are an
// interface. The package builds names and knows nothing of Redis clients.
package keys

import (
	"dandelion/pkg/id"
)

// Key describes one kind of key, for documents and for the test that keeps them true.
type Key struct {
	Pattern  string
	Type     string
	Owner    string
	Lifetime string
	Holds    string
}

// All lists the keys.
var All = []Key{
	{"<entrance>:OWN_INFO", "hash", "entrance", "refreshed", "its ID, IP, PORT, TYPE and URL"},
	{"<entrance>:ENTRANCE_URLS", "set", "entrance, operators", "configured", "URLs of other entrances, never its own"},
	{"<entrance>:BOX_SET", "sorted set", "entrance", "swept", "box by expiry time of its lease, unix seconds"},
	{"<entrance>:EXCHANGE:<box>", "hash", "entrance", "deleted with the box", "its last exchange, flat"},
	{"<entrance>:ACCOUNTS", "sorted set", "entrance", "swept", "box by the last day that its accounts have, days since 1970"},
	{"{<entrance>:ACCOUNTS:<box>}:<yyyymmdd>", "hash", "entrance", "accounts_keep and a day", "sums of one day (UTC), by hour, publisher, stream and kind"},
	{"{<entrance>:ACCOUNTS:<box>}:MARKS", "hash", "entrance", "accounts_keep and two days", "by source of batches: SEQ of the last one counted, when (unix seconds), and what its sender dropped"},
	{"{<entrance>:ACCOUNTS:<box>}:SEEN", "sorted set", "entrance", "10 minutes", "keys of deliveries without TRAFFIC by when they were counted, unix seconds"},
	{"<box>:SELF_EXCHANGE", "hash", "box", "refreshed", "its own last report"},
	{"<box>:EXCHANGE:<peer>", "hash", "box", "expires", "what an entrance said of itself"},
	{"<box>:SUBSCRIBE:<publisher>", "hash", "box", "expires", "a publisher's accepted session"},
	{"<box>:EXPIRE_FILES", "sorted set", "box", "swept", "/<publisher>/<path> by expiry time"},
	{"<box>:TRAFFIC_FLOW:log-<uuid>", "hash", "box", "until acknowledged, bounded", "datetime, url, status, size of a delivery"},
	{"<publisher>:SELF_INFO", "hash", "publisher", "refreshed", "its ID, IP, TYPE, front URL, and RUN, which marks the last records that were written"},
	{"<publisher>:SEARCH:<box>", "hash", "publisher", "expires", "what SEARCH said of the box, flat"},
	{"<publisher>:BOX_RANKING", "sorted set", "publisher", "swept", "box by score, higher is better"},
	{"<publisher>:FILE:FILES_SENDING_QUEUE", "list", "other programs", "until done", "JSON tasks; anyone may RPUSH"},
	{"{<publisher>:FILE:FILES_SENDING_QUEUE}:TAKEN", "list", "publisher", "until done", "tasks taken and not finished yet"},
	{"<publisher>:FILE:BOX_LIST", "set", "publisher", "swept", "boxes that files may go to now"},
	{"<publisher>:FILE:PROCESSED_FILES:<path>", "hash", "publisher", "while a box holds it", "ID (first box), MSG, FILE_PATH, TTL, SHA256, SIZE and the task's other keys"},
	{"<publisher>:FILE:HOLDERS:<path>:<digest12>", "sorted set", "publisher", "with the file", "box by expiry time: who holds these bytes"},
}

// Entrance names the keys of an entrance.
type Entrance id.EntranceID

func (e Entrance) OwnInfo() string              { return string(e) + ":OWN_INFO" }
func (e Entrance) EntranceURLs() string         { return string(e) + ":ENTRANCE_URLS" }
func (e Entrance) BoxSet() string               { return string(e) + ":BOX_SET" }
func (e Entrance) Exchange(box id.BoxID) string { return string(e) + ":EXCHANGE:" + string(box) }
func (e Entrance) Accounts() string             { return string(e) + ":ACCOUNTS" }

// The accounts of one box are in one slot: what was counted and that it was change together.
func (e Entrance) AccountMarks(box id.BoxID) string { return e.account(box) + "MARKS" }
func (e Entrance) AccountSeen(box id.BoxID) string  { return e.account(box) + "SEEN" }

// AccountDay takes the day as yyyymmdd, UTC.
func (e Entrance) AccountDay(box id.BoxID, day string) string { return e.account(box) + day }

func (e Entrance) account(box id.BoxID) string {
	return "{" + string(e) + ":ACCOUNTS:" + string(box) + "}:"
}

// Box names the keys of a box.
type Box id.BoxID

func (b Box) SelfExchange() string               { return string(b) + ":SELF_EXCHANGE" }
func (b Box) Exchange(peer id.EntranceID) string { return string(b) + ":EXCHANGE:" + string(peer) }
func (b Box) Subscribe(p id.PublisherID) string  { return string(b) + ":SUBSCRIBE:" + string(p) }
func (b Box) ExpireFiles() string                { return string(b) + ":EXPIRE_FILES" }
func (b Box) TrafficFlow(uuid string) string     { return string(b) + ":TRAFFIC_FLOW:log-" + uuid }

// Publisher names the keys of a publisher.
type Publisher id.PublisherID

func (p Publisher) SelfInfo() string           { return string(p) + ":SELF_INFO" }
func (p Publisher) Search(box id.BoxID) string { return string(p) + ":SEARCH:" + string(box) }
func (p Publisher) BoxRanking() string         { return string(p) + ":BOX_RANKING" }
func (p Publisher) SendingQueue() string       { return string(p) + ":FILE:FILES_SENDING_QUEUE" }
func (p Publisher) BoxList() string            { return string(p) + ":FILE:BOX_LIST" }

// Taken is in the slot of SendingQueue, so that a task moves between them atomically.
func (p Publisher) Taken() string { return "{" + p.SendingQueue() + "}:TAKEN" }

func (p Publisher) ProcessedFile(path id.Path) string {
	return string(p) + ":FILE:PROCESSED_FILES:" + string(path)
}

func (p Publisher) Holders(path id.Path, d id.Digest) string {
	return string(p) + ":FILE:HOLDERS:" + string(path) + ":" + d.Short()
}
