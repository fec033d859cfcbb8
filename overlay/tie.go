package overlay

import (
	"bytes"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.zx2c4.com/wireguard/conn"
)

const (
	// tieWindow is how long after our own handshake initiation one from the
	// same peer counts as a tie: longer than any round trip between nodes,
	// shorter than WireGuard's own repetition after 5 s.
	tieWindow = time.Second
	// maxTies bounds how many of a peer's initiations in a row we refuse. If
	// ours are never answered (our clock was set back, so that the peer takes
	// them for replays), its own must get through.
	maxTies = 2
	// answerTime is how long our initiation waits for WireGuard to look at the
	// peer's. That takes 0.2 ms, more on a busy machine, and we hear of it:
	// this is for what it throws away without a word (a wrong checksum).
	answerTime = time.Second
	// maxStrangers bounds how many initiations from unknown addresses are
	// remembered.
	maxStrangers = 64
)

// ties settles handshakes that both ends begin at once, which is the rule and
// not the exception here: two nodes learn of each other at the same moment, and
// greet. WireGuard lets each end drop its own attempt in favour of the other's,
// so that both fail and wait 5 seconds. Here the lower key wins:
//
//	A (lower key)                 B
//	  |--- initiation --. .-------|
//	  |                  X        |
//	  |<----------------' '------>|  B answers A's, dropping its own
//	  |   A refuses B's, and      |
//	  |--- sends its own again -->|  in case B did not know A yet when the
//	  |<------- response ---------|  first arrived; else a replay, ignored
//
// If B's comes first, but A's WireGuard begins its own before it has looked at
// it, A's is held until the answer to B's leaves or B's is rejected. Otherwise
// WireGuard handles B's initiation and B's response at once, and may end with a
// session whose index the peer does not know.
type ties struct {
	self Key
	send func(message []byte, to conn.Endpoint) // a held initiation; not called after close

	mu        sync.Mutex
	from      map[netip.AddrPort]*tie // by the addresses of a peer; guarded by mu
	strangers [maxStrangers]stranger  // guarded by mu
	next      int                     // index into strangers; guarded by mu
	closed    bool                    // guarded by mu
}

// tie is what there is to know of one peer. Its fields are guarded by ties.mu.
type tie struct {
	key     Key
	message []byte        // our last initiation
	to      conn.Endpoint // where it was sent
	sent    time.Time     // when; zero: answered
	passed  time.Time     // when WireGuard was last given one of the peer's; zero: answered
	refused int           // of the peer's in a row
	held    *time.Timer   // will send our last one
}

// stranger is an initiation from an address that was no peer's. Its sender may
// become one while WireGuard has not looked at it yet.
type stranger struct {
	addr   netip.AddrPort
	passed time.Time
}

func newTies(self Key, send func([]byte, conn.Endpoint)) *ties {
	return &ties{self: self, send: send, from: make(map[netip.AddrPort]*tie)}
}

// setPeers keeps what is known of peers that stay.
func (ts *ties) setPeers(peers []Peer) {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	known := make(map[Key]*tie, len(ts.from))
	for _, t := range ts.from {
		known[t.key] = t
	}
	next := make(map[netip.AddrPort]*tie, len(peers))
	for _, p := range peers {
		t := known[p.PublicKey]
		if t == nil {
			t = &tie{key: p.PublicKey}
		}
		// A node with several addresses may send from another than it is
		// reached at; its addresses are among the allowed IPs.
		next[p.Endpoint] = t
		for _, prefix := range p.AllowedIPs {
			if prefix.IsSingleIP() {
				next[netip.AddrPortFrom(prefix.Addr(), p.Endpoint.Port())] = t
			}
		}
	}
	for _, s := range ts.strangers {
		if t := next[s.addr]; t != nil && s.passed.After(t.passed) {
			t.passed = s.passed
		}
	}
	ts.from = next
}

// wins reports whether our initiations take precedence over the peer's.
func (ts *ties) wins(t *tie) bool { return bytes.Compare(ts.self[:], t.key[:]) < 0 }

// begin notes that we begin a handshake. False: the message must not be sent
// now; it is, a little later, if it is still needed then.
func (ts *ties) begin(message []byte, to conn.Endpoint, now time.Time) (send bool) {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	t := ts.from[addrPort(to)]
	if t == nil {
		return true
	}
	t.message, t.to = append(t.message[:0], message...), to
	if !ts.wins(t) || now.Sub(t.passed) > answerTime {
		t.sent = now
		return true
	}
	if t.held != nil {
		t.held.Stop()
	}
	t.held = time.AfterFunc(answerTime, func() { ts.release(t) })
	return false
}

// release sends a held initiation.
func (ts *ties) release(t *tie) {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	ts.releaseLocked(t)
}

func (ts *ties) releaseLocked(t *tie) {
	if ts.closed || t.held == nil {
		return
	}
	t.held, t.sent = nil, time.Now()
	ts.send(t.message, t.to)
}

// respond notes that WireGuard answers the peer's initiation.
func (ts *ties) respond(to conn.Endpoint) {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	t := ts.from[addrPort(to)]
	if t == nil {
		return
	}
	t.passed = time.Time{}
	if t.held != nil {
		t.held.Stop()
		t.held = nil
	}
}

// rejected notes that WireGuard has looked at an initiation from there and
// will not answer it.
func (ts *ties) rejected(from netip.AddrPort) {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	for i := range ts.strangers {
		if ts.strangers[i].addr == from {
			ts.strangers[i] = stranger{}
		}
	}
	t := ts.from[from]
	if t == nil {
		return
	}
	t.passed = time.Time{}
	if t.held != nil && t.held.Stop() {
		ts.releaseLocked(t)
	}
}

// answered notes that the peer has answered our initiation.
func (ts *ties) answered(from conn.Endpoint) {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	if t := ts.from[addrPort(from)]; t != nil {
		t.refused, t.sent = 0, time.Time{}
	}
}

// refuse reports whether an initiation from there must be ignored because ours
// is under way and takes precedence; again is ours, to be sent once more.
func (ts *ties) refuse(from conn.Endpoint, now time.Time) (again []byte, to conn.Endpoint, refuse bool) {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	addr := addrPort(from)
	t := ts.from[addr]
	if t == nil {
		ts.strangers[ts.next] = stranger{addr: addr, passed: now}
		ts.next = (ts.next + 1) % maxStrangers
		return nil, nil, false
	}
	if !ts.wins(t) || now.Sub(t.sent) > tieWindow || t.refused == maxTies {
		t.refused, t.passed = 0, now
		return nil, nil, false
	}
	t.refused++
	return slices.Clone(t.message), t.to, true
}

// close ends held initiations.
func (ts *ties) close() {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	ts.closed = true
	for _, t := range ts.from {
		if t.held != nil {
			t.held.Stop()
		}
	}
}

// asker is where an initiation came from. WireGuard asks for the name of those
// whose initiations it rejects, to log it, and so we learn of that.
type asker struct {
	conn.Endpoint
	ties *ties
}

// DstToString returns the address.
func (a asker) DstToString() string {
	a.ties.rejected(addrPort(a.Endpoint))
	return a.Endpoint.DstToString()
}

// addrPort returns the remote address of an endpoint of any bind.
func addrPort(ep conn.Endpoint) netip.AddrPort {
	a, err := netip.ParseAddrPort(ep.DstToString())
	if err != nil {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}
