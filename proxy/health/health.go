// Package health answers those who watch a service proxy over HTTP: load
// balancers that look for nodes with endpoints of a service, and whoever asks
// whether the proxy is well, as kube-proxy answers them (HC in docs/proxy.md).
//
//	:10256            /healthz /livez        is the proxy up to date, and its node to stay?
//	127.0.0.1:10249   /healthz /proxyMode /metrics
//	healthCheckNodePort of a service  /      how many of its endpoints are here?
//
// health.go decides, http.go answers, listen.go has the sockets, metrics.go counts.
//
// Invariants: nothing that a client sends is looked at but the path of its
// request; connections are bounded in number and time; a port that cannot be had
// is a problem that names it, and is tried again with the next Apply.
package health

import (
	"sync"
	"time"
)

// Overdue is how long a change may wait to be in force before the proxy counts as
// unhealthy: twice kube-proxy's syncPeriod (HC-5).
const Overdue = time.Minute

// Families that are said apart in answers and metrics.
const (
	IPv4 = "IPv4"
	IPv6 = "IPv6"
)

// state is what is known of the proxy's work.
type state struct {
	now func() time.Time

	mu       sync.Mutex
	newest   uint64    // guarded by mu: the newest revision that was heard of
	waiting  time.Time // guarded by mu: since when a change waits; zero: none does
	applied  time.Time // guarded by mu: when the last one was in force
	eligible bool      // guarded by mu: the node is to stay
}

// queued notes that there is a revision to be put in force.
func (s *state) queued(revision uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.newest = revision
	if s.waiting.IsZero() {
		s.waiting = s.now()
	}
}

// done notes that a revision is in force. One that came meanwhile waits since now at
// most, for there is progress.
func (s *state) done(revision uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	s.applied, s.waiting = now, time.Time{}
	if revision != s.newest {
		s.waiting = now
	}
}

// waits reports whether a change waits to be in force.
func (s *state) waits() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.waiting.IsZero()
}

func (s *state) setEligible(yes bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.eligible = yes
}

// verdict is an answer about the proxy as a whole.
type verdict struct {
	LastUpdated  time.Time               `json:"lastUpdated"`
	CurrentTime  time.Time               `json:"currentTime"`
	NodeEligible *bool                   `json:"nodeEligible,omitempty"`
	Healthy      bool                    `json:"healthy"`
	Status       map[string]familyStatus `json:"status"`
}

type familyStatus struct {
	LastUpdated time.Time `json:"lastUpdated"`
	Healthy     bool      `json:"healthy"`
}

// verdict says how the proxy does; with node, also whether its node is to stay.
// Both families are one table here, so they are up to date together.
func (s *state) verdict(node bool) (v verdict, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	v = verdict{CurrentTime: now, LastUpdated: s.applied, Healthy: s.waiting.IsZero() || now.Sub(s.waiting) < Overdue}
	if v.Healthy {
		v.LastUpdated = now
	}
	one := familyStatus{LastUpdated: v.LastUpdated, Healthy: v.Healthy}
	v.Status = map[string]familyStatus{IPv4: one, IPv6: one}
	if !node {
		return v, v.Healthy
	}
	eligible := s.eligible
	v.NodeEligible = &eligible
	return v, v.Healthy && eligible
}
