package box

import (
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"dandelion/box/internal/segstore"
	"dandelion/pkg/config"
	"dandelion/pkg/id"
)

// Names below data_dir, besides those of pkg/identity.
const (
	filesDir = "files" // what stays long
	liveDir  = "live"  // live segments, where no memory holds them
)

const (
	maxAutoStorage = 8 * config.GB
	maxAutoLive    = 512 * config.MB
	// memoryPart is the part of the machine's memory that live segments may take: the kernel
	// needs the rest as much as the programs do.
	memoryPart = 8
)

// storeConfig decides where files go and how much of them there may be.
func storeConfig(cfg *Config, box id.BoxID, log *slog.Logger) (segstore.Config, error) {
	s := segstore.Config{DataDir: filepath.Join(cfg.DataDir, filesDir), SyncData: cfg.SyncData}
	if err := os.MkdirAll(s.DataDir, 0o755); err != nil {
		return s, err
	}
	// What is stored already is room for what comes: or the limit would shrink at each start.
	free := freeSpace(s.DataDir) + stored(s.DataDir)
	s.StorageLimit = int64(cfg.StorageLimit.Or(max(minLimit, min(maxAutoStorage, config.ByteSize(free/5)))))

	inMemory := false
	s.LiveDir = cfg.LiveDir
	if s.LiveDir == "" {
		s.LiveDir, inMemory = memoryDir(box)
	}
	if s.LiveDir == "" {
		s.LiveDir = filepath.Join(cfg.DataDir, liveDir)
	}
	if err := os.MkdirAll(s.LiveDir, 0o755); err != nil {
		return s, err
	}
	inMemory = inMemory || onTmpfs(s.LiveDir)
	s.LiveLimit = int64(cfg.LiveLimit.Or(autoLive(freeSpace(s.LiveDir)+stored(s.LiveDir), inMemory)))
	log.Info("files are kept", "data", s.DataDir, "storage_limit", config.ByteSize(s.StorageLimit).String(),
		"live", s.LiveDir, "live_limit", config.ByteSize(s.LiveLimit).String(), "live_in_memory", inMemory)
	return s, nil
}

func autoLive(free int64, inMemory bool) config.ByteSize {
	if !inMemory {
		return max(minLimit, min(maxAutoLive, config.ByteSize(free/10)))
	}
	limit := config.ByteSize(free / 2)
	if total := memory(); total > 0 {
		limit = min(limit, config.ByteSize(total/memoryPart))
	}
	return max(minLimit, min(maxAutoLive, limit))
}

// memoryDir makes a directory on a tmpfs that is this user's alone to write to, and has room for
// a limit worth having; "" where there is none.
func memoryDir(box id.BoxID) (string, bool) {
	for _, parent := range []string{"/dev/shm", "/run/user/" + strconv.Itoa(os.Geteuid())} {
		dir := filepath.Join(parent, "dandelion-"+string(box))
		if !onTmpfs(parent) {
			continue
		}
		if err := os.Mkdir(dir, 0o755); err != nil && !os.IsExist(err) {
			continue
		}
		// Anybody may write to /dev/shm: what stands there may be somebody else's.
		info, err := os.Lstat(dir)
		if err != nil || !info.IsDir() {
			continue
		}
		if st, ok := info.Sys().(*syscall.Stat_t); !ok || int(st.Uid) != os.Geteuid() {
			continue
		}
		if freeSpace(dir)+stored(dir) < 2*int64(minLimit) {
			os.Remove(dir) // only if it is empty
			continue
		}
		return dir, true
	}
	return "", false
}

func onTmpfs(dir string) bool {
	var st unix.Statfs_t
	return unix.Statfs(dir, &st) == nil && int64(st.Type) == unix.TMPFS_MAGIC
}

// freeSpace is what this user can still write to the file system, in bytes; 0 where it does not say.
func freeSpace(dir string) int64 {
	var st unix.Statfs_t
	if unix.Statfs(dir, &st) != nil {
		return 0
	}
	return int64(st.Bavail) * int64(st.Bsize)
}

// memory is the machine's, in bytes; 0 where it does not say.
func memory() int64 {
	var info unix.Sysinfo_t
	if unix.Sysinfo(&info) != nil {
		return 0
	}
	return int64(info.Totalram) * int64(info.Unit)
}

// stored is what the files below dir take, in bytes; a file of several names counts once.
func stored(dir string) (total int64) {
	var parts float64
	_ = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return nil // what cannot be seen does not count
		}
		info, err := d.Info()
		if err != nil {
			return nil
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok && st.Nlink > 0 {
			parts += float64(st.Blocks) * 512 / float64(st.Nlink)
		}
		return nil
	})
	return int64(parts)
}
