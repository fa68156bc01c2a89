// Package identity owns who a peer is: the Ed25519 key in its data_dir, made at the first start,
// and the lock that keeps two processes from being the same peer. It must not know what the key
// is used for, nor which kind of peer holds it: pkg/id makes the ID from the public key.
package identity

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// Names of the files below data_dir.
const (
	keyFile  = "key.pem" // PKCS#8 in PEM, mode 0600
	lockFile = "lock"    // flock'ed while the peer runs; holds its PID in decimal
)

const maxKeyFile = 16 << 10 // bytes; a PKCS#8 Ed25519 key in PEM has 119

// Identity is a peer's key, and its hold on the data_dir. It may be used concurrently.
type Identity struct {
	// PublicKey is what the peer's ID is made from (id.BoxIDOf and its like).
	PublicKey ed25519.PublicKey
	// Created says that this start made the key: the peer is new.
	Created bool

	key  ed25519.PrivateKey
	lock *os.File
}

// Open takes hold of dataDir for this process, making the directory (mode 0700) and the key
// (mode 0600) where they are missing. The hold lasts until Close or the end of the process,
// however that comes.
//
// Errors are one line that names the cause and the cure. One that wraps ErrInUse means that
// another process, or another part of this one, holds the directory.
func Open(dataDir string) (*Identity, error) {
	if dataDir == "" {
		return nil, errors.New("data_dir is empty: name a directory that this user may write to")
	}
	if err := os.MkdirAll(dataDir, 0o700); err != nil {
		return nil, cannotUse(dataDir, err)
	}
	lock, err := takeLock(dataDir)
	if err != nil {
		return nil, err
	}
	key, created, err := loadOrCreate(dataDir)
	if err != nil {
		dropLock(lock)
		return nil, err
	}
	return &Identity{
		PublicKey: key.Public().(ed25519.PublicKey),
		Created:   created,
		key:       key,
		lock:      lock,
	}, nil
}

// Sign returns the Ed25519 signature (64 bytes) of message.
func (i *Identity) Sign(message []byte) []byte { return ed25519.Sign(i.key, message) }

// Close gives the data_dir free. The key may still be used. A second Close does nothing.
func (i *Identity) Close() error {
	if err := dropLock(i.lock); err != nil && !errors.Is(err, fs.ErrClosed) {
		return fmt.Errorf("giving the data_dir free: %w", err)
	}
	return nil
}

// loadOrCreate is called with the lock held, so that two first starts cannot make two keys.
func loadOrCreate(dataDir string) (key ed25519.PrivateKey, created bool, err error) {
	path := filepath.Join(dataDir, keyFile)
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		if err := create(dataDir, path); err != nil {
			return nil, false, fmt.Errorf("making the key %s: %w", path, err)
		}
		created = true
	}
	// Also a new key is read back: a file system without modes is found at the first start.
	key, err = load(path)
	return key, created, err
}

func load(path string) (ed25519.PrivateKey, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("reading the key: %w", err)
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("the key %s is not a regular file: move it away to get a new identity", path)
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return nil, fmt.Errorf("the key %s can be read by others (mode %04o): run chmod 600 %s "+
			"(on a file system without modes, mount it with umask=077)", path, mode, path)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("reading the key: %w; it must belong to the user that runs this (user id %d)", err, os.Geteuid())
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxKeyFile))
	if err != nil {
		return nil, fmt.Errorf("reading the key %s: %w", path, err)
	}
	key, err := parse(data)
	if err != nil {
		return nil, fmt.Errorf("the key %s is damaged (%w): restore it from a backup, or delete it to get a new identity, "+
			"with a new ID that nobody knows yet", path, err)
	}
	return key, nil
}

func parse(data []byte) (ed25519.PrivateKey, error) {
	block, _ := pem.Decode(data)
	if block == nil || block.Type != "PRIVATE KEY" {
		return nil, errors.New("no PRIVATE KEY block in it")
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, errors.New("not a PKCS#8 key")
	}
	key, ok := parsed.(ed25519.PrivateKey)
	if !ok {
		return nil, errors.New("not an Ed25519 key")
	}
	return key, nil
}

// create writes a new key so that after a crash there is a whole one or none.
func create(dataDir, path string) error {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	temp := path + ".tmp"
	if err := os.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := writeSynced(temp, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})); err != nil {
		return err
	}
	if err := os.Rename(temp, path); err != nil {
		return err
	}
	dir, err := os.Open(dataDir)
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}

func writeSynced(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Sync(), f.Close())
}
