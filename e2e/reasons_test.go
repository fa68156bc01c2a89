//go:build e2e

package e2e

import (
	"fmt"
	"strings"
	"sync"
	"testing"
)

// reasons are why tests fail, by test. What processes logged is long and follows a failure, and often only the
// end of an output is kept: behind the logs the reasons are told again.
var reasons sync.Map // *testing.T to *reasonList

type reasonList struct {
	mu    sync.Mutex
	texts []string
}

// fails is t.Errorf with a text that is told again at the end. Any goroutine.
func fails(t *testing.T, format string, args ...any) {
	t.Helper()
	text := fmt.Sprintf(format, args...)
	if list, ok := reasons.Load(t); ok {
		list.(*reasonList).add(text)
	}
	t.Error(text)
}

// ends is t.Fatalf with a text that is told again at the end.
func ends(t *testing.T, format string, args ...any) {
	t.Helper()
	fails(t, format, args...)
	t.FailNow()
}

func (l *reasonList) add(text string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.texts = append(l.texts, text)
}

// told is all of them, a line each where they are short.
func (l *reasonList) told() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Join(l.texts, "\n")
}

// tellReasons tells again why the test failed when all cleanups that are registered later are over.
func tellReasons(t *testing.T) {
	list := &reasonList{}
	if _, told := reasons.LoadOrStore(t, list); told {
		return
	}
	t.Cleanup(func() {
		reasons.Delete(t)
		if text := list.told(); text != "" {
			t.Logf("=== why %s fails:\n%s", t.Name(), text)
		}
	})
}
