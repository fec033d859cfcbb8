package datapath

import (
	"net/netip"
	"testing"

	"github.com/gaissmai/bart"

	"github.com/netctl/netctl/internal/packet"
)

// counter is a port that counts what it is given.
type counter struct{ n int }

func (p *counter) Write([]byte) error {
	p.n++
	return nil
}

// take returns the count since the last call.
func (p *counter) take() int {
	n := p.n
	p.n = 0
	return n
}

// One worker reads many pods: none of them uses up what the others are told,
// nor the sizes that connections need to go on.
func TestAnswersAreBoundedBySender(t *testing.T) {
	t.Parallel()
	ws := newWorkers(t, 1)
	t.Cleanup(func() { _ = ws.close() })
	now := uint32(100)
	ws.router.clock = func() uint32 { return now }
	pod, other, tunnel := &counter{}, &counter{}, &counter{}
	tables := tablesOf(ws.router, pod, other, tunnel)
	tables.Routes = new(bart.Table[Route])
	addrs := [...]string{"fd00::1", "fd00::2", "fd00:2::1", "fd00:2::2", "fd00:3::1"}
	for i := range tables.Ports[1:] {
		e := &tables.Ports[i+1]
		e.MTU = 1280
		e.Addrs = []packet.Addr{packet.AddrFrom(netip.MustParseAddr(addrs[i]))}
		tables.Routes.Insert(netip.MustParsePrefix(addrs[i]+"/128"), Route{Port: PortID(i + 1)})
	}
	tables.Ports[3].Kind = KindOverlay
	tables.Routes.Insert(netip.MustParsePrefix("fd00:2::/64"), Route{Port: 3, Peer: 1})
	tables.Routes.Insert(netip.MustParsePrefix("fd00:3::/64"), Route{Port: 3, Peer: 2})
	if errs := ws.Publish(tables); errs != nil {
		t.Fatal(errs)
	}
	in := ws.workers[0].input
	send := func(id PortID, src, dst string, size, times int) {
		in.id = id
		for range times {
			in.Deliver(packet.UDP(make([]byte, 2000), netip.AddrPortFrom(netip.MustParseAddr(src), 1000),
				netip.AddrPortFrom(netip.MustParseAddr(dst), 53), make([]byte, size)))
		}
	}
	const nowhere, far, flood = "fd00:9::9", "fd00:2::1", 3000
	for range 2 { // seconds
		for _, step := range []struct {
			name     string
			port     PortID
			src, dst string
			size     int
			times    int
			to       *counter
			want     int
		}{
			{"a pod floods", 1, "fd00::1", nowhere, 10, flood, pod, senderAnswers},
			{"another is answered", 2, "fd00::2", nowhere, 10, 1, other, 1},
			{"the pod is told sizes", 1, "fd00::1", far, 1400, flood, pod, senderAnswers},
			{"the other is told sizes, too", 2, "fd00::2", far, 1400, 1, other, 1},
			{"a pod of a peer floods", 3, "fd00:2::1", nowhere, 10, flood, tunnel, senderAnswers},
			{"another pod of the peer is answered", 3, "fd00:2::2", nowhere, 10, 1, tunnel, 1},
			{"a pod of another peer is answered", 3, "fd00:3::1", nowhere, 10, 1, tunnel, 1},
		} {
			send(step.port, step.src, step.dst, step.size, step.times)
			if n := step.to.take(); n != step.want {
				t.Errorf("%s: %d answers, want %d", step.name, n, step.want)
			}
		}
		now++
	}
}

// The pods of a node are neighbours in one range: each must have bounds of its
// own as far as there are numbers.
func TestNeighboursAreDifferentOwners(t *testing.T) {
	t.Parallel()
	const pods = 200
	for _, base := range []string{"10.1.2.0", "10.1.200.0", "fd00:1:0:2::", "fd00:1:0:2:a:b:c:0"} {
		owners, classes := map[uint32]int{}, map[uint32]int{}
		a := netip.MustParseAddr(base)
		for range pods {
			a = a.Next()
			h := addrHash(new(packet.AddrFrom(a)))
			owners[h%remoteOwners]++
			classes[h%peerSenders]++
		}
		if len(owners) < pods*9/10 || len(classes) != peerSenders {
			t.Errorf("%d pods of %s have %d owner numbers and %d of %d sender numbers", pods, base, len(owners), len(classes), peerSenders)
		}
		for class, n := range classes {
			if n > 3*pods/peerSenders {
				t.Errorf("%s: %d of %d pods share the sender number %d", base, n, pods, class)
			}
		}
	}
}
