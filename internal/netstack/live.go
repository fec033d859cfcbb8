package netstack

import (
	"sync"

	"github.com/netctl/netctl/internal/packet"
)

// live are the TCP connections that are here, by the tuple of the packets that
// come for them: from the first SYN until nothing of them is left, TIME_WAIT
// included. A successor must know exactly these.
type live struct {
	mu     sync.Mutex
	tuples map[packet.Tuple]count // guarded by mu
	heir   Heir                   // guarded by mu; nil: this stack serves
}

// count is how many connections there are of a tuple: a new one may begin before
// the last of the old one is gone.
type count struct {
	n       int
	inbound bool // opened by Dial
}

// begin enters a connection that Dial opens. An heir hears of it before its
// first packet.
func (l *live) begin(t packet.Tuple) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := l.tuples[t].n + 1
	l.tuples[t] = count{n, true}
	if l.heir != nil && n == 1 {
		l.heir.Began(t, true)
	}
}

// admit enters a connection that a pod opens; false: there is an heir, whose
// it is.
func (l *live) admit(t packet.Tuple) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.heir != nil {
		return false
	}
	l.tuples[t] = count{l.tuples[t].n + 1, false}
	return true
}

// end takes a connection out.
func (l *live) end(t packet.Tuple) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if c := l.tuples[t]; c.n > 1 {
		l.tuples[t] = count{c.n - 1, c.inbound}
		return
	}
	delete(l.tuples, t)
	if l.heir != nil {
		l.heir.Ended(t)
	}
}

// disown says to the heir that a tuple has ended, though its connection still
// holds something: its other end, outside, which nobody speaks to any more.
func (l *live) disown(t packet.Tuple) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.heir != nil && l.tuples[t].n > 0 {
		l.heir.Ended(t)
	}
}

func (l *live) has(t packet.Tuple) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.tuples[t].n > 0
}

func (l *live) size() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.tuples)
}

// retire tells the heir, nil for none, of every connection and of what follows.
func (l *live) retire(h Heir) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.heir = h
	if h == nil {
		return
	}
	for t, c := range l.tuples {
		h.Began(t, c.inbound)
	}
}

// tuple is the key as packets from the pod carry it.
func (k connKey) tuple() packet.Tuple {
	return packet.Tuple{
		Src: packet.AddrFrom(k.src.Addr()), SrcPort: k.src.Port(),
		Dst: packet.AddrFrom(k.dst.Addr()), DstPort: k.dst.Port(), Proto: packet.ProtoTCP,
	}
}
