package overlay

import "sync/atomic"

// Drop is why the overlay dropped a packet.
type Drop uint8

// The reasons.
const (
	DropNoPeer    Drop = iota // no peer for the destination
	DropFull                  // the queue of all peers had no room
	DropMalformed             // no readable destination, or headers that lie
	DropTooBig                // does not fit the tunnel's MTU and cannot be cut
	DropNoSession             // the peer does not answer, and its share of the queue is full or was given up
	DropForeign               // received: no message of a session of ours, or one seen before
	DropSend                  // the socket refused a piece
	DropHandshake             // received: a handshake message that is forged, late, or one too many
	DropSource                // received: from an address that is not the peer's
	numDrops
)

// String returns the reason as metrics and traces spell it.
func (d Drop) String() string {
	switch d {
	case DropNoPeer:
		return "no_peer"
	case DropFull:
		return "queue_full"
	case DropMalformed:
		return "malformed"
	case DropTooBig:
		return "too_big"
	case DropNoSession:
		return "no_session"
	case DropForeign:
		return "foreign"
	case DropSend:
		return "send_error"
	case DropHandshake:
		return "handshake"
	case DropSource:
		return "foreign_source"
	default:
		return "unknown"
	}
}

// Counters are an engine's totals since its start.
type Counters struct {
	TxPackets  uint64 // taken from the router; a super-packet is one
	TxSegments uint64 // tunnel packets they became
	TxBytes    uint64 // of the segments, before encryption
	RxSegments uint64 // tunnel packets decrypted
	RxBytes    uint64 // of the segments
	RxPackets  uint64 // given to the router; a super-packet is one

	// Datagrams and system calls of the socket, handshakes included.
	TxDatagrams, TxBatches uint64
	RxDatagrams, RxBatches uint64
	RxShared               uint64 // received pieces that were opened beside their reader
	GSODisabled            uint64 // how often the kernel refused UDP GSO, which ended its use

	Drops [numDrops]uint64 // indexed by Drop
}

// Dropped calls yield for every reason.
func (c *Counters) Dropped(yield func(Drop, uint64) bool) {
	for d, n := range c.Drops {
		if !yield(Drop(d), n) {
			return
		}
	}
}

// counters are Counters as they are counted.
type counters struct {
	txPackets, txSegments, txBytes atomic.Uint64
	rxSegments, rxBytes, rxPackets atomic.Uint64
	txDatagrams, txBatches         atomic.Uint64
	rxDatagrams, rxBatches         atomic.Uint64
	rxShared                       atomic.Uint64
	drops                          [numDrops]atomic.Uint64
}

func (c *counters) drop(d Drop) { c.drops[d].Add(1) }

func (c *counters) read() Counters {
	out := Counters{
		TxPackets: c.txPackets.Load(), TxSegments: c.txSegments.Load(), TxBytes: c.txBytes.Load(),
		RxSegments: c.rxSegments.Load(), RxBytes: c.rxBytes.Load(), RxPackets: c.rxPackets.Load(),
		TxDatagrams: c.txDatagrams.Load(), TxBatches: c.txBatches.Load(),
		RxDatagrams: c.rxDatagrams.Load(), RxBatches: c.rxBatches.Load(),
		RxShared: c.rxShared.Load(),
	}
	for i := range c.drops {
		out.Drops[i] = c.drops[i].Load()
	}
	return out
}
