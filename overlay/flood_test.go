package overlay_test

import (
	"math/rand/v2"
	"testing"

	"github.com/netctl/netctl/overlay"
	"github.com/netctl/netctl/overlay/handshake"
	"github.com/netctl/netctl/overlay/overlaytest"
)

// TestUnaskedAnswersAreNoLoad: cookies and responses that nobody waits for cost
// nothing, and do not make us ask the honest for cookies.
func TestUnaskedAnswersAreNoLoad(t *testing.T) {
	t.Parallel()
	net := overlaytest.New(overlaytest.Config{})
	a, b := pair(t, net)
	a.send(t, udp(pod4(1), pod4(2), "session"))
	b.in.waitN(t, "session", 1)
	settle(t, a, b)
	before := a.Counters().Drops[overlay.DropHandshake]
	rng := rand.New(rand.NewPCG(1, 1))
	const rounds = 500
	for range rounds {
		for kind, size := range map[handshake.Kind]int{handshake.KindCookie: handshake.CookieSize, handshake.KindResponse: handshake.ResponseSize} {
			msg := make([]byte, size)
			for i := range msg[4:] {
				msg[4+i] = byte(rng.Uint32())
			}
			msg[0] = byte(kind)
			net.Inject(overlaytest.Datagram{From: ports("203.0.113.9:1"), To: a.at, Payload: msg})
		}
	}
	until(t, "the end of the flood", func() bool { return a.Counters().Drops[overlay.DropHandshake]-before == 2*rounds })
	if a.Loaded() {
		t.Error("under load of messages that nobody asked for")
	}
}
