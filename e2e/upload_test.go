//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/redis/go-redis/v9"

	"dandelion/pkg/id"
	"dandelion/pkg/keys"
	"dandelion/pkg/state/redistest"
	"dandelion/pkg/testnginx"
)

// upload hands a file in with `dandelion upload` and returns the URL that it prints.
func upload(t *testing.T, fleet *fleet, name string) string {
	t.Helper()
	status, stdout, stderr := run(t, patience, nil, program("dandelion"), "upload", "--publisher", fleet.publisher.url(), name)
	if status != 0 || stderr != "" {
		t.Fatalf("upload: status %d: %s", status, stderr)
	}
	return strings.TrimSpace(stdout)
}

// pathOf resolves a URI of a playlist and returns its path, unescaped.
func pathOf(t *testing.T, base, ref string) string {
	t.Helper()
	b, err := url.Parse(base)
	if err == nil {
		b, err = b.Parse(ref)
	}
	if err != nil {
		t.Fatal(err)
	}
	return b.Path
}

// pathBelow returns the FILE_PATH in a URL /<publisher>/<path>.
func pathBelow(t *testing.T, text, publisher string) string {
	t.Helper()
	path, ok := strings.CutPrefix(pathOf(t, text, ""), "/"+publisher)
	if !ok {
		t.Fatalf("%s is not below /%s/", text, publisher)
	}
	return path
}

// TestUpload: what the tool prints is a URL that sends its viewer to a box with the same bytes;
// an acknowledged upload survives the publisher's death.
func TestUpload(t *testing.T) {
	t.Parallel()
	fleet := newFleet(t, plan{})
	path, want := uploadRandom(t, fleet, 3_000_000)
	sameEverywhere(t, fleet, path, want, 2)
	to, err := redirected(t, fleet.publisher.url()+"/"+fleet.publisher.id+escaped(path))
	if err != nil || fleet.box(host(t, to)) == nil {
		t.Errorf("the printed URL does not lead to a box: %s, %v", to, err)
	}

	fleet.publisher.kill()
	fleet.publisher.start()
	fleet.awaitBoxes(3)
	// The task may not have been finished. Its file is then placed on the boxes that come first.
	sameEverywhere(t, fleet, path, want, 2, 3)

	status, _, stderr := run(t, soon, nil, program("dandelion"), "upload", "--publisher", fleet.publisher.url(), fleet.source, "/does/not/exist")
	if status != 1 || !strings.Contains(stderr, "not a regular file") || !strings.Contains(stderr, "/does/not/exist") {
		t.Errorf("upload of a directory and of nothing: status %d: %s", status, stderr)
	}
}

func escaped(path string) string { return (&url.URL{Path: path}).EscapedPath() }

// sameEverywhere waits until as many boxes hold a file as one of replicas says, and compares the
// bytes at each one's own URL.
func sameEverywhere(t *testing.T, fleet *fleet, path string, want []byte, replicas ...int) {
	t.Helper()
	var holders []string
	eventually(t, patience, func() (err error) {
		if holders, _, err = fleet.holders(path); err == nil && !slices.Contains(replicas, len(holders)) {
			err = fmt.Errorf("%s has %d holders, want %d", path, len(holders), replicas)
		}
		return err
	})
	for _, holder := range holders {
		got, _, err := get(t, holder)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %v, %d bytes, want the file's %d", holder, err, len(got), len(want))
		}
	}
}

// queue is the publisher's list of tasks as other programs use it.
type queue struct {
	t     *testing.T
	redis redis.UniversalClient
	keys  keys.Publisher
}

func newQueue(t *testing.T, fleet *fleet, redisURL string) *queue {
	t.Helper()
	options, err := redis.ParseURL(redisURL)
	if err != nil {
		t.Fatal(err)
	}
	client := redis.NewClient(options)
	t.Cleanup(func() { client.Close() })
	return &queue{t, client, keys.Publisher(fleet.publisher.id)}
}

func (q *queue) push(tasks ...string) {
	q.t.Helper()
	for _, task := range tasks {
		if err := q.redis.RPush(q.t.Context(), q.keys.SendingQueue(), task).Err(); err != nil {
			q.t.Fatal(err)
		}
	}
}

// waiting is how many tasks are queued or taken.
func (q *queue) waiting(ctx context.Context) (queued, taken int64, err error) {
	if queued, err = q.redis.LLen(ctx, q.keys.SendingQueue()).Result(); err == nil {
		taken, err = q.redis.LLen(ctx, q.keys.Taken()).Result()
	}
	return queued, taken, err
}

// recorded waits for PROCESSED_FILES of a path and returns its fields.
func (q *queue) recorded(path string) map[string]string {
	q.t.Helper()
	var fields map[string]string
	eventually(q.t, patience, func() (err error) {
		fields, err = q.redis.HGetAll(q.t.Context(), q.keys.ProcessedFile(id.Path(path))).Result()
		if err == nil && fields["MSG"] == "" {
			err = fmt.Errorf("%s is not on record: %v", path, fields)
		}
		return err
	})
	return fields
}

// TestQueue: tasks of other programs over a real Redis. Good files are placed and on record; each
// malformed one is on record with the reason and stops nothing.
func TestQueue(t *testing.T) {
	t.Parallel()
	redisURL := redistest.Start(t)
	fleet := newFleet(t, plan{redis: redisURL})
	q := newQueue(t, fleet, redisURL)
	dir := t.TempDir()
	files := map[string][]byte{}
	for i, size := range []int{0, 1, 100_000} {
		name := filepath.Join(dir, fmt.Sprintf("good-%d.ts", i))
		files[name] = bytes.Repeat([]byte{byte('a' + i)}, size)
		if err := os.WriteFile(name, files[name], 0o600); err != nil {
			t.Fatal(err)
		}
	}
	pipe := filepath.Join(dir, "pipe.ts")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	task := func(path, ttl string) string {
		return fmt.Sprintf(`{"FILE_PATH": %q, "TTL": %s, "SHOW": "news"}`, path, ttl)
	}
	bad := map[string][]string{ // by path: the task, and what its record must say
		filepath.Join(dir, "gone.ts"):        {task(filepath.Join(dir, "gone.ts"), "60"), "gone"},
		filepath.Join(dir, "null.ts"):        {task(filepath.Join(dir, "null.ts"), "null"), "TTL"},
		filepath.Join(dir, "negative.ts"):    {task(filepath.Join(dir, "negative.ts"), "-1"), "TTL"},
		filepath.Join(dir, "words.ts"):       {task(filepath.Join(dir, "words.ts"), `"soon"`), "TTL"},
		dir:                                  {task(dir, "60"), "not a regular file"},
		pipe:                                 {task(pipe, "60"), "not a regular file"},
		malformed("no JSON"):                 {"no JSON", "not a JSON object"},
		malformed(`{"TTL": 60}`):             {`{"TTL": 60}`, "FILE_PATH"},
		malformed(`[1, 2]`):                  {`[1, 2]`, "not a JSON object"},
		filepath.Join(dir) + "/../../../etc": {task(filepath.Join(dir)+"/../../../etc", "60"), ".."},
	}
	for _, b := range bad {
		q.push(b[0])
	}
	for name := range files {
		q.push(task(name, `"600"`))
	}
	for path, b := range bad {
		if fields := q.recorded(path); !strings.HasPrefix(fields["MSG"], "Error: ") || !strings.Contains(fields["MSG"], b[1]) {
			t.Errorf("task %s is on record as %q, want an error with %q", b[0], fields["MSG"], b[1])
		}
	}
	for name, want := range files {
		fields := q.recorded(name)
		if fields["MSG"] != "Success" || fields["FILE_PATH"] != name || fields["TTL"] != "600" || fields["SHOW"] != "news" || !strings.HasPrefix(fields["ID"], "box-") {
			t.Errorf("%s is on record as %v", name, fields)
		}
		sameEverywhere(t, fleet, name, want, 2)
		digest := id.DigestOf(want)
		holders, err := q.redis.ZRange(t.Context(), q.keys.Holders(id.Path(name), digest), 0, -1).Result()
		if err != nil || len(holders) != 2 {
			t.Errorf("%s has HOLDERS %s, %v, want two boxes", name, holders, err)
		}
	}
	eventually(t, soon, func() error {
		if queued, taken, err := q.waiting(t.Context()); err != nil || queued+taken > 0 {
			return fmt.Errorf("%d tasks are queued and %d taken: %v", queued, taken, err)
		}
		return nil
	})
}

func malformed(task string) string { return "/malformed/" + id.DigestOf([]byte(task)).Short() }

// TestQueueKill: the publisher dies while tasks wait for a box. When both are there, they are
// finished.
func TestQueueKill(t *testing.T) {
	t.Parallel()
	for _, redisKind := range []string{"server", "embedded"} {
		t.Run(redisKind, func(t *testing.T) {
			t.Parallel()
			p := plan{boxes: -1, replicas: 1}
			redisURL := ""
			if redisKind == "server" {
				redisURL = redistest.Start(t)
				p.redis = redisURL
			} else {
				addr := testnginx.FreeAddr(t)
				redisURL = "redis://" + addr + "/0"
				p.embedded = addr
			}
			fleet := newFleet(t, p)
			q := newQueue(t, fleet, redisURL)
			name := filepath.Join(t.TempDir(), "film.ts")
			want := bytes.Repeat([]byte("film "), 20_000)
			if err := os.WriteFile(name, want, 0o600); err != nil {
				t.Fatal(err)
			}
			// What another program wrote into the embedded state is durable within a second. The
			// acknowledged upload behind it says that it is.
			q.push(fmt.Sprintf(`{"FILE_PATH": %q, "TTL": 600}`, name))
			uploaded := uploadWaiting(t, fleet, name)
			eventually(t, soon, func() error {
				if _, taken, err := q.waiting(t.Context()); err != nil || taken < 2 {
					return fmt.Errorf("%d tasks are taken: %v", taken, err)
				}
				return nil
			})

			fleet.publisher.kill()
			fleet.publisher.start()
			fleet.addBox()
			fleet.awaitBoxes(1)
			sameEverywhere(t, fleet, uploaded, want, 1)
			sameEverywhere(t, fleet, name, want, 1)
			if fields := q.recorded(name); fields["MSG"] != "Success" {
				t.Errorf("on record as %v", fields)
			}
		})
	}
}

// uploadWaiting hands a file in while there is no box: the upload is taken, and the tool says that
// it waits.
func uploadWaiting(t *testing.T, fleet *fleet, name string) (path string) {
	t.Helper()
	status, stdout, stderr := run(t, patience, nil, program("dandelion"), "upload", "--publisher", fleet.publisher.url(), name)
	if status != 0 || !strings.Contains(stderr, "no box holds it yet") {
		t.Fatalf("upload without a box: status %d: %s", status, stderr)
	}
	return pathBelow(t, strings.TrimSpace(stdout), fleet.publisher.id)
}
