package rawport

import (
	"hash/maphash"
	"log/slog"
	"net/netip"
	"testing"

	"github.com/netctl/netctl/internal/packet"
)

// TestEachClientHasItsHalf: one that takes all ports that it is given leaves others
// some of theirs, and with a single port everybody has that one.
func TestEachClientHasItsHalf(t *testing.T) {
	t.Parallel()
	const n = 512
	p := &Port{seed: maphash.MakeSeed()}
	of := func(client string) map[uint16]bool {
		out := map[uint16]bool{}
		for i := range uint32(100 * n) {
			out[p.SourcePort(packet.AddrFrom(netip.MustParseAddr(client)), i*7919)] = true
		}
		return out
	}
	ports := make([]uint16, n)
	for i := range ports {
		ports[i] = 40000 + uint16(i)
	}
	p.ports.Store(&ports)
	greedy := of("10.1.1.5")
	if len(greedy) < n/3 || len(greedy) > 2*n/3 {
		t.Errorf("one client gets %d of %d ports", len(greedy), n)
	}
	left := 0
	for port := range of("10.1.1.6") {
		if !greedy[port] {
			left++
		}
	}
	if left < n/8 {
		t.Errorf("another one has %d ports of its own", left)
	}
	single := []uint16{50000}
	p.ports.Store(&single)
	for i := range uint32(100) {
		if got := p.SourcePort(packet.AddrFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(i)})), i); got != 50000 {
			t.Fatalf("port %d", got)
		}
	}
}

// TestGroupsStay: more ports do not move those that there were to other groups, and
// none is larger than a message may be.
func TestGroupsStay(t *testing.T) {
	t.Parallel()
	p := &Port{cfg: Config{First: 40000}, raws: []*rawSocket{{fd: 1}, {fd: 2}}, reserved: map[uint16]*reservation{}}
	reserve := func(from, to uint16) {
		for port := from; port < to; port++ {
			p.reserved[port] = &reservation{tcp: int(port), udp: int(port)}
		}
	}
	reserve(40000, 40250)
	before := p.Groups()
	reserve(40250, 40700)
	after := p.Groups()
	if len(before) != 4 || len(after) != 8 || len(before[0]) != 2 || len(before[3]) != 2*50 {
		t.Fatalf("%d and %d groups", len(before), len(after))
	}
	for i, g := range after {
		if len(g) > 2*groupPorts {
			t.Errorf("group %d has %d sockets", i, len(g))
		}
		for _, fd := range g[:min(1, len(g))] {
			if i > 0 && (fd-40000)/groupPorts != i-1 {
				t.Errorf("group %d has port %d", i, fd)
			}
		}
	}
}

// TestBugCostsOnePacket: what a packet breaks does not end the reading.
func TestBugCostsOnePacket(t *testing.T) {
	t.Parallel()
	p := &Port{cfg: Config{Logger: slog.New(slog.DiscardHandler)}}
	for range 2 {
		p.guard(func() { panic("a bug") })
	}
	if p.Panics() != 2 {
		t.Errorf("%d were counted", p.Panics())
	}
}
