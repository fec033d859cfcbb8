package overlay

import (
	"bytes"
	"maps"
	"slices"
	"time"

	"golang.zx2c4.com/wireguard/device"
)

const (
	// greetAgain is when a new peer that has not answered is greeted again.
	// WireGuard waits 5 s, and forgets to when the handshake of the peer came
	// between; a node's first packets should not. The end with the lower key is
	// twice as quick, so that two greetings that have met do not meet again.
	greetAgain = time.Second
	// maxGreetings is how often; then WireGuard's own repetitions suffice.
	maxGreetings = 5
)

// greeting is a handshake with a new peer that has not come about yet.
type greeting struct {
	due   time.Time
	every time.Duration
	left  int
}

// greet starts handshakes, so that first packets need not wait for them; and
// after a restart, so that peers stop using sessions that are gone. It needs mu.
func (w *WireGuard) greet(c change) {
	for _, key := range c.greet {
		w.initiate(key)
	}
	for _, key := range c.gone {
		delete(w.greetings, key)
	}
	now := time.Now()
	for _, key := range c.added {
		g := greeting{every: greetAgain, left: maxGreetings}
		if bytes.Compare(w.self[:], key[:]) > 0 {
			g.every *= 2
		}
		g.due = now.Add(g.every)
		w.greetings[key] = g
	}
	if len(w.greetings) > 0 {
		w.greeter.Reset(greetAgain)
	}
}

// initiate needs mu.
func (w *WireGuard) initiate(key Key) {
	peer := w.dev.LookupPeer(device.NoisePublicKey(key))
	if peer == nil {
		return
	}
	if err := peer.SendHandshakeInitiation(false); err != nil {
		// It is repeated: a peer that is not up yet is no error.
		w.log.Debug("overlay handshake not sent", "node", w.nodes[key], "err", err)
	}
}

// greetLate greets those again that have not answered. The timer greeter runs
// it.
func (w *WireGuard) greetLate() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return
	}
	have, _, err := w.status()
	if err != nil {
		w.log.Warn("overlay peers not read", "err", err)
		return
	}
	now := time.Now()
	for _, key := range slices.Collect(maps.Keys(w.greetings)) {
		g := w.greetings[key]
		peer, exists := have[key]
		if !exists || !peer.LastHandshake.IsZero() || g.left == 0 {
			delete(w.greetings, key)
			continue
		}
		if now.Before(g.due) {
			continue
		}
		g.left--
		g.due = now.Add(g.every)
		w.greetings[key] = g
		if p := w.dev.LookupPeer(device.NoisePublicKey(key)); p != nil {
			p.ExpireCurrentKeypairs() // there is none; this ends the 5 s wait
		}
		w.initiate(key)
	}
	if len(w.greetings) > 0 {
		w.greeter.Reset(greetAgain)
	}
}
