package datapath

import (
	"encoding/binary"

	"github.com/netctl/netctl/internal/kernel"
	"github.com/netctl/netctl/internal/packet"
)

// A TUN's queue is the kernel's, and first come, first served: one connection that
// sends more than is carried fills it with megabytes, and everything else that the
// pod says waits behind them for milliseconds. So when a pod speaks of several
// things at once, the worker reads ahead: what is small, and of a flow that has
// nothing in the lane, is carried at once; large packets wait in the lane, in order.
//
//	TUN ──read──▶ small, and nothing of its flow waits ──▶ carried now
//	         └──▶ the rest ──▶ lane ──▶ carried when nothing is left to be read
//
// Where there is one flow alone, nothing is read ahead, and packets do not leave
// the cache.
const (
	// largePacket is from what size on a packet may wait.
	largePacket = 8 << 10
	// maxAhead bounds the packets in all lanes of a worker: 3 MB, more than one
	// connection has under way by itself. What does not fit waits in the TUN.
	maxAhead = 48
	// maxPassed is how many packets pass one that waits, at most: whoever sends small
	// ones without end would keep his large ones waiting for ever.
	maxPassed = 16
	// mixedFor is for how many packets a port counts as one of several flows after
	// it has shown that.
	mixedFor = 256
	// keepFor is for how many packets buffers are kept that nobody needs.
	keepFor = 16 * mixedFor
	// laneFlows are the flows that a lane tells apart. Two that share a number are
	// carried in order.
	laneFlows = 64
)

// lane is what was read ahead of one port.
type lane struct {
	port  Reader
	queue [maxAhead]waiting // a ring
	head  int
	count int
	// passed counts packets that were carried since one that waited was; round is
	// that in which the port was drained last.
	passed int
	round  uint64
	flows  [laneFlows]uint16 // packets in queue
	bulk   uint8             // the flow of the last large packet
	mixed  int
}

type waiting struct {
	buf  []byte
	flow uint8
}

// ahead is what a worker has read ahead.
type ahead struct {
	lanes map[PortID]*lane
	busy  int      // packets in all queues
	round uint64   // of the worker over all its ports
	free  [][]byte // buffers
	calm  int      // packets carried since one had to wait
	last  []byte   // the buffer of the packet that is carried now, nil: the worker's own
	// Nothing more is read: what is in TUNs is for who comes next.
	ending bool
}

// next returns the packet of a port that is to be carried next, or an error when
// there is none. It is valid until the next call. limited: nothing is read ahead.
func (w *worker) next(id PortID, r Reader, limited bool) ([]byte, error) {
	a := &w.ahead
	if a.last != nil {
		a.free = append(a.free, a.last)
		a.last = nil
	}
	if a.calm++; a.calm == keepFor {
		a.free = nil
	}
	l := a.lane(id, r)
	l.round = a.round
	for a.busy < maxAhead && !a.ending && (l.count == 0 || !limited && l.passed < maxPassed) {
		size, err := r.Read(w.buf)
		if err != nil {
			if l.count > 0 {
				break // what is wrong with the port is said again
			}
			return nil, err
		}
		pkt := w.buf[:size]
		flow, large := flowNumber(pkt), size >= largePacket
		l.saw(flow, large)
		if limited || l.flows[flow] == 0 && !large || l.count == 0 && l.mixed == 0 {
			l.passed++
			return pkt, nil
		}
		l.push(waiting{pkt, flow})
		a.busy++
		a.calm = 0
		w.buf = a.buffer()
	}
	if l.count == 0 {
		return nil, kernel.ErrAgain
	}
	return a.pop(l), nil
}

// lane returns a port's lane. What was read of a port that had the number before
// is dropped.
func (a *ahead) lane(id PortID, r Reader) *lane {
	l := a.lanes[id]
	if l != nil && l.port == r {
		return l
	}
	a.drop(id)
	l = &lane{port: r}
	if a.lanes == nil {
		a.lanes = make(map[PortID]*lane)
	}
	a.lanes[id] = l
	return l
}

// drop forgets a port.
func (a *ahead) drop(id PortID) {
	if l := a.lanes[id]; l != nil {
		a.busy -= l.count
		delete(a.lanes, id)
	}
}

// saw notes what kind of traffic the port has.
func (l *lane) saw(flow uint8, large bool) {
	switch {
	case large:
		l.bulk = flow
	case flow != l.bulk:
		l.mixed = mixedFor
		return
	}
	l.mixed = max(0, l.mixed-1)
}

// pop takes the first packet of a lane that has one.
func (a *ahead) pop(l *lane) []byte {
	first := l.queue[l.head]
	l.queue[l.head] = waiting{}
	l.head = (l.head + 1) % maxAhead
	l.count--
	l.passed = 0
	l.flows[first.flow]--
	a.busy--
	a.last = first.buf[:cap(first.buf)]
	return first.buf
}

// push adds to a lane: all lanes together have no more than fits in one.
func (l *lane) push(v waiting) {
	if l.count == 0 {
		l.passed = 0
	}
	l.queue[(l.head+l.count)%maxAhead] = v
	l.count++
	l.flows[v.flow]++
}

func (a *ahead) buffer() []byte {
	if n := len(a.free); n > 0 {
		buf := a.free[n-1]
		a.free = a.free[:n-1]
		return buf
	}
	return make([]byte, packet.MaxSize)
}

// has reports whether something waits of a port.
func (a *ahead) has(id PortID) bool {
	l := a.lanes[id]
	return l != nil && l.count > 0
}

// waits calls yield for every port of which something waits and that has not had its
// turn in this round.
func (a *ahead) waits(yield func(PortID) bool) {
	if a.busy == 0 {
		return
	}
	for id, l := range a.lanes {
		if l.count > 0 && l.round != a.round && !yield(id) {
			return
		}
	}
}

// flowNumber numbers a packet's flow; both directions differ. Packets of which
// ports cannot be read are one flow for each pair of addresses, whole IPv4
// datagrams apart from fragments.
func flowNumber(pkt []byte) uint8 {
	const v4, v6 = 20, 40
	const k = 0x9e3779b97f4a7c15
	if len(pkt) < packet.VNetLen+v4+4 {
		return 0
	}
	ip := pkt[packet.VNetLen:]
	var h uint64
	var ports []byte
	switch {
	case ip[0]>>4 == 4:
		h = binary.LittleEndian.Uint64(ip[12:]) * k
		if head := int(ip[0]&15) * 4; carriesPorts(ip[9]) && binary.BigEndian.Uint16(ip[6:])&0x3fff == 0 && head >= v4 && len(ip) >= head+4 {
			ports = ip[head : head+4]
		}
	case len(ip) >= v6+4:
		h = (binary.LittleEndian.Uint64(ip[8:])*k ^ binary.LittleEndian.Uint64(ip[16:])) * k
		h = ((h^h>>32)*k ^ binary.LittleEndian.Uint64(ip[24:])) * k
		h = (h ^ h>>32 ^ binary.LittleEndian.Uint64(ip[32:])) * k
		if carriesPorts(ip[6]) {
			ports = ip[v6 : v6+4]
		}
	}
	if ports != nil {
		h = (h ^ h>>32 ^ uint64(binary.LittleEndian.Uint32(ports))) * k
	}
	return uint8((h >> 32) % laneFlows)
}

func carriesPorts(proto byte) bool { return proto == packet.ProtoTCP || proto == packet.ProtoUDP }
