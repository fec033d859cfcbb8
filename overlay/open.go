package overlay

import (
	"encoding/binary"
	"runtime"
	"sync"

	"golang.org/x/crypto/chacha20poly1305"

	"github.com/netctl/netctl/overlay/handshake"
)

// Opening is half of a reader's work, and needs nothing but the message and its
// key. So where there are processors to spare, a reader hands some of a batch's
// pieces to openers, and does all else with the whole batch itself, in order: one
// peer's messages are opened by several processors, and no flow is reordered.
const (
	// worthSharing is how long a piece must be: opening it takes longer than waking
	// somebody up.
	worthSharing = 16 << 10
	maxOpeners   = 7
)

// opened is a message that was received, and what was in it.
type opened struct {
	msg     []byte
	kind    handshake.Kind
	kp      *keypair // nil: it is not authentic, or not of a session of ours
	counter uint64
	ip      []byte // of kp's peer
}

// piece is what a reader or an opener makes of a piece that was received.
type piece struct {
	w     *WireGuard
	buf   []byte
	size  int // of each datagram but the last
	out   []opened
	nonce [chacha20poly1305.NonceSize]byte
	done  *sync.WaitGroup
}

// openersFor returns how many openers help the readers.
func openersFor(wanted int) int {
	if wanted == 0 {
		wanted = runtime.GOMAXPROCS(0)/2 - 1
	}
	return max(0, min(wanted, maxOpeners))
}

// help is an opener's goroutine.
func (w *WireGuard) help() {
	for {
		select {
		case p := <-w.jobs:
			p.open()
			p.done.Done()
		case <-w.quit:
			return
		}
	}
}

// openAll opens a batch's pieces, all but the last with whoever is idle.
func (w *WireGuard) openAll(pieces []piece, wait *sync.WaitGroup) {
	shared := uint64(0)
	for i := range pieces {
		p := &pieces[i]
		if w.openers > 0 && i < len(pieces)-1 && len(p.buf) >= worthSharing {
			p.done = wait
			wait.Add(1)
			select {
			case w.jobs <- p:
				shared++
				continue
			default:
				wait.Done()
			}
		}
		p.open()
	}
	if shared > 0 {
		wait.Wait()
		w.count.rxShared.Add(shared)
	}
}

// open opens the piece's messages where they lie.
func (p *piece) open() {
	p.out = p.out[:0]
	var kp *keypair
	for rest := p.buf; len(rest) > 0; {
		n := min(p.size, len(rest))
		o := opened{msg: rest[:n:n]}
		rest = rest[n:]
		if o.kind = handshake.KindOf(o.msg); o.kind == handshake.KindTransport {
			if index := handshake.Receiver(o.msg); kp == nil || kp.local != index {
				if kp = p.w.find(index); kp != nil && !kp.good(p.w.clock.now()) {
					kp = nil
				}
			}
			if kp != nil {
				p.openOne(&o, kp)
			}
		}
		p.out = append(p.out, o)
	}
}

func (p *piece) openOne(o *opened, kp *keypair) {
	o.counter = handshake.Counter(o.msg)
	binary.LittleEndian.PutUint64(p.nonce[4:], o.counter)
	body := o.msg[handshake.TransportHeader:]
	if ip, err := kp.receive.Open(body[:0], p.nonce[:], body, nil); err == nil {
		o.kp, o.ip = kp, ip
	}
}
