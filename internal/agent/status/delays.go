package status

import (
	"slices"
	"sync"
	"time"
)

// Delay says how long the newest changes of the cluster took from the API server's
// event to the tables that packets are forwarded by.
type Delay struct {
	Changes uint64  `json:"changes"` // so far; the times are of the last 256
	P50     float64 `json:"p50ms"`
	P99     float64 `json:"p99ms"`
	Max     float64 `json:"maxms"`
}

const (
	// keptDelays is of how many changes the times are kept.
	keptDelays = 256
	// maxHeard bounds what waits to be in force, should nothing come into force.
	maxHeard = 1024
)

// Delays measures a Delay. The zero value is ready; the methods may be called
// concurrently.
type Delays struct {
	mu    sync.Mutex
	heard []heard         // in the order of their revisions; guarded by mu
	last  []time.Duration // a ring once it is full; guarded by mu
	count uint64          // guarded by mu
}

type heard struct {
	revision uint64
	at       time.Time
}

// Heard says that what a revision changes was heard of at that time; the zero
// time is of a revision whose time is not known.
func (d *Delays) Heard(revision uint64, at time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !at.IsZero() && len(d.heard) < maxHeard {
		d.heard = append(d.heard, heard{revision, at})
	}
}

// InForce says that a revision and all before it are in force since now, and returns
// how long each change took that was not before.
func (d *Delays) InForce(revision uint64) []time.Duration { return d.inForce(revision, time.Now()) }

func (d *Delays) inForce(revision uint64, now time.Time) (all []time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for len(d.heard) > 0 && d.heard[0].revision <= revision {
		took := now.Sub(d.heard[0].at)
		d.heard = d.heard[1:]
		all = append(all, took)
		if len(d.last) < keptDelays {
			d.last = append(d.last, took)
		} else {
			d.last[d.count%keptDelays] = took
		}
		d.count++
	}
	return all
}

// Delay returns what was measured.
func (d *Delays) Delay() Delay {
	d.mu.Lock()
	sorted := slices.Sorted(slices.Values(d.last))
	out := Delay{Changes: d.count}
	d.mu.Unlock()
	if len(sorted) == 0 {
		return out
	}
	at := func(percent int) float64 { // the least that so many do not exceed
		return sorted[(len(sorted)*percent+99)/100-1].Seconds() * 1e3
	}
	out.P50, out.P99, out.Max = at(50), at(99), at(100)
	return out
}
