package agent

import (
	"context"
	"sync"

	"github.com/netctl/netctl/cni"
)

// holds keep everybody apart who works on one attachment: ADD, DEL, and the
// collectors that run beside them. The zero value is ready for use.
type holds struct {
	mu   sync.Mutex
	held map[cni.ID]chan struct{} // guarded by mu: closed when it is released
}

// take waits until nobody works on the attachment. The caller calls release.
func (h *holds) take(ctx context.Context, id cni.ID) (release func(), err error) {
	for {
		release, busy := h.try(id)
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

// try returns a nil release, and what is closed at its end, when somebody works
// on the attachment.
func (h *holds) try(id cni.ID) (release func(), busy <-chan struct{}) {
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
