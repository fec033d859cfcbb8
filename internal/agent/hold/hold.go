// Package hold keeps those apart who work on one attachment of a pod: calls of the
// runtime, the collectors that run beside them, and the devices of deleted pods
// that are on their way out of the kernel.
package hold

import (
	"context"
	"sync"

	"github.com/netctl/netctl/cni"
)

// Holds keep everybody apart who works on one attachment: ADD, DEL, and the
// collectors that run beside them. The zero value is ready for use.
type Holds struct {
	mu   sync.Mutex
	held map[cni.ID]chan struct{} // guarded by mu: closed when it is released
}

// Take waits until nobody works on the attachment. The caller calls release.
func (h *Holds) Take(ctx context.Context, id cni.ID) (release func(), err error) {
	for {
		release, busy := h.Try(id)
		if release != nil {
			return release, nil
		}
		select {
		case <-busy:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// Try returns a nil release, and what is closed at its end, when somebody works
// on the attachment.
func (h *Holds) Try(id cni.ID) (release func(), busy <-chan struct{}) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if c, ok := h.held[id]; ok {
		return nil, c
	}
	if h.held == nil {
		h.held = make(map[cni.ID]chan struct{})
	}
	c := make(chan struct{})
	h.held[id] = c
	return func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(h.held, id)
		close(c)
	}, nil
}
