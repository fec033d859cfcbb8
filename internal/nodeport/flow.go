package nodeport

import (
	"container/list"
	"errors"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/netctl/netctl/internal/quota"
)

// maxDatagram is one byte more than a datagram can be long.
const maxDatagram = 1 << 16

// flows are the conversations of UDP clients, in the order in which they were
// last heard: at its bound a client loses its own oldest, and when all are taken
// the oldest of all goes. A flood from invented addresses thus pushes out flows,
// idle ones first, but never shuts the door.
type flows struct {
	server  *Server
	quota   *quota.Quota
	buffers sync.Pool // *[maxDatagram]byte
	began   time.Time

	mu     sync.Mutex
	byKey  map[flowKey]*flow         // guarded by mu
	all    *list.List                // guarded by mu; of *flow, last heard first
	recent map[netip.Addr]*list.List // guarded by mu; the same for each client; no empty lists
}

// flowKey tells conversations apart: a client may ask two of our addresses.
type flowKey struct {
	listener *udpListener
	client   netip.AddrPort
	asked    netip.Addr
}

// flow is one conversation.
//
//	opening ──backend found──> open ──idle, backend gone, evicted, closed──> gone
type flow struct {
	key      flowKey
	owner    netip.Addr
	answers  *answerer
	inAll    *list.Element // guarded by flows.mu
	inRecent *list.Element // guarded by flows.mu

	heard   atomic.Int64 // nanoseconds since flows.began; the last datagram either way
	replied atomic.Bool

	backend netip.AddrPort // set before path is used
	path    Flow           // reading goroutine of the listener; closed by end

	mu   sync.Mutex
	gone bool // guarded by mu
}

func newFlows(s *Server) *flows {
	f := &flows{
		server: s, quota: share(s.cfg.Limits.Flows, s.cfg.Limits.FlowsPerClient), began: time.Now(),
		byKey: make(map[flowKey]*flow), all: list.New(), recent: make(map[netip.Addr]*list.List),
	}
	f.buffers.New = func() any { return new([maxDatagram]byte) }
	return f
}

func (t *flows) buffer() *[maxDatagram]byte { return t.buffers.Get().(*[maxDatagram]byte) }

// receive passes a client's datagram on. A flow whose backend may not be used
// any more, or turns out to be gone, is replaced: the next backend gets the
// datagram.
func (t *flows) receive(l *udpListener, in *incoming) {
	key := flowKey{l, in.client, in.asked}
	data := in.buf[:in.n]
	for range 2 {
		f := t.find(key)
		if f != nil && !t.holds(f) {
			t.server.counts.moved.Add(1)
			t.end(f)
			f = nil
		}
		if f == nil {
			if f = t.open(key); f == nil {
				return
			}
		}
		f.heard.Store(int64(time.Since(t.began)))
		if f.path.Send(data) == nil {
			return
		}
		t.end(f)
	}
	t.server.counts.dropped.Add(1)
}

// holds reports whether the flow may stay with its backend.
func (t *flows) holds(f *flow) bool {
	want := f.key.listener.want.Load()
	if want.Target.IsValid() {
		return f.backend == want.Target
	}
	has := t.server.cfg.Has
	return has == nil || has(f.asked(), want.Proto, f.backend)
}

// asked is the address and port that the client asked.
func (f *flow) asked() netip.AddrPort {
	return netip.AddrPortFrom(f.key.asked, f.key.listener.want.Load().Addr.Port())
}

func (t *flows) find(key flowKey) *flow {
	t.mu.Lock()
	defer t.mu.Unlock()
	f := t.byKey[key]
	if f != nil {
		t.all.MoveToFront(f.inAll)
		t.recent[f.owner].MoveToFront(f.inRecent)
	}
	return f
}

// open begins a flow; nil: there is no backend, or no room.
func (t *flows) open(key flowKey) *flow {
	s := t.server
	s.counts.accepted.Add(1)
	f := &flow{key: key, owner: quota.Client(key.client.Addr())}
	to, err := s.route(key.listener.want.Load(), f.asked(), key.client)
	if err != nil {
		return nil
	}
	if !t.take(f.owner) {
		s.counts.limited.Add(1)
		return nil
	}
	f.backend = to.backend
	f.answers = newAnswerer(key.listener, key.client, key.asked)
	receive := t.receiver(f)
	if to.path == PathHost {
		f.path, err = s.openHostFlow(to.backend, receive)
	} else {
		f.path, err = s.cfg.Datagrams(to.source, to.backend, receive)
	}
	if err != nil {
		t.quota.Give(f.owner)
		if !errors.Is(err, ErrClosed) {
			s.counts.failed.Add(1)
			s.log.Debug("no way to the backend of a node socket", "client", key.client, "backend", to.backend, "error", err)
		}
		return nil
	}
	t.enter(f)
	return f
}

// receiver takes the answers of a flow's backend.
func (t *flows) receiver(f *flow) func(data []byte) {
	return func(data []byte) {
		f.heard.Store(int64(time.Since(t.began)))
		f.replied.Store(true)
		f.answers.send(data)
	}
}

// take makes room for one flow of a client.
func (t *flows) take(owner netip.Addr) bool {
	for range 2 {
		if t.quota.Take(owner) != quota.None {
			return true
		}
		if f := t.oldest(owner); f != nil {
			t.end(f)
			t.server.counts.evicted.Add(1)
		}
	}
	return t.quota.Take(owner) != quota.None
}

// oldest is the flow that gives way to a new one of the client.
func (t *flows) oldest(owner netip.Addr) *flow {
	t.mu.Lock()
	defer t.mu.Unlock()
	l := t.recent[owner]
	if l == nil {
		l = t.all
	}
	if e := l.Back(); e != nil {
		return e.Value.(*flow)
	}
	return nil
}

func (t *flows) enter(f *flow) {
	t.mu.Lock()
	defer t.mu.Unlock()
	f.heard.Store(int64(time.Since(t.began)))
	t.byKey[f.key] = f
	f.inAll = t.all.PushFront(f)
	l := t.recent[f.owner]
	if l == nil {
		l = list.New()
		t.recent[f.owner] = l
	}
	f.inRecent = l.PushFront(f)
}

// end closes a flow. Idempotent.
func (t *flows) end(f *flow) {
	f.mu.Lock()
	gone := f.gone
	f.gone = true
	f.mu.Unlock()
	if gone {
		return
	}
	t.mu.Lock()
	if t.byKey[f.key] == f {
		delete(t.byKey, f.key)
	}
	t.all.Remove(f.inAll)
	l := t.recent[f.owner]
	l.Remove(f.inRecent)
	if l.Len() == 0 {
		delete(t.recent, f.owner)
	}
	t.mu.Unlock()
	f.path.Close()
	t.quota.Give(f.owner)
}

// endIf closes the flows that match.
func (t *flows) endIf(match func(*flow) bool) {
	t.mu.Lock()
	var ends []*flow
	for e := t.all.Front(); e != nil; e = e.Next() {
		if f := e.Value.(*flow); match(f) {
			ends = append(ends, f)
		}
	}
	t.mu.Unlock()
	for _, f := range ends {
		t.end(f)
	}
}

// expire closes the flows on which nothing has moved for too long.
func (t *flows) expire(now time.Time) {
	at := now.Sub(t.began)
	t.endIf(func(f *flow) bool {
		life := udpUnreplied
		if f.replied.Load() {
			life = udpReplied
		}
		return at-time.Duration(f.heard.Load()) > life
	})
}
