// Package holder keeps copies of an agent's descriptors, so that its devices and
// sockets outlive its process, and starts another agent at once when that one dies.
//
//	agent ──PUT name, descriptors──▶ holder ──▶ copies
//	  ✝ connection ends without GOODBYE
//	                                 holder ──starts──▶ stand-in ──GET──▶ its copies
//
// It knows no packet, no file format and no cluster: it parses names and counts, so
// that there is little in it that can fail. A TUN whose descriptor somebody holds
// keeps its carrier, and packets wait in its queue; a socket keeps its port, and
// datagrams and connections wait in its buffer.
//
// The socket is a SOCK_SEQPACKET one in a directory of its own; every message is one
// request, every request has one answer (GET: as many as there are names, and one).
// Only processes of the holder's own user are answered. One client at a time is the
// owner: it said OWN last, and its death counts. What an earlier owner put stays
// until the new one has settled, so that an owner that dies in the middle loses
// nothing.
//
// Tests kill processes that hold the other end of a pipe.
package holder

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/netctl/netctl/internal/kernel"
)

// The bounds of what is held and read.
const (
	MaxName  = 512     // bytes of a name
	maxNames = 1 << 14 // as many as a node has ports, and more
	maxFDs   = 1 << 15
	// maxClients is how many may be connected: agents that follow each other, and
	// those that look.
	maxClients = 64
	maxMessage = 1 + MaxName
)

// The requests, by their first byte; the rest is a name or nothing.
const (
	opOwn     = 'O' // what I put counts, and that I die
	opPut     = 'P' // name, descriptors: keep copies, in place of those of that name
	opDrop    = 'D' // name
	opSettled = 'S' // what former owners put and I did not is of no use
	opGet     = 'G' // all of them
	opBeat    = 'A' // I live, and say so twice a second from now on: see watch
	opReplace = 'R' // I am about to end: start another one, that I hand over to
	opGoodbye = 'B' // I end in order: nothing is to be kept, and nobody to stand in
)

// The answers.
const (
	saysDone  = 'k'
	saysError = 'e' // and the reason
	saysHeld  = 'f' // name, descriptors
)

// Config is what a Holder needs.
type Config struct {
	// Lost is called when an owner's connection ends without a goodbye, with how
	// long it was the owner. It must not wait.
	Lost func(owned time.Duration)
	// Wanted is called when the owner wants to be replaced; nil: it cannot be. It must
	// not wait.
	Wanted func()
	Log    *slog.Logger
}

// Holder keeps the copies.
type Holder struct {
	cfg Config

	clients sync.WaitGroup
	slots   chan struct{}

	mu    sync.Mutex
	held  map[string]*entry      // guarded by mu
	fds   int                    // guarded by mu: in held
	owner *net.UnixConn          // guarded by mu
	since time.Time              // guarded by mu: the owner is one
	beats bool                   // guarded by mu: the owner says that it lives
	heard uint64                 // guarded by mu: requests of owners
	conns map[*net.UnixConn]bool // guarded by mu
	ended bool                   // guarded by mu
}

// entry is what is held under a name.
type entry struct {
	fds   []int
	stale bool // put by a former owner
}

// New returns a Holder that holds nothing.
func New(cfg Config) *Holder {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Lost == nil {
		cfg.Lost = func(time.Duration) {}
	}
	return &Holder{cfg: cfg, slots: make(chan struct{}, maxClients), held: map[string]*entry{}, conns: map[*net.UnixConn]bool{}}
}

// Listen makes the socket, in a directory that becomes its user's alone. What is at
// path and is a socket is a dead holder's and goes.
func Listen(path string) (*net.UnixListener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("make the holder's directory: %w", err)
	}
	if info, err := os.Lstat(path); err == nil && info.Mode().Type() != fs.ModeSocket {
		return nil, fmt.Errorf("%s exists and is no socket: give --socket another path", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("remove a former holder's socket: %w", err)
	}
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		return nil, fmt.Errorf("listen as holder: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("protect the holder's socket: %w", err), l.Close())
	}
	return l, nil
}

// Serve answers whoever connects, until the context ends. It owns the listener.
func (h *Holder) Serve(ctx context.Context, l *net.UnixListener) error {
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	for {
		conn, err := l.AcceptUnix()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("accept as holder: %w", err)
		}
		uid, pid, err := kernel.Peer(conn)
		if err != nil || int(uid) != os.Geteuid() {
			h.cfg.Log.Warn("holder refused a client", "uid", uid, "error", err)
			_ = conn.Close()
			continue
		}
		go h.watchClient(pid, conn, h.Attend(conn))
	}
}

// Attend answers a client, which is known to be one, in the background. It owns the
// connection. When that ends, what is returned says whether it was the owner's.
func (h *Holder) Attend(conn *net.UnixConn) (left <-chan bool) {
	ended := make(chan bool, 1)
	select {
	case h.slots <- struct{}{}:
	default:
		h.cfg.Log.Warn("holder has too many clients and refused one", "clients", maxClients)
		_ = conn.Close()
		ended <- false
		return ended
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.ended {
		<-h.slots
		_ = conn.Close()
		ended <- false
		return ended
	}
	h.conns[conn] = true
	h.clients.Go(func() {
		defer func() { <-h.slots }()
		h.attend(conn)
		ended <- h.leave(conn)
	})
	return ended
}

// Owned reports whether there is an owner.
func (h *Holder) Owned() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.owner != nil
}

// heardOf returns a number that grows with each request of a client, while that is
// the owner, and whether it has said that it beats.
func (h *Holder) heardOf(conn *net.UnixConn) (n uint64, owner, beats bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.heard, h.owner == conn, h.owner == conn && h.beats
}

// Close ends all connections and lets go of everything; nobody is told of it as of
// a death.
func (h *Holder) Close() {
	h.mu.Lock()
	h.ended, h.owner = true, nil
	for c := range h.conns {
		_ = c.Close()
	}
	h.mu.Unlock()
	h.clients.Wait()
	h.mu.Lock()
	defer h.mu.Unlock()
	h.clear()
}

// Held returns how many names and descriptors are held.
func (h *Holder) Held() (names, fds int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.held), h.fds
}

// attend answers a client until its connection ends.
func (h *Holder) attend(conn *net.UnixConn) {
	buf := make([]byte, maxMessage+1)
	for {
		n, fds, err := kernel.RecvFDs(conn, buf)
		if err != nil || n == 0 {
			return // gone, or no client of ours: one message is one request
		}
		err = h.answer(conn, buf[0], string(buf[1:n]), fds)
		reply := []byte{saysDone}
		if err != nil {
			h.cfg.Log.Warn("holder refused a request", "error", err)
			reply = append([]byte{saysError}, err.Error()...)
		}
		if err := send(conn, reply); err != nil {
			return
		}
	}
}

// errRequest: not one of ours, or not as it should be.
var errRequest = errors.New("bad request")

// answer carries out a request. It owns the descriptors.
func (h *Holder) answer(conn *net.UnixConn, op byte, name string, fds []int) error {
	if op != opPut {
		kernel.CloseFDs(fds)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.owner == conn {
		h.heard++
	}
	switch op {
	case opGet:
		return h.give(conn)
	case opOwn:
		h.own(conn)
		return nil
	case opGoodbye:
		if h.owner == conn { // else another one has the node, and keeps it
			h.owner = nil
			h.clear()
		}
		return nil
	}
	if h.owner != conn {
		if op == opPut {
			kernel.CloseFDs(fds)
		}
		return fmt.Errorf("%w %q: only the owner may, and another client is", errRequest, op)
	}
	switch op {
	case opPut:
		return h.put(name, fds)
	case opDrop:
		h.drop(name)
	case opBeat:
		h.beats = true
	case opReplace:
		if h.cfg.Wanted == nil {
			return errors.New("this holder starts an agent only when there is none")
		}
		h.cfg.Wanted()
	case opSettled:
		for name, e := range h.held {
			if e.stale {
				h.drop(name)
			}
		}
	default:
		return fmt.Errorf("%w %q", errRequest, op)
	}
	return nil
}

// own makes a client the owner; mu is held.
func (h *Holder) own(conn *net.UnixConn) {
	if h.owner != conn {
		h.owner, h.since, h.beats = conn, time.Now(), false
	}
	for _, e := range h.held {
		e.stale = true
	}
}

// put keeps descriptors under a name; mu is held.
func (h *Holder) put(name string, fds []int) error {
	old := 0
	if e := h.held[name]; e != nil {
		old = len(e.fds)
	}
	var err error
	switch {
	case !validName(name) || len(fds) == 0:
		err = fmt.Errorf("%w: put %q with %d descriptors", errRequest, name, len(fds))
	case h.held[name] == nil && len(h.held) >= maxNames:
		err = fmt.Errorf("%d names are held already, which is the most", len(h.held))
	case h.fds-old+len(fds) > maxFDs:
		err = fmt.Errorf("%d descriptors are held already, %d is the most", h.fds, maxFDs)
	}
	if err != nil {
		kernel.CloseFDs(fds)
		return err
	}
	h.drop(name)
	h.held[name] = &entry{fds: fds}
	h.fds += len(fds)
	return nil
}

// validName reports whether a name is one: printable, and not too long.
func validName(name string) bool {
	if name == "" || len(name) > MaxName {
		return false
	}
	for i := range len(name) {
		if name[i] <= ' ' || name[i] > '~' {
			return false
		}
	}
	return true
}

// drop lets go of a name; mu is held.
func (h *Holder) drop(name string) {
	if e := h.held[name]; e != nil {
		kernel.CloseFDs(e.fds)
		h.fds -= len(e.fds)
		delete(h.held, name)
	}
}

// clear lets go of everything; mu is held.
func (h *Holder) clear() {
	for name := range h.held {
		h.drop(name)
	}
}

// give sends everything; mu is held. The client reads as fast as it can, or it is
// no client: there is no message that waits for it.
func (h *Holder) give(conn *net.UnixConn) error {
	for name, e := range h.held {
		if err := send(conn, append([]byte{saysHeld}, name...), e.fds...); err != nil {
			_ = conn.Close()
			return err
		}
	}
	return nil
}

// send does not wait for a client that does not read.
func send(conn *net.UnixConn, message []byte, fds ...int) error {
	if err := conn.SetWriteDeadline(time.Now().Add(answerTime)); err != nil {
		return err
	}
	return kernel.SendFDs(conn, message, fds...)
}

// leave is what the end of a connection means. It reports whether the owner is lost.
func (h *Holder) leave(conn *net.UnixConn) bool {
	h.mu.Lock()
	_ = conn.Close()
	delete(h.conns, conn)
	lost, owned := h.owner == conn, time.Since(h.since)
	if lost {
		h.owner = nil
	}
	h.mu.Unlock()
	if lost {
		h.cfg.Lost(owned)
	}
	return lost
}
