package vnet_test

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/netctl/netctl/internal/vnet"
	"github.com/netctl/netctl/overlay/overlaytest"
)

// On the way between two nodes is a link that carries less than theirs, and tells
// nobody. Connections are told so when they begin, super-packets are cut smaller,
// and who sends too much learns the size: nothing is lost but the first packets.
func TestNarrowPathBetweenNodes(t *testing.T) {
	t.Parallel()
	const link, found = 1428, 1367 // 1368 would fit; a search ends within eight
	for _, f := range vnet.Families() {
		t.Run(f.String(), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				c := vnet.New(t, vnet.Config{Underlay: overlaytest.Config{MTU: link}})
				cluster(c)
				c.Play(f, `
					a -> udp a:1000 > b:53 data=hello
					b <- udp a:1000 > b:53 data=hello
				`)
				time.Sleep(20 * time.Second) // of the bubble's time: for a search
				headers := map[vnet.Family]int{vnet.V4: 40, vnet.V6: 60}[f]
				c.Play(f, fmt.Sprintf(`
					a -> tcp a:1000 > b:80 flags=S mss=1460
					b <- tcp a:1000 > b:80 flags=S mss=%[1]d
					b -> tcp b:80 > a:1000 flags=SA mss=1460
					a <- tcp b:80 > a:1000 flags=SA mss=%[1]d
					a -> udp a:1000 > b:54 len=%[2]d df
					b <- udp a:1000 > b:54 len=%[2]d
					a -> udp a:1000 > b:54 len=%[3]d df
					a <- too-big router.n1 > a mtu=%[4]d
					n1 drops too_big
				`, found-headers, found-headers+20-8, found-headers+20-8+1, found))
				c.Port("a").Send(c.Build(f, "tcp a:1000 > b:80 flags=A seq=1 len=30000 gso=1360 df"))
				c.Settle()
				n := 0
				for _, p := range c.Port("b").Take() {
					n += len(p.Data())
				}
				if n != 30000 {
					t.Errorf("%d bytes of a super-packet came, want 30000; drops: %v", n, c.Drops())
				}
			})
		})
	}
}
