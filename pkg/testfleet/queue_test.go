package testfleet

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"dandelion/pkg/id"
	"dandelion/pkg/keys"
	"dandelion/pkg/state/redistest"
	"dandelion/publisher"
)

// startOnRedis starts a fleet on a real Redis and returns a client, as other programs have it.
func startOnRedis(t *testing.T, o Options) (*Fleet, *redis.Client, keys.Publisher) {
	t.Helper()
	o.Redis = redistest.Start(t)
	opts, err := redis.ParseURL(o.Redis)
	if err != nil {
		t.Fatal(err)
	}
	client := redis.NewClient(opts)
	t.Cleanup(func() { client.Close() })
	f := Start(t, o)
	return f, client, keys.Publisher(f.Publisher.ID())
}

func (f *Fleet) awaitProcessed(client *redis.Client, key string) map[string]string {
	f.tb.Helper()
	var fields map[string]string
	f.Await("PROCESSED_FILES of "+key, func() bool {
		fields = client.HGetAll(f.tb.Context(), key).Val()
		return fields["MSG"] != ""
	})
	return fields
}

// TestTasksOfOtherPrograms: tasks come by RPUSH; good ones are placed and on record, bad ones on
// record with the reason, and none stops the loop (docs/protocol.md).
func TestTasksOfOtherPrograms(t *testing.T) {
	t.Parallel()
	f, client, k := startOnRedis(t, Options{Boxes: 3, Replicas: 2})
	dir := t.TempDir()
	good := filepath.Join(dir, "good file.bin")
	content := bytes.Repeat([]byte("good"), 50_000)
	if err := os.WriteFile(good, content, 0o600); err != nil {
		t.Fatal(err)
	}
	pipe := filepath.Join(dir, "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	push := func(task string) {
		if err := client.RPush(t.Context(), k.SendingQueue(), task).Err(); err != nil {
			t.Fatal(err)
		}
	}
	malformed := func(task string) string { return "/malformed/" + id.DigestOf([]byte(task)).Short() }
	bad := map[string]struct{ path, reason string }{
		`not JSON`:                       {malformed(`not JSON`), "malformed"},
		`{"TTL": 60, "note": "no path"}`: {malformed(`{"TTL": 60, "note": "no path"}`), "FILE_PATH"},
		`[1, 2]`:                         {malformed(`[1, 2]`), "malformed"},
		`{"FILE_PATH": "/a/ttl-null", "TTL": null}`:    {"/a/ttl-null", "TTL"},
		`{"FILE_PATH": "/a/ttl-negative", "TTL": -5}`:  {"/a/ttl-negative", "TTL"},
		`{"FILE_PATH": "../../etc/passwd", "TTL": 60}`: {"../../etc/passwd", "FILE_PATH"},
		`{"FILE_PATH": "` + dir + `/gone", "TTL": 60}`: {dir + "/gone", "file gone"},
		`{"FILE_PATH": "` + dir + `", "TTL": 60}`:      {dir, "not a regular file"},
		`{"FILE_PATH": "` + pipe + `", "TTL": 60}`:     {pipe, "not a regular file"},
	}
	for task := range bad {
		push(task)
	}
	push(fmt.Sprintf(`{"FILE_PATH": %q, "TTL": "600", "channel": "ch1", "n": 7}`, good))

	record := f.awaitProcessed(client, k.ProcessedFile(id.Path(good)))
	if record["MSG"] != "Success" || record["TTL"] != "600" || record["FILE_PATH"] != good || record["channel"] != "ch1" || record["n"] != "7" || !strings.HasPrefix(record["ID"], "box-") {
		t.Errorf("%v", record)
	}
	for task, want := range bad {
		if record := f.awaitProcessed(client, k.ProcessedFile(id.Path(want.path))); !strings.HasPrefix(record["MSG"], "Error: ") || !strings.Contains(record["MSG"], want.reason) {
			t.Errorf("%s: %v", task, record)
		}
	}
	var holders []redis.Z
	f.Await("two holders on record", func() bool {
		holders = client.ZRangeWithScores(t.Context(), k.Holders(id.Path(good), id.DigestOf(content)), 0, -1).Val()
		return len(holders) == 2
	})
	if time.Until(time.Unix(int64(holders[0].Score), 0)) < 9*time.Minute {
		t.Errorf("holders: %v", holders)
	}
	path := "/" + strings.TrimPrefix(strings.ReplaceAll(good, " ", "%20"), "/")
	urls := f.Locate(id.Path(path)).Holders()
	if len(urls) != 2 {
		t.Errorf("located at %v", urls)
	}
	for _, u := range urls {
		if status, body := f.Get(u); status != http.StatusOK || !bytes.Equal(body, content) {
			t.Errorf("%s: status %d, %d bytes", u, status, len(body))
		}
	}
	f.Await("both lists empty", func() bool {
		return client.LLen(t.Context(), k.SendingQueue()).Val()+client.LLen(t.Context(), k.Taken()).Val() == 0
	})
}

// TestTaskWaitsForBoxes: with no box a task is not lost, also over a restart of the publisher.
func TestTaskWaitsForBoxes(t *testing.T) {
	t.Parallel()
	f, client, k := startOnRedis(t, Options{Boxes: 1})
	f.Boxes[0].Stop()
	f.AwaitBoxes(0)
	name := filepath.Join(t.TempDir(), "file.bin")
	if err := os.WriteFile(name, []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := client.RPush(t.Context(), k.SendingQueue(), fmt.Sprintf(`{"FILE_PATH": %q, "TTL": 600}`, name)).Err(); err != nil {
		t.Fatal(err)
	}
	f.Await("the task is taken", func() bool { return client.LLen(t.Context(), k.Taken()).Val() == 1 })
	f.Publisher.Stop()
	if n := client.LLen(t.Context(), k.Taken()).Val(); n != 1 {
		t.Fatalf("%d unfinished tasks on record after the stop", n)
	}
	f.Publisher.Start()
	f.Boxes[0].Start()
	if record := f.awaitProcessed(client, k.ProcessedFile(id.Path(name))); record["MSG"] != "Success" {
		t.Errorf("%v", record)
	}
}

// TestRecordsInRedis: what other programs read of live segments, boxes and the ranking.
func TestRecordsInRedis(t *testing.T) {
	t.Parallel()
	f, client, k := startOnRedis(t, Options{Boxes: 3, Replicas: 2})
	e := f.Encoder()
	e.Write(2)
	s := e.Segments[1]
	f.holders(s, 2)
	f.Await("HOLDERS", func() bool { return client.ZCard(t.Context(), k.Holders(s.Path(), s.Digest())).Val() == 2 })
	if record := f.awaitProcessed(client, k.ProcessedFile(s.Path())); record["MSG"] != "Success" {
		t.Errorf("%v", record)
	}
	for _, key := range []string{k.Holders(s.Path(), s.Digest()), k.ProcessedFile(s.Path())} {
		if ttl := client.TTL(t.Context(), key).Val(); ttl <= 0 {
			t.Errorf("%s never expires: %v", key, ttl)
		}
	}
	f.Await("BOX_RANKING and BOX_LIST", func() bool {
		return client.ZCard(t.Context(), k.BoxRanking()).Val() == 3 && client.SCard(t.Context(), k.BoxList()).Val() == 3
	})
	box := f.Boxes[0].ID()
	if fields := client.HGetAll(t.Context(), k.Search(box)).Val(); fields["ID"] != string(box) || fields["CONNECT_WS"] == "" {
		t.Errorf("SEARCH:<box>: %v", fields)
	}
	entrance := keys.Entrance(f.Entrances[0].ID())
	if n := client.ZCard(t.Context(), entrance.BoxSet()).Val(); n != 3 {
		t.Errorf("BOX_SET has %d boxes", n)
	}
	if fields := client.HGetAll(t.Context(), entrance.Exchange(box)).Val(); fields["CPU-NUM"] == "" {
		t.Errorf("EXCHANGE:<box>: %v", fields)
	}
}

func (f *Fleet) upload(name, query string, content []byte) (status int, u publisher.Upload) {
	f.tb.Helper()
	resp, err := http.Post(f.Publisher.URL()+"/api/v1/uploads?name="+name+query, "application/octet-stream", bytes.NewReader(content))
	if err != nil {
		f.tb.Fatal(err)
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	_ = json.Unmarshal(body, &u)
	return resp.StatusCode, u
}

func TestUpload(t *testing.T) {
	t.Parallel()
	f := Start(t, Options{Boxes: 2, Publisher: func(c *publisher.Config) { c.MaxUpload = 2_000_000 }})
	content := bytes.Repeat([]byte("upload"), 100_000)
	status, u := f.upload("a%20film.mp4", "&ttl=1h", content)
	if status != http.StatusCreated || !u.Placed || u.Size != int64(len(content)) || u.Digest != id.DigestOf(content).String() || u.TTL != 3600 {
		t.Fatalf("%d: %+v", status, u)
	}
	resp, err := http.Get(u.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, _ := io.ReadAll(resp.Body); !bytes.Equal(body, content) || resp.Request.URL.Host == f.Publisher.Addr().String() {
		t.Errorf("%d bytes from %s", len(body), resp.Request.URL.Host)
	}
	for query, want := range map[string]int{
		"x&ttl=soon": http.StatusBadRequest, "x&ttl=-1s": http.StatusBadRequest, "": http.StatusBadRequest, "..%2F..%2Fetc%2Fpasswd": http.StatusBadRequest,
	} {
		if status, _ := f.upload(query, "", content); status != want {
			t.Errorf("?name=%s answered %d, want %d", query, status, want)
		}
	}
	if status, _ := f.upload("large", "", make([]byte, 3_000_000)); status != http.StatusRequestEntityTooLarge {
		t.Errorf("a file above the limit: %d", status)
	}
	// With both boxes gone the origin still has it.
	for _, b := range f.Boxes {
		b.Stop()
	}
	f.AwaitBoxes(0)
	if status, body := f.Get(u.URL); status != http.StatusOK || !bytes.Equal(body, content) {
		t.Errorf("from the origin: %d, %d bytes", status, len(body))
	}
}

// TestUploadOutlivesItsBoxes: a longer TTL asked for later counts, a restart of the publisher
// forgets nothing, and a box that goes is replaced.
func TestUploadOutlivesItsBoxes(t *testing.T) {
	t.Parallel()
	f := Start(t, Options{Boxes: 3, Replicas: 2})
	content := []byte("a file")
	if status, _ := f.upload("f", "&ttl=30s", content); status != http.StatusCreated {
		t.Fatalf("status %d", status)
	}
	start := time.Now()
	status, u := f.upload("f", "&ttl=2h", content)
	if status != http.StatusCreated || u.TTL != 7200 {
		t.Fatalf("status %d, %+v", status, u)
	}
	expires := func(u string) time.Duration {
		resp, err := http.Get(u)
		if err != nil {
			return 0
		}
		defer resp.Body.Close()
		age, _ := time.ParseDuration(strings.TrimPrefix(resp.Header.Get("Cache-Control"), "public, max-age=") + "s")
		return age
	}
	long := func() (urls []string) {
		for _, h := range f.Locate(u.Path).Holders() {
			if expires(h) > time.Hour {
				urls = append(urls, h)
			}
		}
		return urls
	}
	f.Await("two holders for two hours", func() bool { return len(long()) == 2 })

	f.Publisher.Stop()
	f.Publisher.Start()
	f.AwaitBoxes(3)
	if status, u := f.upload("f", "&ttl=1h", content); status != http.StatusCreated || !u.Placed {
		t.Errorf("uploaded again after a restart: %d, %+v", status, u)
	}
	gone := long()[0]
	for _, b := range f.Boxes {
		if strings.Contains(gone, b.Link.Addr()) {
			b.Stop()
		}
	}
	f.AwaitBoxes(2)
	f.Await("another box has taken the place", func() bool { return len(long()) == 2 })
	t.Logf("after %v", time.Since(start))
}
