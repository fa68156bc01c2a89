// Package httperr lets HTTP handlers return errors: a status, a text for whoever asked, and a
// cause for the log. It owns how an error looks on the wire and must not know what went wrong.
package httperr

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"runtime/debug"
	"strconv"
	"strings"
)

// Error is an error that a handler answers a request with.
type Error struct {
	Status int    // 400 to 599
	Public string // one line for whoever asked: what is wrong and what to do
	Cause  error  // for the log only; may be nil
}

// New returns an *Error. cause may be nil.
func New(status int, public string, cause error) error {
	return &Error{Status: status, Public: public, Cause: cause}
}

// NotFound returns an *Error with status 404.
func NotFound(public string) error { return New(http.StatusNotFound, public, nil) }

// BadRequest returns an *Error with status 400. cause may be nil.
func BadRequest(public string, cause error) error {
	return New(http.StatusBadRequest, public, cause)
}

func (e *Error) Error() string {
	s := fmt.Sprintf("%d: %s", e.Status, e.Public)
	if e.Cause != nil && e.Cause.Error() != e.Public {
		s += ": " + e.Cause.Error()
	}
	return s
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Cause }

// Handler answers a request, or returns an error before it wrote anything. It gets the server's
// own ResponseWriter, so that files still go out by sendfile.
type Handler func(w http.ResponseWriter, r *http.Request) error

// Wrap makes an http.Handler of h, for concurrent use.
//
// An *Error is answered with its status and public text, as JSON `{"error": "…"}` below /api/ and
// as plain text elsewhere; any other error, and a panic, with 500 and a text that tells nothing.
// Causes of a 5xx and panics are logged with method and path; http.ErrAbortHandler is passed on.
// A handler that fails after it began to write returns an error that wraps http.ErrAbortHandler:
// the connection is then cut, so that nobody takes half a body for a whole one.
func Wrap(log *slog.Logger, h Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() {
			switch p := recover(); p {
			case nil:
			case http.ErrAbortHandler:
				panic(p)
			default:
				log.Error("handler panicked", "method", r.Method, "path", r.URL.Path, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
				answerPanic(w, r)
			}
		}()
		err := h(w, r)
		if err == nil {
			return
		}
		if errors.Is(err, http.ErrAbortHandler) {
			panic(http.ErrAbortHandler)
		}
		e := asError(err)
		if e.Status >= 500 {
			log.Error("request failed", "method", r.Method, "path", r.URL.Path, "status", e.Status, "error", err)
		}
		Write(w, r, e)
	})
}

// answerPanic sends a 500 and cuts the connection, because nobody knows how far the handler came:
// if it had begun to write, the client sees a body without its end. With a Content-Length already
// promised, the error's text could pass for that end, so then there is no answer.
func answerPanic(w http.ResponseWriter, r *http.Request) {
	if w.Header().Get("Content-Length") == "" {
		Write(w, r, New(http.StatusInternalServerError, internal, nil))
		http.NewResponseController(w).Flush()
	}
	panic(http.ErrAbortHandler)
}

const internal = "something went wrong here; the log says what"

func asError(err error) *Error {
	var e *Error
	if errors.As(err, &e) && e.Status >= 400 && e.Status <= 599 {
		return e
	}
	return &Error{Status: http.StatusInternalServerError, Public: internal, Cause: err}
}

// Write answers r with err, as Wrap does, for code that is not a Handler. It logs nothing.
func Write(w http.ResponseWriter, r *http.Request, err error) {
	e := asError(err)
	contentType, body := "text/plain; charset=utf-8", e.Public+"\n"
	if strings.HasPrefix(r.URL.Path, "/api/") {
		encoded, err := json.Marshal(map[string]string{"error": e.Public})
		if err != nil { // a string always encodes
			panic(err)
		}
		contentType, body = "application/json", string(encoded)+"\n"
	}
	h := w.Header()
	// What a handler prepared for its own answer does not describe this one.
	for _, name := range []string{"Etag", "Last-Modified", "Content-Encoding", "Content-Range", "Accept-Ranges", "Expires", "Content-Disposition"} {
		h.Del(name)
	}
	h.Set("Cache-Control", "no-store")
	h.Set("Content-Type", contentType)
	h.Set("Content-Length", strconv.Itoa(len(body)))
	h.Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(e.Status)
	io.WriteString(w, body)
}
