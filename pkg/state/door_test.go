package state

import (
	"bufio"
	"bytes"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

func TestOtherProgramsReachTheEmbeddedState(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	ctx := t.Context()
	s := open(t, Config{EmbeddedListen: "127.0.0.1:0"}, dir)
	addr := s.embedded.(*embedded).door.addr()
	other := redis.NewClient(&redis.Options{Addr: addr})
	defer other.Close()

	if err := other.RPush(ctx, "queue", strings.Repeat("x", 1<<20)).Err(); err != nil {
		t.Fatal(err)
	}
	same(t, "what the process gets", len(s.BLMove(ctx, "queue", "work", "LEFT", "RIGHT", 0).Val()), 1<<20)
	s.RPush(ctx, "answers", "b")
	same(t, "what the other gets", must[[]string](t)(other.BLPop(ctx, time.Minute, "answers").Result()), []string{"answers", "b"})
	before := s.embedded.(*embedded).writes.Load()
	other.Set(ctx, "a", 1, 0)
	if s.embedded.(*embedded).writes.Load() == before {
		t.Error("a write of another program was not counted, and would not be saved")
	}

	second, err := Open(ctx, Config{EmbeddedListen: addr}, t.TempDir(), s.embedded.(*embedded).log)
	if err == nil {
		second.Close()
		t.Fatal("two states on one port")
	}
	if want := "redis.embedded_listen: cannot listen on " + addr + " (address already in use): choose a free port"; !strings.HasPrefix(err.Error(), want) {
		t.Errorf("a port in use: got %v, want %s…", err, want)
	}
}

// The process must survive whatever comes in at the port.
func TestHostileGuests(t *testing.T) {
	t.Parallel()
	s := open(t, Config{EmbeddedListen: "127.0.0.1:0"}, t.TempDir())
	for _, input := range []string{
		"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
		"*0\r\n",
		"*-1\r\n",
		"*1\r\n$-1\r\n",
		"*1\r\n$99999999999\r\n",
		"*99999999\r\n",
		"*1\r\n$4\r\nPINGxx",
		"*1\r\n:1\r\n",
		"*1\r\n$2000000000\r\n",
		strings.Repeat("*", 1<<16),
		"\r\n",
		"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n",
	} {
		conn, err := net.Dial("tcp", s.embedded.(*embedded).door.addr())
		if err != nil {
			t.Fatal(err)
		}
		go io.WriteString(conn, input)
		conn.SetReadDeadline(time.Now().Add(20 * time.Second))
		answer, err := io.ReadAll(conn)
		conn.Close()
		if timeout, ok := err.(net.Error); ok && timeout.Timeout() {
			t.Errorf("%.40q: the connection stayed open", input)
		}
		if err == nil && !bytes.HasPrefix(answer, []byte("-ERR protocol error")) {
			t.Errorf("%.40q: answered %q", input, answer)
		}
	}
	if err := s.Ping(t.Context()).Err(); err != nil {
		t.Errorf("after them: %v", err)
	}
}

func TestNumberOfGuestsIsLimited(t *testing.T) {
	t.Parallel()
	s := open(t, Config{EmbeddedListen: "127.0.0.1:0"}, t.TempDir())
	ask := func() (net.Conn, string) {
		conn, err := net.Dial("tcp", s.embedded.(*embedded).door.addr())
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(conn, "*1\r\n$4\r\nPING\r\n")
		conn.SetReadDeadline(time.Now().Add(20 * time.Second))
		line, _ := bufio.NewReader(conn).ReadString('\n')
		return conn, line
	}
	var conns []net.Conn
	for range maxGuests {
		conn, answer := ask()
		defer conn.Close()
		conns = append(conns, conn)
		same(t, "answer to a guest", answer, "+PONG\r\n")
	}
	conn, answer := ask()
	conn.Close()
	if answer == "+PONG\r\n" {
		t.Error("one guest too many was served")
	}
	conns[0].Close()
	for start := time.Now(); ; {
		conn, answer := ask()
		conn.Close()
		if answer == "+PONG\r\n" {
			break
		}
		if time.Since(start) > 20*time.Second {
			t.Fatal("the place of a guest who left stays taken")
		}
	}
}

func FuzzReadCommand(f *testing.F) {
	f.Add([]byte("*1\r\n$4\r\nPING\r\n"))
	f.Add([]byte("*3\r\n$3\r\nSET\r\n$1\r\na\r\n$0\r\n\r\n*1\r\n$4\r\nTIME\r\n"))
	f.Add([]byte("*6\r\n$6\r\nblmove\r\n$1\r\na\r\n$1\r\nb\r\n$4\r\nLEFT\r\n$5\r\nRIGHT\r\n$1\r\n0\r\n"))
	f.Add([]byte("*2\r\n$4\r\nPING\r\n"))
	f.Add([]byte("*1\r\n$16777216\r\n"))
	f.Add([]byte("*0\r\n"))
	f.Add([]byte("PING\r\n"))
	f.Fuzz(func(t *testing.T, input []byte) {
		r := bufio.NewReaderSize(bytes.NewReader(input), connBuffer)
		rest := input
		for {
			command, err := readCommand(r, nil)
			if len(command) > len(input)+64<<10+32 {
				t.Fatalf("%d bytes in memory for %d that arrived", len(command), len(input))
			}
			if err != nil {
				return
			}
			// A command passes as it came, but for zeros before a length.
			if !bytes.Contains(rest, command) && !bytes.Contains(input, []byte("0")) {
				t.Fatalf("%q is not in %q", command, rest)
			}
			if command[0] != '*' || command[1] == '0' {
				t.Fatalf("%q would end the process", command)
			}
			_ = isBlocking(commandName(command))
		}
	})
}
