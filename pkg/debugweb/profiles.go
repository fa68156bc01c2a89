package debugweb

import (
	"net/http"
	"runtime/pprof"
	"strconv"
	"time"

	"dandelion/pkg/httperr"
)

const (
	defaultProfile = 30 // seconds of CPU
	longestProfile = 120
)

// profile answers /debug/pprof/<name> as net/http/pprof does, for `go tool pprof`: "profile" is
// the CPU over ?seconds=, the others are runtime/pprof's; ?debug=1 makes them text. The
// standard handlers are not used because they add 260 kB to a box's binary.
func profile(w http.ResponseWriter, r *http.Request) error {
	name := r.PathValue("name")
	if name == "profile" {
		return cpuProfile(w, r)
	}
	p := pprof.Lookup(name)
	if p == nil {
		return httperr.NotFound("no such profile: there are profile, heap, allocs, goroutine, block, mutex and threadcreate")
	}
	debug, _ := strconv.Atoi(r.URL.Query().Get("debug"))
	contentType := "application/octet-stream"
	if debug > 0 {
		contentType = "text/plain; charset=utf-8"
	}
	w.Header().Set("Content-Type", contentType)
	_ = p.WriteTo(w, debug)
	return nil
}

func cpuProfile(w http.ResponseWriter, r *http.Request) error {
	seconds := defaultProfile
	if text := r.URL.Query().Get("seconds"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 || n > longestProfile {
			return httperr.BadRequest("seconds is not a number from 1 to "+strconv.Itoa(longestProfile), nil)
		}
		seconds = n
	}
	control, until := http.NewResponseController(w), time.Now().Add(time.Duration(seconds)*time.Second+30*time.Second)
	_ = control.SetReadDeadline(until) // the server's own limits are for answers that are ready at once
	_ = control.SetWriteDeadline(until)
	if err := pprof.StartCPUProfile(w); err != nil {
		return httperr.New(http.StatusConflict, "the CPU is being profiled already", err)
	}
	defer pprof.StopCPUProfile()
	timer := time.NewTimer(time.Duration(seconds) * time.Second)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-r.Context().Done():
	}
	return nil
}
