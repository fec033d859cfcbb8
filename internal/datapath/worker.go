package datapath

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/netctl/netctl/internal/kernel"
	"github.com/netctl/netctl/internal/packet"
)

const (
	// readBurst is how many packets are read from one TUN before the next one has
	// its turn.
	readBurst = 64
	// spinReads is how often a worker that has just carried packets looks again
	// before it sleeps: a wake-up costs more than a few empty looks.
	spinReads  = 8
	pollEvents = 128
)

// Workers read the TUNs of the published Tables. Each worker is one goroutine
// with an epoll set of its own; it blocks in no system call but keeps its thread
// until there is nothing to carry. A TUN belongs to one worker, so packets of a
// flow keep their order. Read, walk and write happen there, without hand-overs.
type Workers struct {
	router  *Router
	workers []*worker

	mu      sync.Mutex
	reading map[PortID]int // guarded by mu: port -> descriptor that is polled
}

type worker struct {
	input  *Input
	poller *kernel.Poller
	buf    []byte
	events []kernel.Event
}

// NewWorkers returns n workers for the router; Run starts them.
func NewWorkers(r *Router, n int) (*Workers, error) {
	ws := &Workers{router: r, reading: make(map[PortID]int)}
	for range n {
		p, err := kernel.NewPoller()
		if err != nil {
			return nil, errors.Join(fmt.Errorf("create a worker's poller: %w", err), ws.close())
		}
		ws.workers = append(ws.workers, &worker{
			input:  r.NewInput(NoPort),
			poller: p,
			buf:    make([]byte, packet.MaxSize),
			events: make([]kernel.Event, pollEvents),
		})
	}
	return ws, nil
}

// Publish publishes Tables and makes the workers read exactly the TUNs in
// them: new ones only when the Tables that know them are in force, and when it
// returns nobody touches the ones that are gone.
func (ws *Workers) Publish(t *Tables) error {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	var errs []error
	for id, fd := range ws.reading {
		if r, ok := t.port(id).Port.(Reader); !ok || r.FD() != fd {
			errs = append(errs, ws.owner(id).poller.Del(fd))
			delete(ws.reading, id)
		}
	}
	ws.router.Publish(t)
	for i := range t.Ports {
		id := PortID(i)
		r, ok := t.Ports[i].Port.(Reader)
		if _, reading := ws.reading[id]; !ok || reading {
			continue
		}
		if err := ws.owner(id).poller.Add(r.FD(), uint64(id)); err != nil {
			errs = append(errs, fmt.Errorf("poll port %s: %w", t.Ports[i].Name, err))
			continue
		}
		ws.reading[id] = r.FD()
	}
	return errors.Join(errs...)
}

func (ws *Workers) owner(id PortID) *worker { return ws.workers[int(id)%len(ws.workers)] }

// Run reads until the context ends.
func (ws *Workers) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	for _, w := range ws.workers {
		wg.Go(func() { w.run(ctx) })
	}
	<-ctx.Done()
	for _, w := range ws.workers {
		w.poller.Wake()
	}
	wg.Wait()
	return ws.close()
}

func (ws *Workers) close() error {
	var errs []error
	for _, w := range ws.workers {
		w.input.Close()
		errs = append(errs, w.poller.Close())
	}
	return errors.Join(errs...)
}

func (w *worker) run(ctx context.Context) {
	idle := 0
	for ctx.Err() == nil {
		timeout := 0
		if idle >= spinReads {
			timeout = -1
		}
		n, err := w.poller.Wait(w.events, timeout)
		if err != nil {
			return // the poller was closed: the owner has ended
		}
		carried := 0
		for i := range w.events[:n] {
			carried += w.drain(PortID(w.events[i].Token))
		}
		idle++
		if carried > 0 {
			idle = 0
		}
	}
}

// drain carries what waits in one TUN, up to readBurst packets.
func (w *worker) drain(id PortID) int {
	in := w.input
	in.begin()
	defer in.end()
	in.id = id
	r, ok := in.tables.port(id).Port.(Reader)
	if !ok {
		return 0 // taken out after the event was raised
	}
	for n := range readBurst {
		size, err := r.Read(w.buf)
		if err != nil {
			return n
		}
		in.packet(w.buf[:size])
	}
	return readBurst
}
