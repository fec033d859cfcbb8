package overlay

import (
	"math"
	"sync"
	"sync/atomic"
	"time"
)

// WireGuard's queues hold 1024 batches each, and every packet in them takes a
// buffer of 64 KiB: gigabytes, if somebody floods a peer that does not answer
// or the cores cannot keep up. The bounds are compile-time constants there,
// so we count what goes in and what comes out at the two ends that are ours,
// the tun.Device and the Bind, and hold back the rest.
const (
	// maxMoving bounds packets on their way to peers with a session; more wait
	// in the ring. Four super-packets keep two cores as busy as any number
	// does (BenchmarkStream), in half the memory.
	maxMoving = 192
	// maxHeld bounds packets that wait inside WireGuard for a handshake, over
	// all peers, and maxHeldPerPeer for one peer; more are dropped.
	maxHeld        = 512
	maxHeldPerPeer = 128
	// stuckAfter is how long packets may stay inside WireGuard before we
	// conclude that the peer's session is gone. Sealing a full window takes
	// less than a millisecond.
	stuckAfter = 250 * time.Millisecond
	// probeEvery is how often a peer that holds its share is asked for a
	// handshake. WireGuard itself sends one per 5 s at most.
	probeEvery = time.Second
	// sessionAge is after how long without a packet a session is surely over
	// (REJECT_AFTER_TIME).
	sessionAge = 180 * time.Second

	// maxOpening bounds datagrams read from the socket and not yet decrypted;
	// more wait in the socket's buffer.
	maxOpening = 128
	// openingLost is after how long without progress the count is taken to be
	// of packets that were refused inside (forged, replayed) and forgotten.
	openingLost = 5 * time.Millisecond
)

// admission is what admit decides about a packet.
type admission uint8

const (
	admitNow   admission = iota + 1
	admitWait            // the peer's packets are moving, but too many are
	admitDrop            // the peer has no session and holds its share
	admitProbe           // as admitDrop; also ask the peer for a handshake
)

// windows counts the packets inside WireGuard on their way out.
//
//	          first packet           sent
//	(idle) ---------------> held ------------> moving
//	                          ^                  |
//	                          '--- no progress --'
//
// Packets that WireGuard drops are never reported; a keepalive, which follows
// everything queued before it, sets the count right.
type windows struct {
	mu     sync.Mutex
	moving int           // sum of inflight of confirmed windows; guarded by mu
	held   int           // sum of inflight of the others; guarded by mu
	wake   chan struct{} // capacity 1: packets have left
}

// window is one peer's share. Its fields are guarded by windows.mu.
type window struct {
	key       Key // immutable
	inflight  int
	confirmed bool // packets were seen to leave, so there is a session
	gone      bool // the peer was removed
	progress  time.Time
	probed    time.Time
}

func newWindows() *windows { return &windows{wake: make(chan struct{}, 1)} }

// admit asks for n packets to w; they count as inside on admitNow alone.
func (ws *windows) admit(w *window, n int, now time.Time) admission {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	if w.gone {
		return admitDrop
	}
	if w.inflight == 0 {
		if now.Sub(w.progress) > sessionAge {
			w.confirmed = false
		}
		w.progress = now
	} else if w.confirmed && now.Sub(w.progress) > stuckAfter {
		w.confirmed = false
		ws.moving -= w.inflight
		ws.held += w.inflight
	}
	if w.confirmed {
		// A packet may be larger than the whole bound: it passes alone.
		if ws.moving > 0 && ws.moving+n > maxMoving {
			return admitWait
		}
		ws.moving += n
		w.inflight += n
		return admitNow
	}
	if w.inflight > 0 && w.inflight+n > maxHeldPerPeer || ws.held > 0 && ws.held+n > maxHeld {
		if now.Sub(w.probed) < probeEvery {
			return admitDrop
		}
		w.probed = now
		return admitProbe
	}
	ws.held += n
	w.inflight += n
	return admitNow
}

// sent says that n packets to w have left.
func (ws *windows) sent(w *window, n int, now time.Time) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	ws.release(w, n)
	w.progress = now
	if !w.confirmed && !w.gone {
		w.confirmed = true
		ws.held -= w.inflight
		ws.moving += w.inflight
	}
	ws.signal()
}

// settled says that all packets to w that were inside have left or are lost.
func (ws *windows) settled(w *window, now time.Time) { ws.sent(w, math.MaxInt, now) }

// cancel takes back n admitted packets that were not handed over.
func (ws *windows) cancel(w *window, n int) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	ws.release(w, n)
	ws.signal()
}

// forget ends w: what it holds no longer counts.
func (ws *windows) forget(w *window) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	ws.release(w, math.MaxInt)
	w.gone = true
	ws.signal()
}

// release needs mu.
func (ws *windows) release(w *window, n int) {
	n = min(n, w.inflight)
	w.inflight -= n
	if w.confirmed {
		ws.moving -= n
	} else {
		ws.held -= n
	}
}

func (ws *windows) signal() {
	select {
	case ws.wake <- struct{}{}:
	default:
	}
}

// opening counts datagrams between the socket and the router.
type opening struct {
	count atomic.Int64
	seen  atomic.Uint64 // calls of done
	wake  chan struct{} // capacity 1: packets came through
}

func newOpening() *opening { return &opening{wake: make(chan struct{}, 1)} }

// wait returns when more may be read; false when closed is.
func (o *opening) wait(timer *time.Timer, closed <-chan struct{}) bool {
	for o.count.Load() >= maxOpening {
		before := o.seen.Load()
		timer.Reset(openingLost)
		select {
		case <-o.wake:
		case <-timer.C:
			if o.seen.Load() == before {
				o.count.Store(0)
			}
		case <-closed:
			return false
		}
	}
	return true
}

// done says that n datagrams came through. What was refused inside makes the
// count too high, what was forgotten too early too low: never below zero.
func (o *opening) done(n int) {
	o.seen.Add(1)
	for {
		old := o.count.Load()
		if o.count.CompareAndSwap(old, max(0, old-int64(n))) {
			break
		}
	}
	select {
	case o.wake <- struct{}{}:
	default:
	}
}
