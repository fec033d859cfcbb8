package datapath_test

import (
	"bytes"
	"testing"

	"github.com/netctl/netctl/internal/datapath"
	"github.com/netctl/netctl/internal/packet"
	"github.com/netctl/netctl/internal/vnet"
)

// A port whose device does none of the kernel's work gets packets as they would be
// on a wire, and a port of another kind of packets gets those whole.
func TestPlainPorts(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		plain  datapath.Plain
		text   string
		pieces int
		whole  bool // with its offloads
	}{
		{"TCP", datapath.PlainTCP, "tcp a:1000 > a2:80 flags=A seq=1 len=30000 gso=1300 df", 24, false},
		{"UDP", datapath.PlainUDP, "udp a:1000 > a2:80 len=30000 gso=1300 df", 24, false},
		{"through a service", datapath.PlainTCP, "tcp a:1000 > local:80 flags=A seq=1 len=30000 gso=1300 df", 24, false},
		{"an ordinary packet", datapath.PlainTCP | datapath.PlainUDP, "tcp a:1000 > a2:80 flags=A seq=1 len=100", 1, false},
		{"TCP where UDP is not taken", datapath.PlainUDP, "tcp a:1000 > a2:80 flags=A seq=1 len=30000 gso=1300 df", 1, true},
		{"UDP where TCP is not taken", datapath.PlainTCP, "udp a:1000 > a2:80 len=30000 gso=1300 df", 1, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			net := router(t, vnet.Config{})
			r := net.Node("n1").Router
			tables := *r.Tables()
			tables.Ports = append([]datapath.PortEntry(nil), tables.Ports...)
			tables.Ports[net.Port("a2").ID].Plain = c.plain
			r.Publish(&tables)
			for _, f := range vnet.Families() {
				net.Port("a").Send(net.Build(f, c.text))
				got := net.Port("a2").Take()
				var data []byte
				for _, p := range got {
					data = append(data, p.Data()...)
					if offloaded := p.Buf[0]&packet.VNetNeedsCsum != 0 || p.Buf[1] != packet.GSONone; offloaded != c.whole {
						t.Errorf("%v: virtio-net header %x", f, p.Buf[:packet.VNetLen])
					}
				}
				if len(got) != c.pieces || !bytes.Equal(data, vnet.Pattern(len(data))) {
					t.Errorf("%v: %d packets with %d bytes, want %d", f, len(got), len(data), c.pieces)
				}
			}
		})
	}
}
