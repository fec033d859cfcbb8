// Package dns answers the names of the cluster and forwards all other names.
//
// What. Compile turns Services, EndpointSlices and Pods into an immutable
// Zone; a Server answers questions from the Zone that was published last,
// message in, message out, without knowing whether the bytes came out of a
// packet, a socket or a stream. The answers follow the Kubernetes DNS
// specification 1.1.0 and, where that says nothing, what clients know from
// CoreDNS with the kubernetes plugin as kubeadm configures it.
//
//	        query bytes
//	             |
//	          Answer --------- Drop      a response, or no header at all
//	         /      \
//	  Answered      Forward              the name is not ours, not in the cache
//	names of the        |
//	cluster, errors,    v
//	cached names     Forward(query, reply)  collapses identical questions,
//	                    |                   asks upstream, fills the cache
//	                  reply(bytes)
//
// Why here. The agent calls Answer inside the packet walk, on the pod's own
// node, so a name of the cluster costs no hop, no socket and no connection
// tracking. That is why the common answers (A, AAAA, name error, no data) are
// written as wire bytes without allocation, and why Forward calls back and
// never blocks. All other answers are built with github.com/miekg/dns.
//
// Names are compared as lower-cased wire labels, never as text: the one label
// "a.svc" and the two labels "a", "svc" are different names. The owner names
// of an answer keep the spelling of the question (safe for resolvers that
// randomise case); targets keep the question's spelling of the zone.
//
// Invariants. A Zone never changes after Compile. A response is never
// answered. A reply over UDP is no longer than the client's EDNS size and 1232
// bytes, 512 without EDNS; a longer one is cut at a record and has TC set. An
// error reply is no longer than its question. No queue, cache or goroutine
// count is without a bound, and of each a quarter is kept for clients that have
// little, so that a greedy one is refused and not the next. SERVFAIL for a name of the cluster is given only
// before the first complete list of the cluster's objects.
//
// What a server is told beyond the cluster's names are options.Options: where
// names outside are asked, names of its own, rewrites, search paths. They are
// compiled, too (outside.go), and replaced as a whole.
//
// Differences to CoreDNS are wanted, each with its reason, and listed where both
// are asked the same questions: test/dns/coredns_test.go. Beside those, answers
// are shuffled by rotation, and TC is not set when only additional records had
// to go.
//
// How to test. Tables of question and answer per rule of the specification
// (spec_test.go), a slow twin written with miekg/dns over the model values and
// compared on random clusters (twin_test.go), fuzzing of parser and responder
// (fuzz_test.go), fake upstreams on the loopback address, and CoreDNS over the
// same objects (test/dns).
package dns

import "time"

// Status says what became of a query.
type Status uint8

// What Answer can say.
const (
	// Drop means that nothing may be sent: the bytes are no query.
	Drop Status = iota
	// Answered means that the reply is complete.
	Answered
	// Forward means that the caller shall pass the query to Server.Forward.
	Forward
)

// String returns the status in lower case.
func (s Status) String() string {
	switch s {
	case Drop:
		return "drop"
	case Answered:
		return "answered"
	case Forward:
		return "forward"
	default:
		return "unknown"
	}
}

// PodMode says how names like 10-1-2-3.default.pod.cluster.local are answered.
type PodMode uint8

// The modes of the kubernetes plugin of CoreDNS.
const (
	// PodsInsecure echoes the address in the name; kubeadm's default.
	PodsInsecure PodMode = iota
	// PodsVerified answers when a living pod of the namespace has the address.
	PodsVerified
	// PodsDisabled answers none.
	PodsDisabled
)

// Sizes and times, with the reason for each.
const (
	// MaxUDP is the longest reply over UDP: what passes every path without
	// fragments (DNS flag day 2020, RFC 9715).
	MaxUDP = 1232
	// plainUDP is the longest reply to a client without EDNS (RFC 1035 §4.2.1).
	plainUDP = 512
	// maxMessage is the longest message of a stream (its length has 16 bits).
	maxMessage = 65535

	defaultDomain      = "cluster.local"
	defaultTTL         = 30 // kubeadm's Corefile
	defaultNegativeTTL = 5  // a new service is found soon after it was missed
	versionTTL         = 28800
	anyTTL             = 8482 // harmless: clients do not ask again soon
	// maxChain bounds CNAME after CNAME, as CoreDNS does.
	maxChain = 8

	// maxInFlight is kubeadm's max_concurrent of the forward plugin.
	maxInFlight = 1000
	// fairInFlight is what a client may always have out: A and AAAA of a name.
	fairInFlight = 2
	// maxAskers bounds the questions that wait for upstream, all together, and
	// askersPerClient those of one client.
	maxAskers       = 8192
	askersPerClient = maxAskers / 8
	fairAskers      = 8
	// attemptTimeout and totalTimeout leave room for three upstreams before a
	// resolver's usual 5 s are over.
	attemptTimeout = 1500 * time.Millisecond
	totalTimeout   = 4500 * time.Millisecond
	// downTime is how long an upstream that failed twice is asked last.
	downTime = 5 * time.Second
	// maxHedged is how many upstreams work at one question at a time.
	maxHedged = 2
	// An upstream that takes longer than usual gets company after hedgeLeast to
	// hedgeMost, and one that is not known yet after hedgeUnknown.
	hedgeLeast, hedgeMost, hedgeUnknown = 20 * time.Millisecond, 500 * time.Millisecond, 250 * time.Millisecond
	// maxHealth is how many upstreams are remembered; options and resolv.conf name
	// fewer.
	maxHealth = 1024
	// maxWrong is how many wrong answers (id, question) one exchange reads.
	maxWrong = 64

	cacheEntries   = 10000
	cacheMaxBytes  = 8 << 20
	maxPositiveTTL = 3600
	maxNegativeTTL = 30 // kubeadm's cache 30
	failureTTL     = 1  // RFC 9520 §3.2 asks for at least a second

	// What nobody answers is answered from what is over (RFC 8767 §5): after
	// staleWait with an upstream that is still silent, with a TTL of staleTTL, and
	// upstreams are not asked again before recheck.
	staleFor  = time.Hour
	staleWait = 1800 * time.Millisecond
	staleTTL  = 30
	recheck   = 5 * time.Second
	// Of an entry that was hit prefetchHits times the last part of its time makes a
	// hit ask for it anew.
	prefetchHits = 3
	prefetchPart = 10

	// idleTimeout ends a stream without a complete question (RFC 7766 §6.2.3).
	idleTimeout = 10 * time.Second
	// writeTimeout ends a stream whose client does not read.
	writeTimeout = 5 * time.Second
	// maxPipeline bounds the unanswered questions of a stream.
	maxPipeline = 64
	// maxStreams bounds the streams served at a time, and streamsPerClient
	// those of one client.
	maxStreams       = 1024
	streamsPerClient = maxStreams / 8
	fairStreams      = 2
)
