package identity

import (
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"dandelion/pkg/id"
)

const childVariable = "IDENTITY_TEST_DIR"

// TestMain lets the test binary be the other process: it opens the directory, says so, and
// holds it until its input ends or it is killed.
func TestMain(m *testing.M) {
	if dir := os.Getenv(childVariable); dir != "" {
		i, err := Open(dir)
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println(id.BoxIDOf(i.PublicKey))
		bufio.NewReader(os.Stdin).ReadByte()
		i.Close()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func open(t *testing.T, dir string) *Identity {
	t.Helper()
	i, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { i.Close() })
	return i
}

func TestSameIdentityAfterReopen(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "deep", "data")
	first := open(t, dir)
	if !first.Created {
		t.Error("the first start does not say that it made the key")
	}
	if err := errors.Join(first.Close(), first.Close()); err != nil {
		t.Error(err)
	}
	again := open(t, dir)
	if again.Created || !again.PublicKey.Equal(first.PublicKey) {
		t.Errorf("reopened: created %v, key %x; want %x", again.Created, again.PublicKey, first.PublicKey)
	}
	if got := id.BoxIDOf(again.PublicKey); got != id.BoxIDOf(first.PublicKey) {
		t.Errorf("ID %s after reopening", got)
	}
	if !ed25519.Verify(again.PublicKey, []byte("message"), again.Sign([]byte("message"))) {
		t.Error("the signature is not the public key's")
	}
	if other := open(t, t.TempDir()); other.PublicKey.Equal(again.PublicKey) {
		t.Error("two directories have one key")
	}
}

func TestModes(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "data")
	open(t, dir)
	for path, want := range map[string]os.FileMode{"": 0o700 | os.ModeDir, keyFile: 0o600, lockFile: 0o600} {
		info, err := os.Stat(filepath.Join(dir, path))
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode() != want {
			t.Errorf("%s has mode %v, want %v", info.Name(), info.Mode(), want)
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 2 {
		t.Errorf("files: %v, %v; want the key and the lock only", entries, err)
	}
}

func TestSecondOpenInOneProcess(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	first := open(t, dir)
	_, err := Open(dir)
	if !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), dir) || !strings.Contains(err.Error(), "another part of this process") {
		t.Errorf("the second Open: %v", err)
	}
	first.Close()
	open(t, dir)
}

func TestSecondProcess(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	holder, line := startChild(t, dir)

	_, err := Open(dir)
	if want := "process " + strconv.Itoa(holder.Process.Pid); !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), want) {
		t.Fatalf("Open beside a process: %v; want %q in it", err, want)
	}
	second, said := startChild(t, dir)
	if !strings.Contains(said, "in use") || strings.Count(said, "\n") != 1 {
		t.Errorf("the second process said %q", said)
	}
	if err := second.Wait(); second.ProcessState.ExitCode() != 1 {
		t.Errorf("the second process ended with %v, want status 1", err)
	}

	// kill -9: the kernel gives the lock back.
	if err := holder.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	holder.Wait()
	if i := open(t, dir); string(id.BoxIDOf(i.PublicKey)) != strings.TrimSpace(line) {
		t.Errorf("ID %s after the kill, %s before", id.BoxIDOf(i.PublicKey), line)
	}
}

// startChild starts a second process on dir and returns the first line that it prints.
func startChild(t *testing.T, dir string) (*exec.Cmd, string) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childVariable+"="+dir)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); cmd.Wait() })
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return cmd, line
}

func TestDamagedKey(t *testing.T) {
	t.Parallel()
	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(other)
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{
		"empty":             nil,
		"text":              []byte("hello"),
		"wrong block":       pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		"not PKCS#8":        pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der[:20]}),
		"not Ed25519":       pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}),
		"far too long":      bytes.Repeat([]byte("x"), maxKeyFile+1),
		"zeros after crash": make([]byte, 119),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			path := filepath.Join(dir, keyFile)
			if err := os.WriteFile(path, content, 0o600); err != nil {
				t.Fatal(err)
			}
			wantError(t, dir, path, "damaged", "delete it to get a new identity")
			if after, err := os.ReadFile(path); err != nil || !bytes.Equal(after, content) {
				t.Errorf("the damaged key was changed: %q, %v", after, err)
			}
			// The failed Open holds nothing.
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
			open(t, dir)
		})
	}
}

func TestKeyThatOthersCanRead(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	open(t, dir).Close()
	path := filepath.Join(dir, keyFile)
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	wantError(t, dir, "0640", "chmod 600 "+path)
	if err := os.Chmod(path, 0o400); err != nil {
		t.Fatal(err)
	}
	open(t, dir)
}

// TestCloseWhileAChildIsForked: until it is exec'ed, a child holds the lock file open.
func TestCloseWhileAChildIsForked(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	i := open(t, dir)
	held, err := unix.Dup(int(i.lock.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(held)
	i.Close()
	open(t, dir)
}

func TestLeftoverOfACrash(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, keyFile+".tmp"), []byte("half"), 0o644); err != nil {
		t.Fatal(err)
	}
	open(t, dir)
	if _, err := os.Stat(filepath.Join(dir, keyFile+".tmp")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the leftover: %v", err)
	}
}

func TestUnusableDirectory(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	wantError(t, "", "data_dir is empty")
	wantError(t, file, "data_dir "+file+" cannot be used")
	wantError(t, filepath.Join(file, "data"), file+"/data cannot be used", "set data_dir to a directory")

	withKeyDir := t.TempDir()
	if err := os.Mkdir(filepath.Join(withKeyDir, keyFile), 0o700); err != nil {
		t.Fatal(err)
	}
	wantError(t, withKeyDir, "not a regular file")
}

func TestUnwritableDirectory(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o500); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if os.Geteuid() == 0 {
			// Modes do not bind root: this thread, and only it, becomes somebody else, and
			// ends with the goroutine because it stays locked.
			runtime.LockOSThread()
			err := errors.Join(os.Chown(dir, 65534, 65534), os.Chmod(filepath.Dir(dir), 0o711), unix.Setfsuid(65534))
			if err != nil {
				t.Error(err)
				return
			}
		}
		wantError(t, dir, "data_dir "+dir+" cannot be used (permission denied)", "chown -R")
	}()
	<-done
}

// wantError opens dir and wants one line of error with all these in it.
func wantError(t *testing.T, dir string, wants ...string) {
	t.Helper()
	i, err := Open(dir)
	if err == nil {
		i.Close()
		t.Errorf("Open(%q) worked", dir)
		return
	}
	for _, want := range wants {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("Open: %v; want %q in it", err, want)
		}
	}
	if strings.Contains(err.Error(), "\n") {
		t.Errorf("more than one line: %v", err)
	}
}
