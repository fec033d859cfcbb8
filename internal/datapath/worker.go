package datapath

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/netctl/netctl/internal/kernel"
	"github.com/netctl/netctl/internal/packet"
)

const (
	// turnCost is how much is carried of one TUN before the next one has its turn:
	// two super-packets, or sixteen small ones, a tenth of a millisecond either way.
	// What a packet costs besides its bytes is packetCost: as much as carrying so
	// many bytes does.
	turnCost   = 128 << 10
	packetCost = 8 << 10
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
	reading map[PortID]*polled // guarded by mu
}

// polled is a descriptor that a worker reads.
type polled struct {
	fd   int
	gone bool // its device was deleted: no longer polled, and never again
}

type worker struct {
	owner  *Workers
	input  *Input
	poller *kernel.Poller
	buf    []byte
	events []kernel.Event
	paused pauses
	ahead  ahead
}

// NewWorkers returns n workers for the router; Run starts them.
func NewWorkers(r *Router, n int) (*Workers, error) {
	ws := &Workers{router: r, reading: make(map[PortID]*polled)}
	for range n {
		p, err := kernel.NewPoller()
		if err != nil {
			return nil, errors.Join(fmt.Errorf("create a worker's poller: %w", err), ws.close())
		}
		ws.workers = append(ws.workers, &worker{
			owner:  ws,
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
// returns nobody touches the ones that are gone. The Tables are in force in any
// case; what it returns are the ports that are not read as they should, nil when
// there are none. The next Publish tries them again.
func (ws *Workers) Publish(t *Tables) map[PortID]error {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	var errs map[PortID]error
	failed := func(id PortID, err error) {
		if errs == nil {
			errs = make(map[PortID]error)
		}
		errs[id] = err
	}
	for id, p := range ws.reading {
		if r, ok := t.port(id).Port.(Reader); ok && r.FD() == p.fd {
			continue
		}
		if err := ws.worker(id).poller.Del(p.fd); err != nil {
			failed(id, err)
		}
		delete(ws.reading, id)
	}
	ws.router.Publish(t)
	for i := range t.Ports {
		id := PortID(i)
		r, ok := t.Ports[i].Port.(Reader)
		if !ok || ws.reading[id] != nil {
			continue
		}
		if err := ws.worker(id).poller.Add(r.FD(), uint64(id)); err != nil {
			failed(id, fmt.Errorf("poll port %s: %w", t.Ports[i].Name, err))
			continue
		}
		ws.reading[id] = &polled{fd: r.FD()}
	}
	return errs
}

// forget ends the polling of a port whose device was deleted, which epoll would
// report for ever. The port stays in the Tables until its owner takes it out.
func (ws *Workers) forget(id PortID, r Reader) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	// While r is held, its descriptor's number is nobody else's.
	p := ws.reading[id]
	if p == nil || p.gone || p.fd != r.FD() {
		return // published anew meanwhile
	}
	p.gone = true
	_ = ws.worker(id).poller.Del(p.fd) // if it stays, it is reported and ends up here again
	ws.router.portsGone.Add(1)
}

func (ws *Workers) worker(id PortID) *worker { return ws.workers[int(id)%len(ws.workers)] }

// Run reads until the context ends or a worker fails.
func (ws *Workers) Run(ctx context.Context) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	errs := make([]error, len(ws.workers))
	var wg sync.WaitGroup
	for i, w := range ws.workers {
		wg.Go(func() {
			if errs[i] = w.run(ctx); errs[i] != nil {
				stop()
			}
		})
	}
	<-ctx.Done()
	for _, w := range ws.workers {
		w.poller.Wake()
	}
	wg.Wait()
	return errors.Join(append(errs, ws.close())...)
}

func (ws *Workers) close() error {
	var errs []error
	for _, w := range ws.workers {
		w.input.Close()
		errs = append(errs, w.poller.Close())
	}
	return errors.Join(errs...)
}

func (w *worker) run(ctx context.Context) error {
	idle := 0
	for ctx.Err() == nil {
		timeout := 0
		if idle >= spinReads && w.ahead.busy == 0 {
			timeout = -1
		}
		if len(w.paused) > 0 {
			if next := w.resume(time.Now()); timeout < 0 {
				timeout = next
			}
		}
		n, err := w.poller.Wait(w.events, timeout)
		if err != nil {
			return fmt.Errorf("wait for packets: %w", err)
		}
		carried := 0
		w.ahead.round++
		for i := range w.events[:n] {
			id := PortID(w.events[i].Token)
			count, gone := w.drain(id)
			carried += count
			if gone != nil {
				w.owner.forget(id, gone) // outside the batch, which Publish waits for
			}
		}
		for id := range w.ahead.waits { // of which the kernel knows no more
			count, _ := w.drain(id)
			carried += count
		}
		idle++
		if carried > 0 {
			idle = 0
		}
	}
	w.ahead.ending = true
	for w.ahead.busy > 0 { // nobody else has it
		w.ahead.round++
		for id := range w.ahead.waits {
			w.drain(id)
		}
	}
	return nil
}

// drain carries what waits in one TUN, up to turnCost: a port that is never empty
// keeps another one waiting for so long and no longer. It returns the
// TUN when its device is gone. An event's own word for that may be about a
// device that had the port before, so reading decides.
func (w *worker) drain(id PortID) (carried int, gone Reader) {
	in := w.input
	in.begin()
	defer in.end()
	in.id = id
	port := in.tables.port(id)
	r, ok := port.Port.(Reader)
	if !ok {
		w.ahead.drop(id)
		return 0, nil // taken out after the event was raised
	}
	for left := turnCost; left > 0; carried++ {
		// What a limited port sends waits in its device, and not here: only what was
		// read before it had a limit is carried without looking at that.
		limited := port.Shaper != nil
		if limited && !w.ahead.has(id) {
			if wait := port.Shaper.Wait(); wait > 0 {
				w.pause(id, r, port.Shaper, wait)
				return carried, nil
			}
		}
		buf, err := w.next(id, r, limited)
		if err != nil {
			if errors.Is(err, kernel.ErrGone) {
				gone = r
			}
			return carried, gone
		}
		left -= packetCost + len(buf)
		if limited {
			port.Shaper.Sent(len(buf))
		}
		in.packet(buf)
	}
	return carried, nil
}
