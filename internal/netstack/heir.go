package netstack

import (
	"net/netip"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netctl/netctl/internal/packet"
)

// Heir is what a retired Stack speaks to: the Stack of the process that has the
// ports now, or the wire to it. Tuples are those of packets that come for a
// connection: from a pod to somebody else. Its methods are called with locks
// held and from many goroutines; they may wait, but not for the retired Stack.
type Heir interface {
	// Began says that packets of a tuple belong here from now on, Ended that they
	// do not any more. inbound: it was Dial or Datagrams that began.
	Began(t packet.Tuple, inbound bool)
	Ended(t packet.Tuple)
	// Packet is what would have gone to Config.Out or Config.Inbound. The buffer is
	// borrowed.
	Packet(buf []byte, inbound bool)
	// Return is a packet that came here but is the heir's own. The buffer is
	// borrowed.
	Return(buf []byte, inbound bool)
	// Flow gives a flow of datagrams away, and its socket, which the heir closes.
	// Its tuple has ended here.
	Flow(f Flow, fd int)
}

// Flow is a flow of datagrams of a pod without its socket.
type Flow struct {
	Tuple   packet.Tuple
	Backend netip.AddrPort // where it really goes: what the socket is connected to
	Replied bool
	Idle    time.Duration // since the last datagram either way
}

// heirRef lets an atomic pointer hold an Heir.
type heirRef struct{ Heir }

// Retire makes the Stack one that only finishes what it has: h hears of every
// connection, of those that are still being opened too, and takes what they emit. New
// connections and flows of pods are returned to it; Dial and Datagrams still
// work, for whoever has a client in hand. Pings are neither: a question after
// this is the heir's, and an answer to an earlier one still goes out.
// Connections to servers in this process are read a few seconds more and then
// end as if they had been idle for too long.
//
// The caller stops calling Write before, except for what the heir passes on.
// Run goes on: it ends what is idle.
func (s *Stack) Retire(h Heir) {
	s.heir.Store(&heirRef{h})
	if e := s.elder.Load(); e != nil {
		e.retire(h)
	}
	s.live.retire(h)
	s.datagrams.retire(h)
	s.inFlows.retire(h)
	s.limitServed(time.Now().Add(servedPatience))
}

// Reinstate takes Retire back: the heir could not take over. Flows that were
// given away stay away.
func (s *Stack) Reinstate() {
	s.inFlows.retire(nil)
	s.datagrams.retire(nil)
	s.live.retire(nil)
	if e := s.elder.Load(); e != nil {
		e.retire(nil)
	}
	s.heir.Store(nil)
	s.limitServed(time.Time{})
}

// GiveFlows gives the pods' flows of datagrams to the heir, all that have their
// socket. Those that are just being opened are left for the next call.
func (s *Stack) GiveFlows() { s.datagrams.give() }

// Idle reports whether nothing is left that needs this Stack.
func (s *Stack) Idle() bool {
	if e := s.elder.Load(); e != nil && e.size.Load() > 0 {
		return false
	}
	return s.live.size() == 0 && s.inFlows.quota.Size() == 0 &&
		s.datagrams.flowQuota.Size() == 0 && s.datagrams.echoQuota.Size() == 0
}

// giveBack returns a packet to the heir if there is one.
func (s *Stack) giveBack(buf []byte, on *link) {
	if h := s.heir.Load(); h != nil {
		h.Return(buf, on == s.inLink)
	}
}

// retire tells the heir of the flows of UDP.
func (d *datagrams) retire(h Heir) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.heir = h
	if h == nil {
		return
	}
	for key := range d.flows {
		if key.Proto == packet.ProtoUDP {
			h.Began(key, false)
		}
	}
}

// give gives the flows of UDP away. The lock is held meanwhile, so that the heir
// has a flow before it gets a packet back that came here for it.
func (d *datagrams) give() {
	d.mu.Lock()
	var keys []packet.Tuple
	for who, order := range d.recent {
		if who.proto != packet.ProtoUDP {
			continue
		}
		for e := order.Back(); e != nil; e = e.Prev() { // as they were opened or used last
			keys = append(keys, e.Value.(*flow).key)
		}
	}
	d.mu.Unlock()
	for _, key := range keys {
		d.giveOne(key)
	}
}

func (d *datagrams) giveOne(key packet.Tuple) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f := d.flows[key]
	if f == nil || d.heir == nil {
		return
	}
	fd, ok := f.duplicate()
	if !ok {
		return
	}
	backend := f.backend.Load()
	gift := Flow{
		Tuple: key, Backend: *backend, Replied: f.replied.Load(),
		Idle: max(0, time.Since(d.stack.began)-time.Duration(f.used.Load())),
	}
	d.remove(f)
	f.close()
	d.heir.Flow(gift, fd)
}

// duplicate returns the flow's socket once more; false: it has none.
func (f *flow) duplicate() (int, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.gone || f.socket.conn == nil {
		return 0, false
	}
	fd, derr := -1, error(nil)
	err := f.socket.raw.Control(func(s uintptr) { fd, derr = unix.FcntlInt(s, unix.F_DUPFD_CLOEXEC, 0) })
	return fd, err == nil && derr == nil
}

// retire tells the heir of the flows that Datagrams opened.
func (d *inFlows) retire(h Heir) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.heir = h
	if h == nil {
		return
	}
	for key := range d.flows {
		h.Began(key, true)
	}
}

// adopt makes a flow of one that a predecessor gave away. It owns fd in any
// case.
func (d *datagrams) adopt(gift Flow, fd int) error {
	if d.pass(gift, fd) {
		return nil
	}
	sock, err := adoptSocket(gift.Backend, fd)
	if err != nil {
		return err
	}
	f := newFlow(d, gift.Tuple)
	f.socket = sock
	f.backend.Store(&gift.Backend)
	f.replied.Store(gift.Replied)
	f.used.Store(int64(time.Since(d.stack.began) - gift.Idle))
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.heir != nil { // since a moment
		dup, ok := f.duplicate()
		f.close()
		if ok {
			d.heir.Flow(gift, dup)
		}
		return nil
	}
	if d.closed || d.flows[gift.Tuple] != nil || gift.Tuple.Proto != packet.ProtoUDP {
		f.close()
		return syscall.EEXIST
	}
	if err := d.enter(f); err != nil {
		f.close()
		return err
	}
	return nil
}

// pass gives a flow on to the heir; false: there is none.
func (d *datagrams) pass(gift Flow, fd int) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.heir == nil {
		return false
	}
	d.heir.Flow(gift, fd)
	return true
}
