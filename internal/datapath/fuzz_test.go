package datapath_test

import (
	"encoding/binary"
	"slices"
	"testing"

	"github.com/netctl/netctl/internal/packet"
	"github.com/netctl/netctl/internal/packet/packettest"
	"github.com/netctl/netctl/internal/vnet"
)

// FuzzWalk gives arbitrary bytes to the ports that others can write to. The
// walk must not panic, and what it emits must parse, with right checksums
// where they were right, and have a source that its port may have sent.
func FuzzWalk(f *testing.F) {
	script := router(f, vnet.Config{})
	for _, fam := range vnet.Families() {
		for _, line := range []string{
			"udp a:1000 > a2:53 len=18", "tcp a:1000 > web:80 flags=S mss=1460", "echo a > b id=7",
			"tcp a:1000 > web:80 flags=A len=9000 gso=1360", "unreach-port a2 > a [udp:a:1000>a2:53]",
			"too-big b > a mtu=1280 [tcp:a:1000>b:8080]", "udp a:1000 > kube-dns:53 len=40", "udp n1:1 > a:2",
			"udp b:1000 > a:53 len=100", "tcp a:1000 > none:80 flags=S", "udp a:1 > outside:2 len=3000",
			"wrapped router.n2 > router.n1 [tcp:outside:1000>a:80,flags=S,mss=1460]",
			"wrapped router.n2 > router.n1 [tcp:b:8080>outside:1000,flags=SA]",
			"wrapped router.n2 > router.n1 [udp:outside:1000>unowned:80]", "wrapped router.n2 > router.n1 [udp:n1:1000>a:80]",
			"wrapped router.n2 > router.n1 [udp:outside:1000>a:80,len=3000]", "wrapped b > a [udp:outside:1000>a:80]",
			"tcp outside:1000 > b:8080 flags=A len=9000 gso=1360", "tcp a:80 > outside:1000 flags=A len=9000 gso=1400",
		} {
			buf := script.Build(fam, line)
			for way := range uint8(4) {
				f.Add(way, buf, buf)
			}
		}
		parts := vnet.Split(script.Build(fam, "udp a:1000 > web:80 len=3000"), 1200, 7)
		f.Add(uint8(0), parts[0], parts[1])
		parts = vnet.Split(script.Build(fam, "udp outside:1000 > a:80 len=3000"), 1200, 7)
		f.Add(uint8(2), script.Wrap(fam, "router.n2", "router.n1", parts[0]), script.Wrap(fam, "router.n2", "router.n1", parts[1]))
		f.Add(uint8(3), script.Build(fam, "udp outside:1000 > b:80 len=18"),
			script.Wrap(fam, "router.n2", "router.n1", script.Build(fam, "too-big b > outside mtu=1280 [udp:outside:1000>b:80]")))
	}
	f.Fuzz(func(t *testing.T, way uint8, first, second []byte) {
		if len(first) > packet.MaxSize || len(second) > packet.MaxSize {
			return
		}
		c := router(t, vnet.Config{Slots: 64})
		c.Play(vnet.V4, `
			a -> tcp a:1000 > web:80 flags=S
			overlay.n1 <- tcp a:1000 > b:8080 flags=S
			inbound.n1 -> tcp outside:1000 > b:8080 flags=S
			overlay.n1 <- wrapped router.n1 > router.n2 [tcp:outside:1000>b:8080]`)
		name := []string{"a", "n1", "overlay.n1", "inbound.n1"}[way%4]
		c.Port(name).Send(first, second)
		c.Port(name).Send(mend(second), mend(first))
		n := c.Node("n1")
		sum := n.Router.Counters()
		if sum.ByReason()["panic"] != 0 {
			t.Fatal("the walk panicked")
		}
		routes := n.Router.Tables().Routes
		outside := c.Port("netstack.n1").ID
		for _, port := range []string{"a", "a2", "n1", "overlay.n1", "netstack.n1", "inbound.n1"} {
			p := c.Port(port)
			for _, q := range p.TakeUnchecked() {
				if f := packet.Parse(q); f != packet.FaultNone {
					t.Fatalf("%s got a packet that is %v: %x", port, f, q.Buf)
				}
				src, dst := q.Tuple.Src.Netip(), q.Tuple.Dst.Netip()
				if rt, _ := routes.Lookup(src); rt.Port == p.ID && port != name {
					t.Errorf("%s got a packet from %s, which is behind it", port, src)
				}
				if rt, _ := routes.Lookup(dst); rt.Port != p.ID && (port != "inbound.n1" || rt.Port != outside && rt.Port != c.Port("n1").ID && !rt.Router) {
					t.Errorf("%s got a packet for %s, which is not behind it", port, dst)
				}
			}
		}
	})
}

// mend gives a packet the length that it has and the IPv4 checksum that goes
// with it: without them most mutations would end in the parser.
func mend(buf []byte) []byte {
	buf = slices.Clone(buf)
	if len(buf) <= packet.VNetLen {
		return buf
	}
	ip := buf[packet.VNetLen:]
	switch n := len(ip); {
	case ip[0]>>4 == 6 && n >= 40:
		binary.BigEndian.PutUint16(ip[4:], uint16(n-40)) // at most 65535
	case ip[0]>>4 == 4 && n >= 20 && n >= int(ip[0]&15)*4:
		binary.BigEndian.PutUint16(ip[2:], uint16(n)) // at most 65535
		ip[10], ip[11] = 0, 0
		binary.BigEndian.PutUint16(ip[10:], ^packettest.Sum(ip[:int(ip[0]&15)*4], 0))
	}
	return buf
}
