package placement

import (
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"time"

	"dandelion/pkg/id"
	"dandelion/pkg/netaddr"
)

// When a box is doubted although its session is well, and how that ends.
const (
	suspectAfter = 3                // distinct addresses of viewers that complained…
	complaintAge = 10 * time.Second // …within so long
	suspectFor   = 10 * time.Second // for which the box then comes last for viewers
	probeWithin  = 2 * time.Second  // for the box's answer to a probe
	probeRest    = time.Second      // between two probes of a box…
	longestProbe = 15 * time.Second // …doubling to this while it does not answer
)

// doubts is what speaks against sending viewers to a box. It is guarded by Placement.mu.
type doubts struct {
	complaints [suspectAfter]complaint
	suspect    time.Time // until then, because of complaints
	answered   bool      // viewers' side has answered a probe: this publisher can reach it, and so can judge it
	deaf       bool      // the last probe failed
}

type complaint struct {
	from netip.Addr // viewer; of IPv6 its household
	at   time.Time
}

// complain notes a viewer's complaint, and reports whether that makes the box suspect.
func (d *doubts) complain(viewer netip.Addr, now time.Time) bool {
	if viewer.Is6() {
		viewer = netaddr.Household(viewer).Addr() // one subscriber has as many addresses as it likes
	}
	oldest, fresh := 0, 1
	for i, c := range d.complaints {
		if c.from == viewer {
			d.complaints[i].at = now
			return false
		}
		if c.at.Before(d.complaints[oldest].at) {
			oldest = i
		}
		if now.Sub(c.at) < complaintAge {
			fresh++
		}
	}
	d.complaints[oldest] = complaint{viewer, now}
	if fresh < suspectAfter {
		return false
	}
	d.complaints = [suspectAfter]complaint{}
	d.suspect = now.Add(suspectFor)
	return true
}

// suspected reports whether viewers should be sent elsewhere if they can.
func (d *doubts) suspected(now time.Time) bool { return now.Before(d.suspect) }

// Complained takes the word of a viewer that a box did not serve a file it was sent there for. The
// box is probed; it is suspect for all when viewers of three addresses say so. From the zero Addr it
// is only probed.
func (p *Placement) Complained(box id.BoxID, path id.Path, viewer netip.Addr) {
	p.mu.Lock()
	defer p.mu.Unlock()
	m := p.members[box]
	if m == nil {
		return
	}
	now := time.Now()
	was := m.doubts.suspected(now)
	if viewer.IsValid() && m.doubts.complain(viewer, now) && !was {
		p.log.Warn("viewers of several addresses did not get what they were sent to a box for; it comes last for a while", "box", box, "for", suspectFor)
	}
	m.doubt(path)
}

// doubt asks for a probe of the box with the file, "" for none in particular.
func (m *member) doubt(path id.Path) {
	select {
	case m.doubted <- path:
	default: // it will be probed anyway
	}
}

// probe looks at the box as a viewer would, when it is doubted and again until it answers, until
// ctx ends.
func (p *Placement) probe(ctx context.Context, m *member, least netaddr.Scope) {
	transport := &http.Transport{DialContext: netaddr.Dialer(least, probeWithin).DialContext, DisableKeepAlives: true}
	client := &http.Client{Transport: transport, Timeout: probeWithin, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	rest, path := probeRest, id.Path("")
	var again <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case path = <-m.doubted:
		case <-again:
		}
		err := p.lookAt(ctx, client, m, path)
		if err != nil {
			err = p.lookAt(ctx, client, m, path) // one packet may get lost
		}
		if ctx.Err() != nil {
			return
		}
		again = nil
		if !p.judge(m, err) {
			rest = probeRest
		} else {
			again = time.After(rest)
			rest = min(2*rest, longestProbe)
		}
		select { // no box is probed more often, whatever viewers say
		case <-time.After(probeRest):
		case <-ctx.Done():
			return
		}
	}
}

// judge takes the outcome of a probe, and reports whether the box is deaf. What cannot be reached
// from here at all, behind a firewall that lets only viewers pass, is not judged.
func (p *Placement) judge(m *member, err error) (deaf bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	was := m.doubts.deaf
	m.doubts.answered = m.doubts.answered || err == nil
	m.doubts.deaf = err != nil && m.doubts.answered
	switch {
	case m.doubts.deaf && !was:
		p.log.Warn("a box does not answer as viewers ask it; nobody is sent there until it does", "box", m.id, "reason", err)
		p.wakeRepair()
	case was && !m.doubts.deaf:
		p.log.Info("a box answers viewers again", "box", m.id)
	}
	return m.doubts.deaf
}

// lookAt asks the box for a file, as a viewer would but without the bytes. A box that answers is
// not deaf, also when it says that it does not have the file; then the records are wrong.
func (p *Placement) lookAt(ctx context.Context, client *http.Client, m *member, path id.Path) error {
	p.mu.Lock()
	url := m.box.EdgeBase + "/"
	p.mu.Unlock()
	if path != "" {
		url += string(p.cfg.Own.ID) + path.Escaped()
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodHead, url, nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	resp.Body.Close()
	switch {
	case resp.StatusCode == http.StatusServiceUnavailable && resp.Header.Get("Retry-After") != "":
		return nil // it is busy, and said so
	case resp.StatusCode >= http.StatusInternalServerError:
		return fmt.Errorf("%s answered %s", url, resp.Status)
	case path != "" && (resp.StatusCode == http.StatusNotFound || resp.StatusCode == http.StatusGone):
		p.log.Info("a box does not hold what its record says", "box", m.id, "path", path)
		p.records.lacks(m.id, path)
		p.wakeRepair()
	}
	return nil
}
