package datapath

import (
	"hash/maphash"
	"sync"

	"github.com/netctl/netctl/internal/packet"
)

const (
	fragmentSets    = 1024 // times fragmentWays: datagrams that may be in pieces at once on a node
	fragmentWays    = 4
	fragmentTimeout = 30 // seconds, RFC 791 §3.2 / RFC 8200 §4.5 allow 15 to 120
)

// fragmentKey names one fragmented datagram on its way in (RFC 791 §3.2).
type fragmentKey struct {
	datagram packet.FragKey
	in       PortID
}

type fragmentEntry struct {
	key              fragmentKey
	srcPort, dstPort uint16
	until            uint32
}

// fragments remembers the ports that the first fragment of a datagram carried,
// so that the later ones, which carry none, follow its verdict. It is bounded:
// a new datagram pushes the oldest one of its set out. Nothing is reassembled.
type fragments struct {
	seed maphash.Seed
	sets [fragmentSets]struct {
		mu   sync.Mutex
		ways [fragmentWays]fragmentEntry
	}
}

func newFragments() *fragments { return &fragments{seed: maphash.MakeSeed()} }

// learn remembers the ports of a first fragment.
func (f *fragments) learn(k fragmentKey, srcPort, dstPort uint16, now uint32) {
	set := &f.sets[maphash.Comparable(f.seed, k)%fragmentSets]
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
func (f *fragments) ports(k fragmentKey, now uint32) (srcPort, dstPort uint16, ok bool) {
	set := &f.sets[maphash.Comparable(f.seed, k)%fragmentSets]
	set.mu.Lock()
	defer set.mu.Unlock()
	for i := range set.ways {
		if w := &set.ways[i]; w.key == k && w.until > now {
			return w.srcPort, w.dstPort, true
		}
	}
	return 0, 0, false
}
