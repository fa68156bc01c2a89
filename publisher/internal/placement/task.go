package placement

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"dandelion/pkg/id"
	"dandelion/pkg/wire"
)

// Limits of a task.
const (
	maxTask  = 64 << 10 // bytes
	maxExtra = 32       // other keys that are kept
)

// task is one entry of the queue.
type task struct {
	name  string // for PROCESSED_FILES, also when the rest cannot be read
	head  wire.FileHeader
	extra map[string]string
	local LocalFile
}

// parse reads a task: the FILE_PATH and TTL of a file's headers and any other keys.
func (q *Queue) parse(raw string) (task, error) {
	t := task{name: "/malformed/" + id.DigestOf([]byte(raw)).Short(), extra: map[string]string{}}
	if len(raw) > maxTask {
		return t, giveUp(GivenUpMalformed, fmt.Errorf("malformed: a task of %d bytes, at most %d are read", len(raw), maxTask))
	}
	var fields map[string]jsontext.Value
	if err := json.Unmarshal([]byte(raw), &fields, jsontext.AllowDuplicateNames(true)); err != nil {
		t.extra["TASK"] = strings.ToValidUTF8(raw[:min(len(raw), wire.MaxEcho)], "\uFFFD")
		return t, giveUp(GivenUpMalformed, fmt.Errorf("malformed: not a JSON object: %w", err))
	}
	for name, value := range fields {
		if name != "FILE_PATH" && len(t.extra) < maxExtra {
			t.extra[name] = plain(value)
		}
	}
	head, err := wire.ParseFileHeader([]byte(raw))
	t.head = head
	if path := plain(fields["FILE_PATH"]); path != "" && len(path) <= id.MaxPath {
		t.name = path
	}
	if err != nil {
		return t, giveUp(GivenUpMalformed, fmt.Errorf("malformed: %w", err))
	}
	t.name = string(head.Path)
	return t, nil
}

// plain is a JSON string's text, or the JSON itself.
func plain(v jsontext.Value) string {
	var s string
	if v.Kind() == '"' && json.Unmarshal(v, &s) == nil {
		return s
	}
	return string(v)
}

// open opens the regular file that the task names.
func (q *Queue) open(t *task) (*os.File, error) {
	name := q.LocalFile(t.head.Path)
	if name == "" {
		resolved, err := filepath.EvalSymlinks(string(t.head.Path))
		if err != nil {
			return nil, gone(err)
		}
		below := func(root string) bool {
			rel, err := filepath.Rel(root, resolved)
			return err == nil && filepath.IsLocal(rel)
		}
		if len(q.Roots) > 0 && !slices.ContainsFunc(q.Roots, below) {
			return nil, giveUp(GivenUpForbidden, fmt.Errorf("%s is below none of publisher.file_roots", t.head.Path))
		}
		name = resolved
	}
	// O_NONBLOCK: a named pipe must not hold the queue.
	file, err := os.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, gone(err)
	}
	info, err := file.Stat()
	if err != nil {
		file.Close()
		return nil, gone(err)
	}
	if !info.Mode().IsRegular() {
		file.Close()
		return nil, giveUp(GivenUpForbidden, fmt.Errorf("%s is not a regular file", t.head.Path))
	}
	t.local = LocalFile{Name: name, Modified: info.ModTime(), Size: info.Size()}
	return file, nil
}

// gone judges why a file cannot be opened. What may pass, such as too many open files or a
// disk that does not answer, is no reason to give the task up.
func gone(err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTDIR), errors.Is(err, syscall.ELOOP):
		return giveUp(GivenUpGone, fmt.Errorf("file gone: %w", err))
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.ENXIO), errors.Is(err, syscall.ENAMETOOLONG):
		return giveUp(GivenUpForbidden, err)
	}
	return later(err)
}
