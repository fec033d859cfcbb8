package datapath

import (
	"hash/maphash"
	"sync"

	"github.com/netctl/netctl/internal/packet"
)

const (
	fragmentSets    = 32 // times fragmentWays: datagrams of one sender that may be in pieces at once
	fragmentWays    = 4
	fragmentTimeout = 30 // seconds, RFC 791 §3.2 / RFC 8200 §4.5 allow 15 to 120
)

type fragmentEntry struct {
	key              packet.FragKey
	srcPort, dstPort uint16
	until            uint32
}

// fragments remembers the ports that the first fragment of a datagram carried,
// so that the later ones, which carry none, follow its verdict. It is bounded
// for each sender: a new datagram pushes the oldest one of its set out, and
// never another sender's. Nothing is reassembled.
type fragments struct {
	seed maphash.Seed

	mu      sync.RWMutex
	senders map[uint32]*senderFragments // guarded by mu; 8 KB for each that ever sent a first fragment
}

type senderFragments [fragmentSets]struct {
	mu   sync.Mutex
	ways [fragmentWays]fragmentEntry
}

func newFragments() *fragments {
	return &fragments{seed: maphash.MakeSeed(), senders: make(map[uint32]*senderFragments)}
}

// of returns what is remembered of a sender, nil when that is nothing.
func (f *fragments) of(sender uint32) *senderFragments {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.senders[sender]
}

// add is of for a sender that may be new.
func (f *fragments) add(sender uint32) *senderFragments {
	if s := f.of(sender); s != nil {
		return s
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.senders[sender] == nil {
		f.senders[sender] = new(senderFragments)
	}
	return f.senders[sender]
}

// learn remembers the ports of a first fragment.
func (f *fragments) learn(sender uint32, k packet.FragKey, srcPort, dstPort uint16, now uint32) {
	set := &f.add(sender)[maphash.Comparable(f.seed, k)%fragmentSets]
	set.mu.Lock()
	defer set.mu.Unlock()
	victim := &set.ways[0]
	for i := range set.ways {
		w := &set.ways[i]
		if w.key == k {
			victim = w
			break
		}
		if w.until < victim.until {
			victim = w
		}
	}
	*victim = fragmentEntry{key: k, srcPort: srcPort, dstPort: dstPort, until: now + fragmentTimeout}
}

// ports returns what learn was told of the datagram.
func (f *fragments) ports(sender uint32, k packet.FragKey, now uint32) (srcPort, dstPort uint16, ok bool) {
	sets := f.of(sender)
	if sets == nil {
		return 0, 0, false
	}
	set := &sets[maphash.Comparable(f.seed, k)%fragmentSets]
	set.mu.Lock()
	defer set.mu.Unlock()
	for i := range set.ways {
		if w := &set.ways[i]; w.key == k && w.until > now {
			return w.srcPort, w.dstPort, true
		}
	}
	return 0, 0, false
}
