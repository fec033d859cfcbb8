// Package metrics counts a name server's questions and answers and writes what it
// counted in Prometheus' text format, under the names that CoreDNS gives it, so
// that dashboards and alerts for CoreDNS go on.
//
// Why here. Counting is on the path of every answer: it is a few atomic additions
// into fixed arrays, without a lock, an allocation or a library. Times and sizes cost
// more than that, so of the answers from memory one in sixteen is measured, and
// counts for sixteen.
//
// How to test. What is written is compared with what was counted, and read by a
// parser of the format in the test.
package metrics

import (
	"sync/atomic"
	"time"
)

// Plugin is who answered, in CoreDNS' words.
type Plugin uint8

// The plugins.
const (
	None       Plugin = iota // an error before any name was looked up
	Kubernetes               // a name of the cluster
	Hosts                    // of the options
	Cache                    // a name outside that was known
	Forwarder                // an upstream
	plugins
)

//nolint:gochecknoglobals // names known at compile time
var pluginNames = [plugins]string{"", "kubernetes", "hosts", "cache", "forward"}

// known are the types that are counted by themselves, as in CoreDNS; the rest is
// "other".
//
//nolint:gochecknoglobals // names known at compile time
var known = [...]struct {
	number uint16
	name   string
}{
	{1, "A"},
	{28, "AAAA"},
	{2, "NS"},
	{5, "CNAME"},
	{6, "SOA"},
	{12, "PTR"},
	{15, "MX"},
	{16, "TXT"},
	{33, "SRV"},
	{35, "NAPTR"},
	{43, "DS"},
	{46, "RRSIG"},
	{47, "NSEC"},
	{48, "DNSKEY"},
	{65, "HTTPS"},
	{251, "IXFR"},
	{252, "AXFR"},
	{255, "ANY"},
	{0, "other"},
}

const (
	types  = len(known)
	other  = types - 1
	rcodes = 16
	// sample is of how many answers from memory one is measured.
	sample = 16
)

// Set is the counters of one server. Its zero value is ready; its methods may be
// called from any goroutine.
type Set struct {
	requests  [2][2][types]atomic.Uint64 // stream or not, IPv6 or not, type
	do        [2][2]atomic.Uint64
	sizesIn   [2]sizes
	sizesOut  [2]sizes
	responses [2][rcodes][plugins]atomic.Uint64
	times     durations

	programming durations
}

func index(b bool) int {
	if b {
		return 1
	}
	return 0
}

func typeIndex(t uint16) int {
	switch t { // nearly every question
	case known[0].number:
		return 0
	case known[1].number:
		return 1
	}
	for i := 2; i < other; i++ {
		if known[i].number == t {
			return i
		}
	}
	return other
}

// Request counts a question. It returns the time if its answer is to be measured, else
// the zero time.
func (s *Set) Request(stream, v6 bool, qtype uint16, do bool) time.Time {
	p, f := index(stream), index(v6)
	n := s.requests[p][f][typeIndex(qtype)].Add(1)
	if do {
		s.do[p][f].Add(1)
	}
	if n%sample != 0 {
		return time.Time{}
	}
	return time.Now()
}

// Response counts an answer.
func (s *Set) Response(stream bool, rcode uint16, plugin Plugin) {
	s.responses[index(stream)][rcode%rcodes][plugin].Add(1)
}

// Measure adds an answer from memory whose question came at start, which Request
// returned.
func (s *Set) Measure(stream bool, in, out int, start time.Time) {
	s.times.add(time.Since(start), sample)
	s.sizesIn[index(stream)].add(in, sample)
	s.sizesOut[index(stream)].add(out, sample)
}

// Answers returns how many answers of a response code there were.
func (s *Set) Answers(rcode int) (n uint64) {
	for p := range s.responses {
		for i := range s.responses[p][rcode] {
			n += s.responses[p][rcode][i].Load()
		}
	}
	return n
}

// Waited adds an answer that took its way upstream.
func (s *Set) Waited(stream bool, in, out int, d time.Duration) {
	s.times.add(d, 1)
	s.sizesIn[index(stream)].add(in, 1)
	s.sizesOut[index(stream)].add(out, 1)
}

// Programmed times how long a change of the cluster took from being heard of to
// being answered.
func (s *Set) Programmed(d time.Duration) { s.programming.add(d, 1) }

// The buckets of CoreDNS.
const (
	sizeBuckets = 14
	timeBuckets = 16
	firstBucket = 250 * time.Microsecond
)

//nolint:gochecknoglobals // bounds known at compile time
var sizeBounds = [sizeBuckets]int{0, 100, 200, 300, 400, 511, 1023, 2047, 4095, 8291, 16000, 32000, 48000, 64000}

// sizes is a histogram of bytes; the last count is of what is larger.
type sizes struct {
	counts [sizeBuckets + 1]atomic.Uint64
	sum    atomic.Uint64
}

func (h *sizes) add(n int, weight uint64) {
	i := 0
	for i < sizeBuckets && n > sizeBounds[i] {
		i++
	}
	h.counts[i].Add(weight)
	h.sum.Add(uint64(n) * weight)
}

// durations is a histogram of times.
type durations struct {
	counts [timeBuckets + 1]atomic.Uint64
	sum    atomic.Uint64 // nanoseconds
}

func (h *durations) add(d time.Duration, weight uint64) {
	i := 0
	for bound := firstBucket; i < timeBuckets && d > bound; i++ {
		bound *= 2
	}
	h.counts[i].Add(weight)
	h.sum.Add(uint64(max(d, 0)) * weight)
}
