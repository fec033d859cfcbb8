package overlay

import (
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"
)

func TestWindows(t *testing.T) {
	t.Parallel()
	now := time.Unix(1e9, 0)
	ws := newWindows()
	dead, live, other := &window{}, &window{}, &window{}
	steps := []struct {
		name string
		w    *window
		n    int
		pass time.Duration
		want admission
	}{
		{"first packets wait inside for the handshake", dead, maxHeldPerPeer, 0, admitNow},
		{"more do not, and the peer is asked", dead, 1, 0, admitProbe},
		{"but not at once again", dead, 1, 0, admitDrop},
		{"another peer is not disturbed", live, 40, 0, admitNow},
		{"later it is asked again", dead, 1, probeEvery, admitProbe},
	}
	for _, s := range steps {
		now = now.Add(s.pass)
		if got := ws.admit(s.w, s.n, now); got != s.want {
			t.Fatalf("%s: got %d, want %d", s.name, got, s.want)
		}
	}
	ws.sent(live, 40, now) // there is a session
	if got := ws.admit(live, maxMoving, now); got != admitNow {
		t.Fatalf("up to the bound with a session: got %d, want now", got)
	}
	if got := ws.admit(live, 1, now); got != admitWait {
		t.Fatalf("over the bound with a session: got %d, want wait", got)
	}
	ws.sent(live, 10, now)
	if got := ws.admit(live, 10, now); got != admitNow {
		t.Fatalf("after some have left: got %d, want now", got)
	}
	if got := ws.admit(live, 10, now.Add(stuckAfter+1)); got != admitProbe {
		t.Fatalf("nothing leaves any more: got %d, want probe", got)
	}
	ws.settled(live, now)
	if ws.moving != 0 || live.inflight != 0 || ws.held != maxHeldPerPeer {
		t.Fatalf("after a keepalive: moving %d, of it %d, held %d", ws.moving, live.inflight, ws.held)
	}
	if got := ws.admit(live, 10000, now); got != admitNow {
		t.Fatalf("a packet larger than the bound must pass alone: got %d", got)
	}
	ws.settled(live, now)
	ws.forget(dead)
	if got := ws.admit(dead, 1, now); ws.held != 0 || got != admitDrop {
		t.Fatalf("after removal: held %d, admit %d", ws.held, got)
	}
	ws.sent(dead, 1, now)
	if got := ws.admit(other, maxHeldPerPeer+1, now); got != admitNow || ws.held != maxHeldPerPeer+1 {
		t.Fatalf("a large first packet: got %d, held %d", got, ws.held)
	}
}

// TestWindowsAddUp does what a WireGuard that loses packets might do, and
// checks that the sums stay the sums.
func TestWindowsAddUp(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 4))
	ws, now := newWindows(), time.Unix(1e9, 0)
	all := make([]*window, 8)
	for i := range all {
		all[i] = &window{}
	}
	for range 50000 {
		now = now.Add(time.Duration(rng.IntN(1e7)))
		i := rng.IntN(len(all))
		w := all[i]
		switch rng.IntN(20) {
		case 0:
			ws.forget(w)
			all[i] = &window{}
		case 1:
			ws.settled(w, now)
		case 2:
			now = now.Add(sessionAge)
		case 3, 4, 5:
			ws.cancel(w, rng.IntN(5))
		case 6, 7, 8, 9, 10:
			ws.sent(w, rng.IntN(50), now)
		default:
			ws.admit(w, 1+rng.IntN(60), now)
		}
		moving, held := 0, 0
		for _, w := range all {
			if w.inflight < 0 {
				t.Fatalf("seed %d: %d packets inside", seed, w.inflight)
			}
			if w.confirmed {
				moving += w.inflight
			} else {
				held += w.inflight
			}
		}
		if moving != ws.moving || held != ws.held {
			t.Fatalf("seed %d: sums %d %d, want %d %d", seed, ws.moving, ws.held, moving, held)
		}
		if moving+held > maxMoving+maxHeld+2*60 {
			t.Fatalf("seed %d: %d moving, %d held", seed, moving, held)
		}
	}
}

func TestOpening(t *testing.T) {
	t.Parallel()
	synctest.Test(t, testOpening)
}

func testOpening(t *testing.T) {
	o, closed := newOpening(), make(chan struct{})
	timer := time.NewTimer(time.Hour)
	o.count.Store(maxOpening)
	go o.done(1)
	if !o.wait(timer, closed) || o.count.Load() != maxOpening-1 {
		t.Errorf("after one came through: count %d", o.count.Load())
	}
	o.count.Store(maxOpening + 5)
	if !o.wait(timer, closed) || o.count.Load() != 0 {
		t.Errorf("without progress: count %d, want it forgotten", o.count.Load())
	}
	o.done(7)
	if o.count.Load() != 0 {
		t.Errorf("count fell to %d", o.count.Load())
	}
	select {
	case <-o.wake:
	default:
	}
	o.count.Store(maxOpening)
	close(closed)
	if o.wait(timer, closed) && o.count.Load() != 0 {
		t.Error("wait goes on after close")
	}
}
