// Package alive knows which other nodes' agents live, within seconds: a Node's
// conditions say so after most of a minute only. Agents ask each other, through the
// tunnels, so that what is found out is also that packets get through.
//
//	question: a number, from our address in our own block to the peer's in its
//	answer:   the same number back
//
// Only the addresses of nodes count as senders, which no pod can have. Nobody is
// asked whose life does not matter here: see Watch.
package alive

import (
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"time"
)

// Port is where agents ask each other, over UDP.
const Port = 51821

// The times: a node that has answered nothing for so long is dead. A failover takes
// that and one announcement.
const (
	interval = 400 * time.Millisecond
	silence  = 1600 * time.Millisecond
)

const (
	magic    = 0x6e65_7463_746c_3f01 // netctl?
	reply    = magic + 1
	size     = 16 // magic and number
	maxPeers = 4096
)

// Peer is a node that may be watched: where it is asked.
type Peer struct {
	Node string
	At   netip.Addr // the host's address in its block
}

// Config is what New needs.
type Config struct {
	// Changed is called, from Run, when a watched node has died or come to life, and
	// when Asking has another answer.
	Changed func()
	Logger  *slog.Logger
	// Bind is the port to bind; 0: Port. Ask is where others are; 0: Port.
	Bind, Ask uint16
}

// Watcher asks and answers. Its methods may be called from any goroutine.
type Watcher struct {
	cfg Config

	mu    sync.Mutex
	self  netip.Addr            // guarded by mu: ours, like theirs
	known map[netip.Addr]string // guarded by mu: peers by address; only they are answered
	peers map[string]*peer      // guarded by mu: those that are watched
	open  bool                  // guarded by mu: there is a socket
	why   error                 // guarded by mu: why there is none; nil: our address is not there yet
}

type peer struct {
	at     netip.Addr
	number uint64    // of the question that waits for an answer
	heard  time.Time // the last answer, or when it began to be watched
	alive  bool
}

// New returns a Watcher that asks nobody before Run.
func New(cfg Config) *Watcher {
	if cfg.Bind == 0 {
		cfg.Bind = Port
	}
	if cfg.Ask == 0 {
		cfg.Ask = Port
	}
	return &Watcher{cfg: cfg, known: make(map[netip.Addr]string), peers: make(map[string]*peer)}
}

// Watch sets our own address, who else there is and which of them are asked. One that is new counts as
// alive until it has had time to answer: who starts must not take away what others
// have.
func (w *Watcher) Watch(self netip.Addr, all []Peer, watched map[string]bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.self = self
	clear(w.known)
	want := make(map[string]bool, len(watched))
	for _, p := range all[:min(len(all), maxPeers)] {
		w.known[p.At] = p.Node
		if !watched[p.Node] || want[p.Node] {
			continue
		}
		want[p.Node] = true
		if have := w.peers[p.Node]; have == nil {
			w.peers[p.Node] = &peer{at: p.At, heard: time.Now(), alive: true}
		} else {
			have.at = p.At
		}
	}
	maps.DeleteFunc(w.peers, func(n string, _ *peer) bool { return !want[n] })
}

// Lives reports whether a watched node lives, as far as it is known. One that is not
// watched does not.
func (w *Watcher) Lives(node string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	p := w.peers[node]
	return p != nil && p.alive
}

// Asking reports whether we ask and are asked. While we do not, nothing is found out
// about others, and they take us for dead; the error says what keeps us from it.
func (w *Watcher) Asking() (bool, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.open, w.why
}

// opened notes that there is a socket, or why there is none. Nobody could answer
// before: silence counts from now on.
func (w *Watcher) opened(open bool, why error) {
	w.mu.Lock()
	changed := w.open != open || (w.why == nil) != (why == nil) || why != nil && why.Error() != w.why.Error()
	if open && !w.open {
		now := time.Now()
		for _, p := range w.peers {
			p.heard = now
		}
	}
	w.open, w.why = open, why
	w.mu.Unlock()
	if changed {
		if why != nil {
			w.cfg.Logger.Warn("other nodes cannot ask yet whether this one lives", "error", why)
		}
		w.cfg.Changed()
	}
}

// Run asks and answers until the context ends. While our own address is not there
// yet, or its port is somebody else's, nobody hears of us, and nobody is heard: then
// nobody is declared dead either.
func (w *Watcher) Run(ctx context.Context) error {
	var conn *net.UDPConn
	var bound netip.Addr
	var work sync.WaitGroup
	hangUp := func() {
		if conn != nil {
			_ = conn.Close()
			work.Wait()
			conn = nil
			w.opened(false, nil)
		}
	}
	defer hangUp()
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		w.mu.Lock()
		self := w.self
		w.mu.Unlock()
		if conn != nil && bound != self {
			hangUp()
		}
		if conn == nil && self.IsValid() {
			// Bound to that very address: answers must come from there, or they would not
			// take the way through the tunnel.
			c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(self, w.cfg.Bind)))
			if err == nil {
				conn, bound = c, self
				work.Go(func() { w.listen(c) })
			}
			w.opened(err == nil, err)
		}
		select {
		case <-ctx.Done():
			return nil
		case now := <-tick.C:
			if conn == nil {
				continue
			}
			if w.judge(now) {
				w.cfg.Changed()
			}
			w.ask(conn)
		}
	}
}

// judge finds out who has died; true: somebody has.
func (w *Watcher) judge(now time.Time) (changed bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for node, p := range w.peers {
		if p.alive && now.Sub(p.heard) > silence {
			p.alive, changed = false, true
			w.cfg.Logger.Info("node does not answer through the tunnel", "node", node)
		}
	}
	return changed
}

// ask sends every watched node a question.
func (w *Watcher) ask(conn *net.UDPConn) {
	type question struct {
		at     netip.Addr
		number uint64
	}
	var all []question
	w.mu.Lock()
	for _, p := range w.peers {
		p.number = rand.Uint64()
		all = append(all, question{p.at, p.number})
	}
	w.mu.Unlock()
	for _, q := range all {
		// One that cannot be sent is one that is not answered.
		_, _ = conn.WriteToUDPAddrPort(message(magic, q.number), netip.AddrPortFrom(q.at, w.cfg.Ask))
	}
}

func message(kind, number uint64) []byte {
	b := make([]byte, 0, size)
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(b, kind), number)
}

// listen answers questions and takes answers, of nodes alone.
func (w *Watcher) listen(conn *net.UDPConn) {
	buf := make([]byte, size+1)
	for {
		n, from, err := conn.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil || n != size {
			continue
		}
		node, ok := w.node(from.Addr().Unmap())
		if !ok {
			continue
		}
		kind, number := binary.BigEndian.Uint64(buf), binary.BigEndian.Uint64(buf[8:])
		switch kind {
		case magic:
			_, _ = conn.WriteToUDPAddrPort(message(reply, number), from)
		case reply:
			if w.heard(node, number) {
				w.cfg.Changed()
			}
		}
	}
}

func (w *Watcher) node(a netip.Addr) (string, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	n, ok := w.known[a]
	return n, ok
}

// heard notes an answer; true: the node was dead before.
func (w *Watcher) heard(node string, number uint64) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	p := w.peers[node]
	if p == nil || p.number != number {
		return false
	}
	p.heard = time.Now()
	was := p.alive
	p.alive = true
	if !was {
		w.cfg.Logger.Info("node answers again", "node", node)
	}
	return !was
}
