package datapath

import (
	"errors"
	"time"

	"github.com/netctl/netctl/internal/kernel"
	"github.com/netctl/netctl/internal/shape"
)

// pause is a TUN that stays unread until its owner may send again. Its packets wait
// in it, and when it is full, their senders are told by its own kernel: nothing is
// queued here, and a limited pod that sends too much costs nobody anything.
type pause struct {
	id    PortID
	port  Reader
	since time.Time
	until time.Time
	shape *shape.Shaper
}

// pauses are few: only ports with limits have any.
type pauses []pause

// pause stops polling a port for a while. The worker is in a batch.
func (w *worker) pause(id PortID, r Reader, s *shape.Shaper, wait time.Duration) {
	if err := w.poller.Del(r.FD()); err != nil {
		return // it is reported again, and ends up here again
	}
	now := time.Now()
	w.paused = append(w.paused, pause{id: id, port: r, since: now, until: now.Add(wait), shape: s})
}

// resume polls the ports again whose time has come and returns how many
// milliseconds are left until the next one's, -1 when there is none. A limit that
// is lifted meanwhile counts from maxPause on.
func (w *worker) resume(now time.Time) int {
	next := -1
	keep := w.paused[:0]
	for _, p := range w.paused {
		left := min(p.until.Sub(now), p.since.Add(maxPause).Sub(now))
		if left <= 0 && w.owner.again(p.id, p.port) {
			p.shape.Paused(now.Sub(p.since))
			continue
		}
		keep = append(keep, p)
		// A little late is right: what has not been sent may be sent at once then.
		if ms := int(max(left, 0)/time.Millisecond) + 1; next < 0 || ms < next {
			next = ms
		}
	}
	clear(w.paused[len(keep):])
	w.paused = keep
	return next
}

// maxPause is how long a port stays unread at most before it is looked at again.
const maxPause = 100 * time.Millisecond

// again has a paused port polled, unless it is not to be read any more. It reports
// false when the workers are being told of other ports at this moment.
func (ws *Workers) again(id PortID, r Reader) bool {
	if !ws.mu.TryLock() {
		return false
	}
	defer ws.mu.Unlock()
	p := ws.reading[id]
	if p == nil || p.gone || p.fd != r.FD() {
		return true
	}
	// A port that was taken out and put in again meanwhile is polled already.
	err := ws.worker(id).poller.Add(r.FD(), uint64(id))
	return err == nil || errors.Is(err, kernel.ErrExists)
}
