package flow_test

import (
	"math"
	"net/netip"
	"testing"

	"github.com/netctl/netctl/internal/flow"
	"github.com/netctl/netctl/internal/packet"
)

func open(tb testing.TB, c flow.Config) *flow.Table {
	tb.Helper()
	tab, err := flow.Open(c)
	if err != nil {
		tb.Fatal(err)
	}
	return tab
}

// insert adds tuple k with untranslated replies.
func insert(tab *flow.Table, k packet.Tuple, owner, now uint32) (flow.Ref, flow.Result) {
	rev := k.Reverse()
	return tab.Insert(&k, &rev, &flow.Entry{Owner: owner}, &flow.Entry{}, now)
}

// send records a packet with tuple k; false when no connection is known.
func send(tab *flow.Table, k packet.Tuple, flags uint8, now uint32) bool {
	var e flow.Entry
	ref, ok := tab.Lookup(&k, &e)
	if ok {
		tab.Seen(ref, 100, flags, now)
	}
	return ok
}

func state(t *testing.T, tab *flow.Table, k packet.Tuple) flow.State {
	t.Helper()
	var e flow.Entry
	if _, ok := tab.Lookup(&k, &e); !ok {
		t.Fatalf("%v is unknown", k)
	}
	return e.State
}

func check(t *testing.T, tab *flow.Table) {
	t.Helper()
	if err := tab.Check(); err != nil {
		t.Fatal(err)
	}
}

func TestInsertBothDirections(t *testing.T) {
	t.Parallel()
	tab := open(t, flow.Config{Slots: 64})
	client, vip, backend := addr("10.0.0.1"), addr("10.96.0.1"), addr("10.0.1.7")
	fwd := packet.Tuple{Src: client, Dst: vip, SrcPort: 4000, DstPort: 80, Proto: 6}
	rev := packet.Tuple{Src: backend, Dst: client, SrcPort: 8080, DstPort: 4000, Proto: 6}
	f := flow.Entry{
		Rewrite: packet.Rewrite{Src: client, Dst: backend, SrcPort: 4000, DstPort: 8080},
		Out:     3, InGen: 4, OutGen: 5, FrontGen: 6, FrontSlot: 7, Flags: flow.FlagService, Owner: 9,
	}
	r := flow.Entry{Rewrite: packet.Rewrite{Src: vip, Dst: client, SrcPort: 80, DstPort: 4000}, Out: 9}
	ref, res := tab.Insert(&fwd, &rev, &f, &r, 50)
	if res != flow.Inserted {
		t.Fatal(res)
	}
	var got flow.Entry
	gotRef, ok := tab.Lookup(&fwd, &got)
	want := f
	want.State, want.LastSeen = flow.New, 50
	if !ok || gotRef != ref || got != want {
		t.Errorf("forward = %+v, want %+v", got, want)
	}
	back, ok := tab.Lookup(&rev, &got)
	want = r
	want.State, want.LastSeen, want.Flags, want.Owner = flow.New, 50, flow.FlagReverse, 9
	if !ok || got != want {
		t.Errorf("reverse = %+v, want %+v", got, want)
	}
	var k packet.Tuple
	if pair, ok := tab.Pair(back, &k, &got); !ok || pair != ref || k != fwd {
		t.Errorf("pair of the reverse = %v %v, want the forward", k, ok)
	}
	if again, res := tab.Insert(&fwd, &rev, &f, &r, 51); res != flow.Exists || again != ref {
		t.Errorf("second insert: %v, want exists", res)
	}
	other := fwd
	other.SrcPort++
	if _, res := tab.Insert(&other, &rev, &f, &r, 51); res != flow.Clash {
		t.Errorf("insert with the same replies: %v, want clash", res)
	}
	if _, res := tab.Insert(&rev, &rev, &f, &r, 51); res != flow.Clash {
		t.Errorf("insert of its own reverse: %v, want clash", res)
	}
	if tab.Len() != 1 || !tab.Remove(back) || tab.Len() != 0 || tab.Remove(ref) {
		t.Error("removing by the reverse ref must remove both, once")
	}
	check(t, tab)
}

func addr(s string) packet.Addr { return packet.AddrFrom(netip.MustParseAddr(s)) }

func TestOwnerBound(t *testing.T) {
	t.Parallel()
	tab := open(t, flow.Config{Slots: 1 << 10, PerOwner: 10})
	for i := range 10 {
		ref, res := insert(tab, tupleOf(i), 7, 1)
		if res != flow.Inserted {
			t.Fatal(res)
		}
		establish(t, tab, ref)
	}
	if _, res := insert(tab, tupleOf(10), 7, 1); res != flow.OwnerFull {
		t.Errorf("eleventh connection: %v, want owner-full", res)
	}
	if _, res := insert(tab, tupleOf(11), 8, 1); res != flow.Inserted {
		t.Errorf("another owner: %v, want inserted", res)
	}
	for i := range 20 {
		if _, res := insert(tab, tupleOf(100+i), 0, 1); res != flow.Inserted {
			t.Errorf("nobody's connection: %v, want inserted", res)
		}
	}
	if n := tab.OwnerLen(7); n != 10 {
		t.Errorf("owner has %d, want 10", n)
	}
	check(t, tab)
}

// A full owner recycles its own unanswered connections, never another's.
func TestOwnerRecyclesItsOwn(t *testing.T) {
	t.Parallel()
	tab := open(t, flow.Config{Slots: 64, PerOwner: 4}) // eight buckets: every scan sees all
	if _, res := insert(tab, tupleOf(1000), 8, 0); res != flow.Inserted {
		t.Fatal(res)
	}
	for i := range 50 {
		if _, res := insert(tab, tupleOf(i), 7, uint32(i)); res != flow.Inserted {
			t.Fatalf("%d: %v", i, res)
		}
	}
	if tab.OwnerLen(7) != 4 || tab.OwnerLen(8) != 1 {
		t.Errorf("owners have %d and %d, want 4 and 1", tab.OwnerLen(7), tab.OwnerLen(8))
	}
	for i := 46; i < 50; i++ {
		state(t, tab, tupleOf(i)) // the newest stay
	}
	check(t, tab)
}

// A full owner always finds one of its own that it can do without, also when they are
// few among the table's slots.
func TestOwnerFindsItsOwn(t *testing.T) {
	t.Parallel()
	const slots, bound = 1 << 15, 1 << 10 // an owner has a sixteenth, as by default
	tab := open(t, flow.Config{Slots: slots, PerOwner: bound})
	for i := range 40 * bound {
		ref, res := insert(tab, tupleOf(i), 7, 1)
		if res != flow.Inserted {
			t.Fatalf("%d. connection: %v, although half of the owner's are unanswered", i, res)
		}
		if i < bound/2 {
			establish(t, tab, ref)
		}
	}
	if n := tab.OwnerLen(7); n != bound {
		t.Errorf("owner has %d, want %d", n, bound)
	}
	for i := range bound / 2 {
		if st := state(t, tab, tupleOf(i)); st != flow.Established {
			t.Errorf("an established connection became %v", st)
		}
	}
	check(t, tab)
}

// A flood of openings fills the table many times over and leaves established
// connections alone.
func TestFloodSparesEstablished(t *testing.T) {
	t.Parallel()
	tab := open(t, flow.Config{Slots: 1 << 12})
	const good = 500
	for i := range good {
		ref, res := insert(tab, tupleOf(i), 0, 1)
		if res != flow.Inserted {
			t.Fatal(res)
		}
		establish(t, tab, ref)
	}
	refused := 0
	for i := range 40_000 {
		k := tupleOf(1_000_000 + i)
		if _, res := insert(tab, k, 0, 2); res != flow.Inserted {
			refused++
		}
		send(tab, k, packet.TCPSyn, 2)
		if i%2 == 0 {
			send(tab, k.Reverse(), packet.TCPSyn|packet.TCPAck, 2) // a server that answers the flood
		}
	}
	for i := range good {
		if st := state(t, tab, tupleOf(i)); st != flow.Established {
			t.Fatalf("flow %d is %v", i, st)
		}
	}
	if refused > 40 {
		t.Errorf("%d of 40000 openings found no room, want nearly none", refused)
	}
	if st := tab.Stats(); st.Evicted < 30_000 {
		t.Errorf("evicted %d, want most of the flood", st.Evicted)
	}
	check(t, tab)
}

func TestTableFullOfEstablished(t *testing.T) {
	t.Parallel()
	tab := open(t, flow.Config{Slots: 256})
	n, full := 0, 0
	for i := range 1000 {
		ref, res := insert(tab, tupleOf(i), 0, 1)
		switch res {
		case flow.Inserted:
			establish(t, tab, ref)
			n++
		case flow.TableFull:
			full++
		default:
			t.Fatal(res)
		}
	}
	if tab.Len() != n || full == 0 || n < 110 {
		t.Errorf("%d of 128 connections fit, %d refused, %d counted", n, full, tab.Len())
	}
	check(t, tab)
	// All of them expire at once: there is room again without the clock hand.
	if _, res := insert(tab, tupleOf(5000), 0, 90_000); res != flow.Inserted {
		t.Errorf("after expiry: %v, want inserted", res)
	}
}

func TestTCPStates(t *testing.T) {
	t.Parallel()
	const syn, ack, fin, rst = packet.TCPSyn, packet.TCPAck, packet.TCPFin, packet.TCPRst
	type p struct {
		reply bool
		flags uint8
	}
	open := []p{{false, syn}, {true, syn | ack}, {false, ack}}
	then := func(more ...p) []p { return append(append([]p{}, open...), more...) }
	tests := []struct {
		name    string
		packets []p
		want    flow.State
	}{
		{"opening", open[:1], flow.SynSent},
		{"repeated SYN", []p{{false, syn}, {false, syn}}, flow.SynSent},
		{"answered", open[:2], flow.SynReceived},
		{"the server's data proves nothing", append(open[:2:2], p{true, ack}), flow.SynReceived},
		{"open", open, flow.Established},
		{"data", then(p{true, ack}, p{false, ack}), flow.Established},
		{"opener closes", then(p{false, fin | ack}), flow.FinForward},
		{"half closed, data goes on", then(p{false, fin | ack}, p{true, ack}, p{false, ack}), flow.FinForward},
		{"server closes", then(p{true, fin | ack}), flow.FinReverse},
		{"both closed", then(p{true, fin | ack}, p{false, fin | ack}, p{true, ack}), flow.TimeWait},
		{"refused", []p{{false, syn}, {true, rst | ack}}, flow.ResetReverse},
		{"aborted", then(p{false, rst}), flow.ResetForward},
		{"data in flight after a reset", then(p{false, rst}, p{true, ack}), flow.ResetForward},
		{"the first reset counts", then(p{false, rst}, p{true, rst}), flow.ResetForward},
		{"forged reset", then(p{false, rst}, p{false, ack}), flow.Established},
		{"forged reset of the server", then(p{true, rst}, p{true, ack}), flow.Established},
		{"picked up in the middle", []p{{false, ack}, {true, ack}}, flow.Established},
		{"one-sided ACK flood", []p{{false, ack}, {false, ack}}, flow.New},
		{"simultaneous open", []p{{false, syn}, {true, syn}, {false, syn | ack}}, flow.Established},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			tab, err := flow.Open(flow.Config{Slots: 64})
			if err != nil {
				t.Fatal(err)
			}
			k := tupleOf(1)
			insert(tab, k, 0, 1)
			for _, p := range tt.packets {
				from := k
				if p.reply {
					from = k.Reverse()
				}
				if !send(tab, from, p.flags, 1) {
					t.Fatal("lost")
				}
			}
			if got := state(t, tab, k); got != tt.want {
				t.Errorf("state = %v, want %v", got, tt.want)
			}
			if got := state(t, tab, k.Reverse()); got != tt.want {
				t.Errorf("state of the replies = %v, want %v", got, tt.want)
			}
		})
	}
}

func TestReopens(t *testing.T) {
	t.Parallel()
	for st := flow.New; st <= flow.ResetReverse; st++ {
		e := flow.Entry{State: st}
		over := st == flow.TimeWait || st == flow.ResetForward || st == flow.ResetReverse
		if got := e.Reopens(packet.TCPSyn); got != over {
			t.Errorf("%v: SYN reopens = %v, want %v", st, got, over)
		}
		if e.Reopens(packet.TCPSyn|packet.TCPAck) || e.Reopens(packet.TCPAck) || e.Reopens(packet.TCPSyn|packet.TCPRst) {
			t.Errorf("%v: only a bare SYN may reopen", st)
		}
	}
}

// Every state lives exactly as long as documented, whichever side spoke last.
func TestTimeouts(t *testing.T) {
	t.Parallel()
	const syn, ack, fin, rst = packet.TCPSyn, packet.TCPAck, packet.TCPFin, packet.TCPRst
	tests := []struct {
		name  string
		proto uint8
		port  uint16
		flags []int // of each packet; negative: a reply
		want  uint32
	}{
		{"udp unreplied", 17, 5000, []int{0}, 30},
		{"udp replied", 17, 5000, []int{0, -1}, 120},
		{"dns", 17, 53, []int{0, -1}, 30},
		{"dns, two names", 17, 53, []int{0, 0, -1, -1}, 30},
		{"udp stream", 17, 5000, []int{0, -1, 0, 0, 0, 0, 0}, 180},
		{"quic", 17, 443, []int{0, -1, -1, -1, -1, -1}, 180},
		{"icmp", 1, 0, []int{0, -1}, 30},
		{"icmpv6", 58, 0, []int{0, -1}, 30},
		{"sctp", 132, 5000, []int{0, -1}, 210},
		{"gre", 47, 0, []int{0, -1}, 600},
		{"tcp syn", 6, 80, []int{syn}, 60},
		{"tcp syn received", 6, 80, []int{syn, -(syn | ack)}, 60},
		{"tcp established", 6, 80, []int{syn, -(syn | ack), ack}, 86400},
		{"tcp half closed", 6, 80, []int{syn, -(syn | ack), ack, fin | ack}, 3600},
		{"tcp closed", 6, 80, []int{syn, -(syn | ack), ack, fin | ack, -(fin | ack)}, 120},
		{"tcp reset", 6, 80, []int{syn, -(rst | ack)}, 10},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			tab, err := flow.Open(flow.Config{Slots: 64})
			if err != nil {
				t.Fatal(err)
			}
			k := tupleOf(1)
			k.Proto, k.DstPort = tt.proto, tt.port
			now := uint32(math.MaxUint32 - 20) // the clock wraps meanwhile
			insert(tab, k, 0, now)
			for _, f := range tt.flags {
				now += 5
				from := k
				if f < 0 {
					from, f = k.Reverse(), -f
				}
				send(tab, from, uint8(f), now)
			}
			if n := expireAll(tab, now+tt.want); n != 0 {
				t.Errorf("forgotten %v after %d s or earlier", k, tt.want)
			}
			if n := expireAll(tab, now+tt.want+1); n != 1 {
				t.Errorf("not forgotten after %d s", tt.want+1)
			}
			check(t, tab)
		})
	}
}

func expireAll(tab *flow.Table, now uint32) int {
	n := 0
	for range flow.ExpireParts {
		n += tab.Expire(now)
	}
	return n
}

// One call of Expire must not look at the whole table.
func TestExpireIsGradual(t *testing.T) {
	t.Parallel()
	tab := open(t, flow.Config{Slots: 1 << 14})
	const n = 4000
	for i := range n {
		insert(tab, tupleOf(i), 0, 0)
	}
	largest, sum := 0, 0
	for range flow.ExpireParts {
		k := tab.Expire(1000)
		largest, sum = max(largest, k), sum+k
	}
	if sum != n || largest > n/flow.ExpireParts*3 {
		t.Errorf("freed %d of %d, at most %d in a call", sum, n, largest)
	}
}

// A last packet in the future, left by a clock that was set back, ages from now.
func TestClockSetBack(t *testing.T) {
	t.Parallel()
	tab := open(t, flow.Config{Slots: 64})
	k := tupleOf(1)
	k.Proto = packet.ProtoUDP
	insert(tab, k, 0, 1_000_000)
	if n := expireAll(tab, 100); n != 0 {
		t.Error("forgotten at once")
	}
	if n := expireAll(tab, 131); n != 1 {
		t.Error("immortal")
	}
}

func TestCountersBeyondOneWord(t *testing.T) {
	t.Parallel()
	tab := open(t, flow.Config{Slots: 64})
	k := tupleOf(1)
	ref, _ := insert(tab, k, 0, 1)
	establish(t, tab, ref)
	const big, packets = 1 << 33, 1000 // 8 TiB in all, more than 40 bits
	for range packets {
		tab.Seen(ref, big, packet.TCPAck, 1)
	}
	for range flow.SpillMaximum {
		tab.Seen(ref, 1, packet.TCPAck, 1)
	}
	var e flow.Entry
	tab.Lookup(&k, &e)
	wantPackets, wantBytes := uint64(2+packets+flow.SpillMaximum), uint64(60+52+packets*big+flow.SpillMaximum)
	if e.Packets != wantPackets || e.Bytes != wantBytes {
		t.Errorf("counted %d packets, %d bytes, want %d, %d", e.Packets, e.Bytes, wantPackets, wantBytes)
	}
}

func TestStaleRefsAreIgnored(t *testing.T) {
	t.Parallel()
	tab := open(t, flow.Config{Slots: 16})
	ref, _ := insert(tab, tupleOf(1), 0, 1)
	tab.Remove(ref)
	for i := range 4 {
		insert(tab, tupleOf(10+i), 0, 1)
	}
	var e flow.Entry
	var k packet.Tuple
	for _, r := range []flow.Ref{ref, 0, math.MaxUint64} {
		tab.Seen(r, 100, packet.TCPRst, 9)
		if _, ok := tab.Update(r, &e); ok {
			t.Error("update of a stale ref")
		}
		if _, ok := tab.Pair(r, &k, &e); ok {
			t.Error("pair of a stale ref")
		}
		if tab.Remove(r) {
			t.Error("removal by a stale ref")
		}
	}
	tab.Each(func(k packet.Tuple, e flow.Entry) bool {
		if e.State != flow.New || e.Packets != 0 {
			t.Errorf("%v was touched: %+v", k, e)
		}
		return true
	})
}

func TestNoAllocations(t *testing.T) {
	tab := open(t, flow.Config{Slots: 1 << 10, PerOwner: 4})
	k := tupleOf(1)
	ref, _ := insert(tab, k, 0, 1)
	establish(t, tab, ref)
	var e flow.Entry
	now := uint32(1)
	n := 100
	for name, f := range map[string]func(){
		"lookup and seen": func() {
			r, _ := tab.Lookup(&k, &e)
			tab.Seen(r, 1400, packet.TCPAck, 1)
		},
		"seen in another second": func() {
			now++
			r, _ := tab.Lookup(&k, &e)
			tab.Seen(r, 1400, packet.TCPAck, now)
		},
		"update": func() {
			r, _ := tab.Lookup(&k, &e)
			tab.Update(r, &e)
		},
		"insert, also when the owner is full": func() {
			n++
			insert(tab, tupleOf(n), 3, now)
		},
		"expire": func() { tab.Expire(now) },
	} {
		if got := testing.AllocsPerRun(200, f); got != 0 {
			t.Errorf("%s: %v allocations", name, got)
		}
	}
}
