// Package testnginx runs the real nginx for tests: with configurations of this repository, on free ports of this
// machine, with certificates made for the test. Only tests import it. It knows nothing of what stands in a
// configuration.
package testnginx

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Server is a running nginx. It ends with the test.
type Server struct {
	Dir string // its logs, and what it writes
	cmd *exec.Cmd
}

// program finds nginx, which Debian has where not everybody looks.
func program(t testing.TB) string {
	t.Helper()
	for _, name := range []string{"nginx", "/usr/sbin/nginx"} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	t.Fatal("nginx is not installed: sudo apt-get install nginx")
	return ""
}

// command writes a whole configuration around parts that stand in http { }, and returns what runs it.
func command(t testing.TB, parts []string, args ...string) (*Server, *bytes.Buffer) {
	t.Helper()
	dir := t.TempDir()
	user := ""
	if os.Geteuid() == 0 {
		user = "user root;\n" // who may read the test's directories
	}
	var temp strings.Builder
	for _, kind := range []string{"client_body", "proxy", "fastcgi", "uwsgi", "scgi"} {
		fmt.Fprintf(&temp, "%s_temp_path %s/%s;\n", kind, dir, kind)
	}
	conf := fmt.Sprintf("%sdaemon off;\nworker_processes 2;\npid %s/nginx.pid;\nevents { worker_connections 4096; }\nhttp {\n%s%s\n}\n",
		user, dir, temp.String(), strings.Join(parts, "\n"))
	file := filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(file, []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	var said bytes.Buffer
	cmd := exec.Command(program(t), append([]string{"-p", dir, "-c", file, "-e", "stderr"}, args...)...)
	cmd.Stdout, cmd.Stderr = &said, &said
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	return &Server{Dir: dir, cmd: cmd}, &said
}

// Check runs nginx -t on parts that stand in http { }, and fails the test on any error or warning.
func Check(t testing.TB, parts ...string) {
	t.Helper()
	s, said := command(t, parts, "-t")
	if err := s.cmd.Run(); err != nil || strings.Contains(said.String(), "[warn]") {
		t.Errorf("nginx -t: %v\n%s", err, said)
	}
}

// Start runs nginx with parts that stand in http { }, and returns when it listens on addr.
func Start(t testing.TB, addr string, parts ...string) *Server {
	t.Helper()
	s, said := command(t, parts)
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		_ = s.cmd.Wait()
		close(done)
	}()
	t.Cleanup(func() {
		_ = s.cmd.Process.Signal(syscall.SIGTERM)
		<-done
		if t.Failed() {
			t.Logf("=== nginx\n%s", said)
		}
	})
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	for {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			c.Close()
			return s
		}
		select {
		case <-done:
			t.Fatalf("nginx does not start:\n%s", said)
		case <-t.Context().Done():
			t.Fatalf("nginx does not listen on %s", addr)
		case <-ticker.C:
		}
	}
}

// Reopen makes nginx open its logs anew, as a rotation does.
func (s *Server) Reopen() { _ = s.cmd.Process.Signal(syscall.SIGUSR1) }

// FreeAddr returns an address of this machine where nothing listens.
func FreeAddr(t testing.TB) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

// Certificate makes a certificate for 127.0.0.1 and localhost that is its own authority: SSL_CERT_FILE may name it.
// It returns the files of certificate and key.
func Certificate(t testing.TB) (cert, key string) {
	t.Helper()
	fail := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	fail(err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "Dandelion test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, DNSNames: []string{"localhost"},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	fail(err)
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	fail(err)
	dir := t.TempDir()
	cert, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	fail(os.WriteFile(cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600))
	fail(os.WriteFile(key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}), 0o600))
	return cert, key
}

// Edit replaces, in a configuration, each whole directive that begins like a key by the key's value; "" drops it. It
// fails the test where one is not there: an edit that does nothing would make the test another one.
func Edit(t testing.TB, conf string, edits map[string]string) string {
	t.Helper()
	var b strings.Builder
	found := map[string]bool{}
lines:
	for line := range strings.Lines(conf) {
		for directive, with := range edits {
			if rest, ok := strings.CutPrefix(strings.TrimSpace(line), directive); ok && (rest == "" || strings.ContainsAny(rest[:1], " ;")) {
				if !found[directive] || with == "" {
					b.WriteString(with + "\n")
				}
				found[directive] = true
				continue lines
			}
		}
		b.WriteString(line)
	}
	for directive := range edits {
		if !found[directive] {
			t.Fatalf("the configuration has no directive %q:\n%s", directive, conf)
		}
	}
	return b.String()
}
