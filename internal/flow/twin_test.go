package flow_test

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/netctl/netctl/internal/flow"
	"github.com/netctl/netctl/internal/packet"
)

// twin is the table as one would write it without caring for speed: a map of
// pointers. It knows nothing of slots, so it is compared with a table that is
// never full.
type twin struct {
	rng      *rand.Rand
	byTuple  map[packet.Tuple]*direction
	owners   map[uint32]int
	perOwner int
}

type direction struct {
	conn    *connection
	reverse bool
	e       flow.Entry
}

type connection struct {
	tuples [2]packet.Tuple
	owner  uint32
	state  flow.State
	seen   uint32
}

func newTwin(rng *rand.Rand, perOwner int) *twin {
	return &twin{rng: rng, byTuple: map[packet.Tuple]*direction{}, owners: map[uint32]int{}, perOwner: perOwner}
}

func (w *twin) insert(fwd, rev packet.Tuple, f, r flow.Entry, now uint32) flow.Result {
	switch {
	case fwd == rev:
		return flow.Clash
	case w.byTuple[fwd] != nil:
		return flow.Exists
	case w.byTuple[rev] != nil:
		return flow.Clash
	case f.Owner != 0 && w.owners[f.Owner] >= w.perOwner:
		return flow.OwnerFull
	}
	c := &connection{tuples: [2]packet.Tuple{fwd, rev}, owner: f.Owner, state: flow.New, seen: now}
	r.Owner = f.Owner
	r.Flags |= flow.FlagReverse
	f.LastSeen, r.LastSeen = now, now
	w.byTuple[fwd] = &direction{conn: c, e: f}
	w.byTuple[rev] = &direction{conn: c, reverse: true, e: r}
	w.owners[f.Owner]++
	return flow.Inserted
}

func (w *twin) remove(c *connection) {
	delete(w.byTuple, c.tuples[0])
	delete(w.byTuple, c.tuples[1])
	w.owners[c.owner]--
}

func (w *twin) lookup(k packet.Tuple) (flow.Entry, bool) {
	d := w.byTuple[k]
	if d == nil {
		return flow.Entry{}, false
	}
	e := d.e
	e.State = d.conn.state
	return e, true
}

func (w *twin) packet(k packet.Tuple, size int, flags uint8, now uint32) {
	d := w.byTuple[k]
	d.e.Packets++
	d.e.Bytes += uint64(size)
	d.e.LastSeen, d.conn.seen = now, now
	d.conn.state = naiveStep(d.conn.state, k.Proto, d.reverse, flags, d.e.Packets)
}

// naiveStep is the state machine as a list of sentences.
func naiveStep(s flow.State, proto uint8, reverse bool, f uint8, n uint64) flow.State {
	syn, ack, fin, rst := f&packet.TCPSyn != 0, f&packet.TCPAck != 0, f&packet.TCPFin != 0, f&packet.TCPRst != 0
	over := s == flow.TimeWait || s == flow.ResetForward || s == flow.ResetReverse
	type row struct {
		when bool
		then flow.State
	}
	afterFin := flow.Established
	if fin && reverse {
		afterFin = flow.FinReverse
	} else if fin {
		afterFin = flow.FinForward
	}
	rows := []row{
		{s == flow.New && reverse, flow.Replied},
		{s == flow.Replied && n > 4, flow.Stream},
	}
	if proto == packet.ProtoTCP {
		rows = []row{
			{rst && over, s},
			{rst && reverse, flow.ResetReverse},
			{rst, flow.ResetForward},
			{s == flow.New && !reverse && syn && !ack, flow.SynSent},
			{s == flow.New && reverse && syn, flow.SynReceived},
			{s == flow.New && reverse, afterFin},
			{s == flow.SynSent && reverse && (syn || ack), flow.SynReceived},
			{s == flow.SynReceived && !reverse && ack, afterFin},
			{s == flow.Established, afterFin},
			{s == flow.FinForward && reverse && fin, flow.TimeWait},
			{s == flow.FinReverse && !reverse && fin, flow.TimeWait},
			{s == flow.ResetForward && !reverse && !syn, flow.Established},
			{s == flow.ResetReverse && reverse && !syn, flow.Established},
		}
	}
	for _, r := range rows {
		if r.when {
			return r.then
		}
	}
	return s
}

func naiveTimeout(c *connection) uint32 {
	k := c.tuples[0]
	switch k.Proto {
	case packet.ProtoICMP, packet.ProtoICMPv6:
		return 30
	case packet.ProtoTCP:
		return map[flow.State]uint32{
			flow.Established: 86400, flow.FinForward: 3600, flow.FinReverse: 3600,
			flow.TimeWait: 120, flow.ResetForward: 10, flow.ResetReverse: 10,
			flow.New: 60, flow.SynSent: 60, flow.SynReceived: 60,
		}[c.state]
	}
	switch {
	case c.state == flow.New:
		return 30
	case k.Proto == packet.ProtoSCTP:
		return 210
	case k.Proto != packet.ProtoUDP:
		return 600
	case c.state == flow.Stream:
		return 180
	case k.DstPort < 1024:
		return 30
	default:
		return 120
	}
}

func (w *twin) expire(now uint32) int {
	n := 0
	for k, d := range w.byTuple {
		if k == d.conn.tuples[0] && now-d.conn.seen > naiveTimeout(d.conn) {
			w.remove(d.conn)
			n++
		}
	}
	return n
}

// TestTwin runs random histories over few tuples on the table and its twin.
func TestTwin(t *testing.T) {
	t.Parallel()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	const perOwner = 40
	tab, tw := open(t, flow.Config{Slots: 1 << 13, PerOwner: perOwner}), newTwin(rng, perOwner)
	now := uint32(1000)
	for step := range 20_000 {
		k := randomTuple(rng)
		var e flow.Entry
		ref, found := tab.Lookup(&k, &e)
		want, wantFound := tw.lookup(k)
		if found != wantFound || found && e != want {
			t.Fatalf("step %d: lookup %v = %v\n%s", step, k, found, cmp.Diff(e, want))
		}
		switch op := rng.IntN(100); {
		case op < 50 && found:
			size, flags := rng.IntN(1500), uint8(rng.IntN(32))
			tab.Seen(ref, size, flags, now)
			tw.packet(k, size, flags, now)
		case op < 80:
			twinInsert(t, tab, tw, k, now)
		case op < 83 && found:
			tab.Remove(ref)
			tw.remove(tw.byTuple[k].conn)
		case op < 93 && found:
			twinUpdate(t, tab, tw, k, ref)
		case op == 98:
			now += uint32(rng.IntN(40))
			twinExpire(t, tab, tw, now)
		case op == 99 && rng.IntN(30) == 0:
			twinRemoveAddr(t, tab, tw, k.Src)
		}
	}
	if err := tab.Check(); err != nil {
		t.Fatal(err)
	}
	twinEach(t, tab, tw)
}

func randomTuple(rng *rand.Rand) packet.Tuple {
	k := tupleOf(rng.IntN(12))
	k.Dst = tupleOf(rng.IntN(12)).Src
	k.SrcPort, k.DstPort = uint16(rng.IntN(4)), uint16(1022+rng.IntN(4))
	k.Proto = []uint8{1, 6, 6, 6, 17, 17, 47, 58, 132}[rng.IntN(9)]
	if rng.IntN(2) == 0 {
		k = k.Reverse()
	}
	if rng.IntN(4) == 0 {
		k.Zone = uint16(1 + rng.IntN(2)<<15)
	}
	return k
}

func randomEntry(rng *rand.Rand) flow.Entry {
	k := randomTuple(rng)
	return flow.Entry{
		Rewrite: packet.Rewrite{Src: k.Src, Dst: k.Dst, SrcPort: k.SrcPort, DstPort: k.DstPort},
		Out:     rng.Uint32(), InGen: rng.Uint32(), OutGen: rng.Uint32(), FrontGen: rng.Uint32(),
		FrontSlot: uint16(rng.Uint32()), Flags: flow.Flags(rng.Uint32()) & (flow.FlagNAT | flow.FlagService | flow.FlagWrapped | flow.FlagInbound),
	}
}

func twinInsert(t *testing.T, tab *flow.Table, tw *twin, k packet.Tuple, now uint32) {
	t.Helper()
	rev := k.Reverse()
	if tw.rng.IntN(3) == 0 { // translated: the replies come from elsewhere
		rev.Src = tupleOf(tw.rng.IntN(12)).Src
	}
	f, r := randomEntry(tw.rng), randomEntry(tw.rng)
	f.Owner = uint32(tw.rng.IntN(9))
	_, got := tab.Insert(&k, &rev, &f, &r, now)
	f.State, r.State = 0, 0
	if got == flow.Inserted && tw.owners[f.Owner] >= tw.perOwner && f.Owner != 0 {
		resync(tab, tw) // the owner was full and gave up something: which is not the twin's to know
	}
	if want := tw.insert(k, rev, f, r, now); got != want {
		t.Fatalf("insert %v: %v, want %v", k, got, want)
	}
}

// resync removes from the twin what the table evicted.
func resync(tab *flow.Table, tw *twin) {
	var e flow.Entry
	for k, d := range tw.byTuple {
		if _, ok := tab.Lookup(&k, &e); !ok && tw.byTuple[k] != nil {
			tw.remove(d.conn)
		}
	}
}

func twinUpdate(t *testing.T, tab *flow.Table, tw *twin, k packet.Tuple, ref flow.Ref) {
	t.Helper()
	e := randomEntry(tw.rng)
	next, ok := tab.Update(ref, &e)
	if !ok {
		t.Fatal("update refused a fresh ref")
	}
	if _, ok := tab.Update(ref, &e); ok || next == ref {
		t.Fatal("update accepted a stale ref")
	}
	d := tw.byTuple[k]
	old := d.e
	d.e = e
	d.e.Owner, d.e.LastSeen, d.e.Packets, d.e.Bytes = old.Owner, old.LastSeen, old.Packets, old.Bytes
	d.e.Flags |= old.Flags & flow.FlagReverse
}

func twinExpire(t *testing.T, tab *flow.Table, tw *twin, now uint32) {
	t.Helper()
	got := 0
	for range flow.ExpireParts {
		got += tab.Expire(now)
	}
	if want := tw.expire(now); got != want {
		t.Fatalf("expire at %d freed %d, want %d", now, got, want)
	}
}

func twinRemoveAddr(t *testing.T, tab *flow.Table, tw *twin, a packet.Addr) {
	t.Helper()
	want := 0
	for _, d := range tw.byTuple {
		c := d.conn
		hit := false
		for _, k := range c.tuples {
			e := tw.byTuple[k].e
			hit = hit || k.Src == a || k.Dst == a || e.Rewrite.Src == a || e.Rewrite.Dst == a
		}
		if hit && tw.byTuple[c.tuples[0]] != nil {
			tw.remove(c)
			want++
		}
	}
	if got := tab.RemoveAddr(a); got != want {
		t.Fatalf("RemoveAddr freed %d, want %d", got, want)
	}
}

func twinEach(t *testing.T, tab *flow.Table, tw *twin) {
	t.Helper()
	n := 0
	tab.Each(func(k packet.Tuple, e flow.Entry) bool {
		n++
		if want, ok := tw.lookup(k); !ok || e != want {
			t.Errorf("each gave %v\n%s", k, cmp.Diff(e, want))
		}
		return true
	})
	if n != len(tw.byTuple) {
		t.Errorf("each gave %d directions, want %d", n, len(tw.byTuple))
	}
}
