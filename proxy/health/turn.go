package health

import (
	"time"

	"github.com/netctl/netctl/internal/model"
)

// turn is what a turn of the proxy's loop works on.
type turn struct {
	began    time.Time
	whole    bool
	came     []*model.EndpointSlice
	services []*model.Service       // in force, or about to be
	slices   []*model.EndpointSlice // likewise
	open     bool
}

// Heard notes that there is a State which is not in force yet. It may be called from
// any goroutine, unlike Begin and End, which are the loop's.
func (s *Server) Heard(revision uint64) {
	s.state.queued(revision)
	s.counts.queued(s.state.now())
}

// Begin notes what a turn is about to put in force.
func (s *Server) Begin(services []*model.Service, slices []*model.EndpointSlice) {
	t := &s.turn
	_, changed, few := model.Diff(t.services, services)
	_, came, fewSlices := model.Diff(t.slices, slices)
	t.began, t.whole, t.came, t.open = s.state.now(), !few || !fewSlices, came, true
	t.services, t.slices = services, slices
	s.counts.changed(len(changed), len(came))
}

// End notes that it is in force.
func (s *Server) End(revision uint64) {
	t := &s.turn
	if !t.open {
		return
	}
	now := s.state.now()
	if len(t.came) > 0 || t.whole || s.state.waits() {
		s.counts.synced(now.Sub(t.began), now, t.whole)
	}
	for _, slice := range t.came {
		s.counts.programmed(slice.Triggered, now)
	}
	t.open, t.came = false, nil
	s.state.done(revision)
}
