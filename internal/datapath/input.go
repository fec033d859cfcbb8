package datapath

import (
	"math/rand/v2"
	"slices"
	"sync/atomic"

	"github.com/netctl/netctl/internal/flow"
	"github.com/netctl/netctl/internal/packet"
)

// Input is one caller's way into the router. It belongs to one goroutine at a
// time; Deliver does the whole walk in that goroutine.
type Input struct {
	router *Router
	id     PortID

	// active are the Tables that a running batch works with, nil between
	// batches: Publish waits on it.
	active atomic.Pointer[Tables]

	// The rest is the running batch's own.
	tables  *Tables
	now     uint32
	pkt     packet.Packet
	entry   flow.Entry
	rng     *rand.Rand
	scratch []byte // for answers
	via     uint32 // the peer that wrapped the packet, 0: it was not wrapped
	cut     packet.Segmenter
	wrapped []byte // for one packet that leaves wrapped
	batch   Batch  // for the port batched, nil: there was no packet for one yet
	batched Port
	second  uint32 // of answers
	answers map[answerKey]uint16

	packets, bytes   atomic.Uint64
	judged, rejudged atomic.Uint64
	drops            [dropCount]atomic.Uint64
}

// NewInput returns a way in for packets that come from the port id. Inputs are
// few and long-lived; Close gives one back.
func (r *Router) NewInput(id PortID) *Input {
	in := &Input{
		router:  r,
		id:      id,
		rng:     rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64())),
		scratch: make([]byte, packet.MaxError),
		answers: make(map[answerKey]uint16),
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.inputs = append(r.inputs, in)
	return in
}

// Close takes the input out of the router and keeps its counts.
func (in *Input) Close() {
	r := in.router
	r.mu.Lock()
	defer r.mu.Unlock()
	if i := slices.Index(r.inputs, in); i >= 0 {
		r.inputs = slices.Delete(r.inputs, i, i+1)
		c := in.counters()
		r.retired.add(&c)
	}
}

// Deliver walks a batch of packets through the router. The buffers are borrowed
// until it returns and may be changed in place.
func (in *Input) Deliver(bufs ...[]byte) {
	in.begin()
	defer in.end()
	for _, b := range bufs {
		in.packet(b)
	}
}

// begin starts a batch under the newest Tables. The second load makes sure that
// a Publish that did not see active yet is seen by us.
func (in *Input) begin() {
	for {
		t := in.router.tables.Load()
		in.active.Store(t)
		if in.router.tables.Load() == t {
			in.tables = t
			break
		}
	}
	in.now = in.router.clock()
}

func (in *Input) end() {
	if in.batch != nil {
		in.batch.Flush()
	}
	in.tables = nil
	in.active.Store(nil)
}

// write hands a packet to a port. The overlay may keep it until the run ends.
func (in *Input) write(out *PortEntry, buf []byte) error {
	if out.Kind != KindOverlay {
		return out.write(buf)
	}
	if in.batched != out.Port {
		in.batched, in.batch = out.Port, nil // the former was flushed when its run ended
		if b, ok := out.Port.(Batcher); ok {
			in.batch = b.NewBatch()
		}
	}
	if in.batch == nil {
		return out.Port.Write(buf)
	}
	return in.batch.Write(buf)
}

// packet walks one packet of a begun batch. A panic costs that packet and
// nothing else: pods choose what is parsed here, and a node must outlive them.
func (in *Input) packet(buf []byte) {
	defer in.recover()
	if d := in.walk(buf); d != DropNone {
		in.drops[d].Add(1)
		in.answer(answerTo(d))
	}
}

func (in *Input) recover() {
	if v := recover(); v != nil {
		in.drops[DropPanic].Add(1)
		in.router.panicked(v)
	}
}

// answer tells the sender of the packet in in.pkt what became of it, if that is
// allowed.
func (in *Input) answer(a answer) {
	if a == answerNone || !in.mayAnswer(answerError) {
		return
	}
	p := &in.pkt
	from := in.errorSource(p)
	var reply []byte
	switch {
	case a == answerPort && p.Tuple.Proto == packet.ProtoTCP:
		reply = packet.Reset(in.scratch, p)
	case a == answerPort:
		reply = packet.Unreachable(in.scratch, p, p.Tuple.Dst, packet.UnreachPort)
	case a == answerAdmin:
		reply = packet.Unreachable(in.scratch, p, from, packet.UnreachAdmin)
	default:
		reply = packet.Unreachable(in.scratch, p, from, packet.UnreachHost)
	}
	in.reply(reply)
}

// errorSource is the address that our own ICMP errors come from: the router's,
// or the packet's destination where the router has none of that family.
func (in *Input) errorSource(p *packet.Packet) packet.Addr {
	if a := in.tables.routerAddr(p.Tuple.Src); a != (packet.Addr{}) {
		return a
	}
	return p.Tuple.Dst
}

// reply sends a packet of our own back to where the current one came from.
func (in *Input) reply(buf []byte) {
	if len(buf) == 0 {
		return
	}
	from := in.tables.port(in.id)
	switch {
	case from.Port == nil:
	case in.via != 0:
		// The answer is addressed to a client behind that peer.
		_ = in.emitWrapped(from, buf, ofFamily(in.tables.peer(in.via).Router, in.pkt.Tuple.Dst))
	default:
		_ = from.Port.Write(buf) // an answer that does not fit is not owed
	}
}

func (in *Input) counters() Counters {
	c := Counters{
		Packets: in.packets.Load(), Bytes: in.bytes.Load(),
		Judged: in.judged.Load(), Rejudged: in.rejudged.Load(),
	}
	for i := range in.drops {
		c.Drops[i] = in.drops[i].Load()
	}
	return c
}

// Inputs are ways in for one port that any number of goroutines use at once.
type Inputs struct {
	router *Router
	id     PortID
	free   chan *Input
}

// idleInputs is how many inputs wait for the next packet; more than that are
// made when they are needed and closed again.
const idleInputs = 32

// NewInputs returns the ways in for packets that come from the port id.
func (r *Router) NewInputs(id PortID) *Inputs {
	return &Inputs{router: r, id: id, free: make(chan *Input, idleInputs)}
}

// Deliver is Input.Deliver, for concurrent use.
func (s *Inputs) Deliver(bufs ...[]byte) {
	var in *Input
	select {
	case in = <-s.free:
	default:
		in = s.router.NewInput(s.id)
	}
	in.Deliver(bufs...)
	select {
	case s.free <- in:
	default:
		in.Close()
	}
}
