package stream

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"dandelion/pkg/id"
	"dandelion/pkg/playlist"
)

// What is in state.json: the model, as it must be found again after a crash at any moment.
// Every entry in it counts as shown then, for some were.
type stateFile struct {
	Version    int              `json:"version"` // of this layout
	Boot       string           `json:"boot"`    // of the machine, see bootID
	Floor      floor            `json:"floor,omitzero"`
	IndexPath  string           `json:"index_path,omitempty"`
	Index      string           `json:"index,omitempty"` // the encoder's multivariant playlist
	Alone      id.RenditionName `json:"alone,omitempty"` // whose playlist the index is
	Renditions []renditionState `json:"renditions"`
	Assets     []assetState     `json:"assets,omitempty"`
}

const stateVersion = 1

type renditionState struct {
	Path            string              `json:"path"`
	Name            id.RenditionName    `json:"name"`
	Listed          bool                `json:"listed"`
	First           uint64              `json:"first"`
	Discontinuities uint64              `json:"discontinuities"`
	TargetDuration  int                 `json:"target_duration"`
	Protocol        int                 `json:"protocol"`
	Want            int                 `json:"want"`
	Ended           bool                `json:"ended,omitempty"`
	Start           uint64              `json:"start,omitempty"` // of the playlist when this was written
	Target          uint64              `json:"target"`
	Met             bool                `json:"met"`
	Epoch           uint64              `json:"epoch"`
	EpochFirst      uint64              `json:"epoch_first"`
	Next            uint64              `json:"next"`
	ListFirst       uint64              `json:"list_first"`
	Started         bool                `json:"started"`
	Broken          bool                `json:"broken,omitempty"`
	Entries         []entry             `json:"entries"`
	Assets          map[string]assetRef `json:"assets,omitempty"`
}

type assetState struct {
	Path   id.Path   `json:"path"`
	Digest id.Digest `json:"digest"`
	Size   int64     `json:"size"`
}

func (s *Stream) statePath() string { return filepath.Join(s.cfg.Dir, "state.json") }

// save writes the state if it is newer than what is on disk, and then shows what waited for
// that. It reports false when it could not and must be called again.
func (s *Stream) save(now time.Time) bool {
	s.mu.Lock()
	version := s.version
	if version == s.saved {
		s.mu.Unlock()
		return true
	}
	state, promises := s.snapshot()
	s.mu.Unlock()

	if err := s.write(s.statePath(), state); err != nil {
		s.report(problemState, fmt.Sprintf("the stream's state cannot be written, so nothing new is shown: %v", err))
		return false
	}
	s.setProblem(problemState, "")
	s.mu.Lock()
	defer s.mu.Unlock()
	s.saved = version
	for r, p := range promises {
		r.onDisk = p
	}
	s.show(now)
	return true
}

func (s *Stream) snapshot() (*stateFile, map[*rendition]promise) {
	state := &stateFile{Version: stateVersion, Boot: bootID(), Floor: s.floor, Renditions: []renditionState{}}
	if s.index.multi != nil {
		state.IndexPath, state.Index = s.index.path, string(s.index.multi.AppendTo(nil))
	}
	if s.index.alone != nil {
		state.Alone = s.index.alone.name
	}
	promises := map[*rendition]promise{}
	for _, r := range s.renditions {
		promises[r] = promise{target: r.target, forced: r.forced, targetDuration: r.targetDuration, version: r.version, ended: r.ended}
		rs := renditionState{
			Path: r.path, Name: r.name, Listed: r.listed, First: r.first, Discontinuities: r.discontinuities,
			TargetDuration: r.targetDuration, Protocol: r.version, Want: r.want, Ended: r.ended, Start: r.number(r.start), Target: r.target,
			Met: r.met, Epoch: r.epoch, EpochFirst: r.epochFirst, Next: r.next, ListFirst: r.listFirst, Started: r.started, Broken: r.broken,
			Entries: make([]entry, len(r.entries)), Assets: map[string]assetRef{},
		}
		for i, e := range r.entries {
			rs.Entries[i] = *e
		}
		for key, ref := range r.assets {
			rs.Assets[key] = ref
		}
		state.Renditions = append(state.Renditions, rs)
	}
	for path, held := range s.files {
		if held.asset {
			state.Assets = append(state.Assets, assetState{Path: path, Digest: held.digest, Size: held.size})
		}
	}
	return state, promises
}

// writeState replaces the file so that after a crash it is the old or the new one, whole.
func writeState(name string, state *stateFile) error {
	b, err := json.Marshal(state)
	if err != nil {
		return err
	}
	tmp, err := os.OpenFile(name+".tmp", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer tmp.Close()
	if _, err := tmp.Write(b); err != nil {
		return err
	}
	if err := tmp.Sync(); err != nil {
		return err
	}
	if err := os.Rename(name+".tmp", name); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(name))
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}

// Load takes up what an earlier run left, so that viewers find what they saw. It is called once, before
// anybody asks: a playlist that was there must not be missing for a moment. An error means that the
// stream's own directory cannot be used.
func (s *Stream) Load(now time.Time) error {
	if err := s.load(now); err != nil {
		return fmt.Errorf("stream %s: %w", s.cfg.Name, err)
	}
	return nil
}

func (s *Stream) load(now time.Time) error {
	if err := os.MkdirAll(s.window.dir, 0o700); err != nil {
		return fmt.Errorf("its directory cannot be made: %w", err)
	}
	state, err := readState(s.statePath())
	if errors.Is(err, fs.ErrNotExist) {
		return s.window.clean()
	}
	var broken *brokenState
	if errors.As(err, &broken) {
		s.floor = floorAt(now)
		return s.beginAnew(broken)
	}
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.restore(now, state)
	if err := s.window.clean(); err != nil {
		return err
	}
	s.show(now)
	return nil
}

// beginAnew keeps a damaged state under another name. Its own name stays until there is a new
// state with the floor in it: who dies before finds the damage again.
func (s *Stream) beginAnew(broken error) error {
	bad := s.statePath() + ".bad"
	s.log.Error("stream state is damaged and put aside; sequence numbers go on far above what they can have been",
		"file", bad, "from", s.floor.Number, "err", broken)
	if err := os.Remove(bad); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Link(s.statePath(), bad); err != nil {
		return err
	}
	return s.window.clean()
}

type brokenState struct{ error }

// floor is below all numbers of renditions that begin.
type floor struct {
	Number        uint64 `json:"number,omitempty"`
	Discontinuity uint64 `json:"discontinuity,omitempty"`
}

// floorAt is above every number that was shown before now, if segments last a second or more:
// players wait long for numbers that fell, and find their way in numbers that rose.
func floorAt(now time.Time) floor {
	n := uint64(max(now.Unix(), 0))
	return floor{Number: n, Discontinuity: n}
}

func readState(name string) (*stateFile, error) {
	b, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	state := &stateFile{}
	if err := json.Unmarshal(b, state); err != nil {
		return nil, &brokenState{err}
	}
	if state.Version != stateVersion {
		return nil, fmt.Errorf("%s has layout %d and this version knows %d: use the version that wrote it, or remove it and let the stream begin anew",
			name, state.Version, stateVersion)
	}
	return state, nil
}

func (s *Stream) restore(now time.Time, state *stateFile) {
	// A crash of the machine, unlike one of the process, can leave files that are not what was written.
	verify := state.Boot == "" || state.Boot != bootID()
	s.floor = state.Floor
	there := map[id.Path]assetState{}
	for _, a := range state.Assets {
		if s.window.adopt(a.Digest, a.Size, verify) == nil {
			there[a.Path] = a
		}
	}
	if multi, err := playlist.ParseMultivariant([]byte(state.Index)); err == nil {
		s.index.path, s.index.multi = state.IndexPath, multi
	}
	for i := range state.Renditions {
		r := s.restoreRendition(now, &state.Renditions[i], there, verify)
		s.renditions = append(s.renditions, r)
		if r.name == state.Alone {
			s.index.alone = r
		}
	}
}

func (s *Stream) restoreRendition(now time.Time, rs *renditionState, there map[id.Path]assetState, verify bool) *rendition {
	r := &rendition{
		path: rs.Path, name: rs.Name, listed: rs.Listed, first: rs.First, discontinuities: rs.Discontinuities,
		targetDuration: rs.TargetDuration, version: rs.Protocol, want: rs.Want, ended: rs.Ended, target: rs.Target,
		tracker: tracker{
			met: rs.Met, epoch: rs.Epoch, epochFirst: rs.EpochFirst, next: rs.Next, listFirst: rs.ListFirst, started: rs.Started, broken: rs.Broken,
		},
		assets: map[string]assetRef{},
		onDisk: promise{target: rs.Target, targetDuration: rs.TargetDuration, version: rs.Protocol, ended: rs.Ended},
	}
	for key, ref := range rs.Assets {
		if a, ok := there[ref.Path]; ok {
			r.assets[key] = ref
			s.hold(a.Path, a.Digest, a.Size, true)
		}
	}
	lost := 0 // entries up to the last that had left the playlist and whose file was deleted since
	for i := range rs.Entries {
		e := &rs.Entries[i]
		e.released = true
		err := s.restoreFiles(e, there, verify)
		r.entries = append(r.entries, e)
		switch {
		case err == nil:
		case r.number(i) < r.target:
			lost = i + 1
		default:
			s.log.Warn("a segment of the window is gone from disk", "rendition", r.name, "path", e.Path, "err", err)
		}
	}
	r.start = r.index(r.target)
	for range lost {
		s.forget(r)
	}
	r.shown, r.start = len(r.entries), r.index(r.target)
	if r.shown > r.start {
		r.pageAt = longAgo
	}
	length := r.span(min(r.index(rs.Start), r.start), r.shown) // no playlist since was longer
	for i, e := range r.entries {
		e.Longest = max(e.Longest, length)
		if i < r.start {
			e.leftAt = now
		}
	}
	return r
}

// restoreFiles holds what an entry needs, as far as it is still there. An entry whose file is
// gone stays as it was shown: boxes may have it.
func (s *Stream) restoreFiles(e *entry, there map[id.Path]assetState, verify bool) error {
	if e.Listed.Gap {
		return nil
	}
	err := s.window.adopt(e.Digest, e.Size, verify)
	e.fileLost = err != nil
	if err == nil {
		held := s.hold(e.Path, e.Digest, e.Size, false)
		if expires := e.Complete.Add(e.TTL); expires.After(held.expires) {
			held.expires = expires
		}
	}
	var needs []id.Path
	for _, path := range e.Needs {
		if a, ok := there[path]; ok {
			s.hold(path, a.Digest, a.Size, true)
			needs = append(needs, path)
		}
	}
	e.Needs = needs
	return err
}

// bootID names this run of the machine.
func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}
