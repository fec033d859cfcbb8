package hold

import (
	"context"
	"sync"

	"github.com/netctl/netctl/cni"
)

// endingsAtOnce bounds how many devices are destroyed at the same time. Each
// waits in the kernel for grace periods, in a thread of its own; two overlap
// some of that, more only queue for the kernel's one lock on interfaces.
const endingsAtOnce = 2

// Endings are the devices of deleted pods on their way out of the kernel, which
// takes longer than everything else about a DEL and concerns nobody: the port is
// out of the tables, its addresses are released. Their records stay, not ready,
// until they are gone, so that an agent that is killed meanwhile has its
// successor finish the work. There are at most as many as there were pods. The
// zero value is ready for use.
type Endings struct {
	wg sync.WaitGroup // of their goroutines; Close waits

	mu    sync.Mutex
	list  []*ending     // guarded by mu
	slots chan struct{} // guarded by mu until it is made
}

type ending struct {
	id    cni.ID
	netns uint64        // inode of the namespace that the device is in
	done  chan struct{} // closed when the device is gone
}

// Begin runs end, which destroys the device of a record, in the background.
func (e *Endings) Begin(id cni.ID, netns uint64, end func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.slots == nil {
		e.slots = make(chan struct{}, endingsAtOnce)
	}
	x := &ending{id: id, netns: netns, done: make(chan struct{})}
	e.list = append(e.list, x)
	slots := e.slots
	e.wg.Go(func() {
		slots <- struct{}{}
		end()
		<-slots
		e.remove(x)
		close(x.done)
	})
}

func (e *Endings) remove(x *ending) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for i := range e.list {
		if e.list[i] == x {
			e.list = append(e.list[:i], e.list[i+1:]...)
			return
		}
	}
}

// Wait returns when no device of the attachment, nor any in the namespace, is
// on its way out: its name there is free and its record deleted.
func (e *Endings) Wait(ctx context.Context, id cni.ID, netns uint64) error {
	for {
		x := e.find(id, netns)
		if x == nil {
			return nil
		}
		select {
		case <-x.done:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// Has reports whether a device of the attachment is on its way out.
func (e *Endings) Has(id cni.ID) bool { return e.find(id, 0) != nil }

func (e *Endings) find(id cni.ID, netns uint64) *ending {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, x := range e.list {
		if x.id == id || netns != 0 && x.netns == netns {
			return x
		}
	}
	return nil
}

// Close returns when all devices are gone.
func (e *Endings) Close() { e.wg.Wait() }
