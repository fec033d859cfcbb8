package vnet_test

import (
	"bytes"
	"testing"

	"github.com/netctl/netctl/internal/packet"
	"github.com/netctl/netctl/internal/vnet"
)

// A super-packet is cut for the tunnel and put together behind it. How much at
// once depends on how many datagrams the receiver finds together, so the test
// asks for fewer packets than segments and for the bytes.
func TestSuperPacketCrossesTheTunnel(t *testing.T) {
	t.Parallel()
	const segment, size = 1300, 30000
	for _, name := range []string{"b:80", "web:80"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			each(t, vnet.Config{}, func(t *testing.T, c *vnet.Cluster, f vnet.Family) {
				c.Port("a").Send(c.Build(f, "tcp a:1000 > "+name+" flags=A seq=1 len=30000 gso=1300 df"))
				c.Settle()
				got := c.Port("b").Take()
				var data []byte
				for _, p := range got {
					data = append(data, p.Data()...)
					if p.GSOSize != segment && len(p.Data()) > segment {
						t.Errorf("segments of %d bytes, want %d", p.GSOSize, segment)
					}
				}
				if !bytes.Equal(data, vnet.Pattern(size)) {
					t.Errorf("%d bytes came that are not the %d that were sent", len(data), size)
				}
				if segments := (size + segment - 1) / segment; len(got) > segments/2 {
					t.Errorf("%d packets came of %d segments: nothing was put together", len(got), segments)
				}
				sum := c.Node("n1").Router.Counters()
				if sum.Packets != 1 || int(sum.Bytes) < size {
					t.Errorf("the sender's router carried %d packets and %d bytes, want one super-packet", sum.Packets, sum.Bytes)
				}
			})
		})
	}
}

// Datagrams of a super-packet keep their borders.
func TestDatagramSuperPacketCrossesTheTunnel(t *testing.T) {
	t.Parallel()
	each(t, vnet.Config{}, func(t *testing.T, c *vnet.Cluster, f vnet.Family) {
		c.Port("a").Send(c.Build(f, "udp a:1000 > b:53 len=10000 gso=1000"))
		c.Settle()
		var data []byte
		n := 0
		for _, p := range c.Port("b").Take() {
			data = append(data, p.Data()...)
			n += packet.Segments(p.Buf, 0)
		}
		if n != 10 || !bytes.Equal(data, vnet.Pattern(10000)) {
			t.Errorf("%d datagrams with %d bytes came, want 10 with 10000; drops: %v", n, len(data), c.Drops())
		}
	})
}
