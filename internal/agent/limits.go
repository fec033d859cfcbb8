package agent

import (
	"errors"
	"maps"
	"slices"

	"github.com/netctl/netctl/internal/agent/limits"
	"github.com/netctl/netctl/internal/datapath"
	"github.com/netctl/netctl/internal/kernel"
	"github.com/netctl/netctl/internal/shape"
)

// limits compiles the limits of a port, which only pods' have.
func (c *compiler) limits(p *LocalPort) {
	if p.Kind != datapath.KindPod {
		return
	}
	pod := c.in.State.Pod(p.Pod)
	if pod != nil && pod.Bandwidth.Invalid != "" {
		c.problem("pod " + pod.Name.String() + " has no bandwidth limit: " + pod.Bandwidth.Invalid)
	}
	if limits := limits.Of(p.Asked, pod); limits != (shape.Limits{}) {
		c.shaped[p.ID] = limits
		c.tables.Ports[p.ID].Shaper = p.Shaper
	}
}

// limit puts limits in force, just before the tables that name them.
func (a *Agent) limit(out Output) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, p := range a.pods {
		p.port.Shaper.Set(out.Limits[p.port.ID])
	}
}

// setQueues gives pods' devices the queues that suit their limits. It is the loop's.
// Limits hold without that, but what a pod sends beyond them may wait for long.
func (a *Agent) setQueues() {
	a.mu.Lock()
	pods := slices.Collect(maps.Values(a.pods))
	a.mu.Unlock()
	for _, p := range pods {
		want := limits.Queue(p.port.Shaper.Limits().Out, a.mtu, txQueueLen)
		if want == p.queue {
			continue
		}
		p.queue = want
		err := p.tun.SetQueueLen(want)
		if err != nil && !errors.Is(err, kernel.ErrGone) && !errors.Is(err, kernel.ErrClosed) {
			a.log.Warn("pod's queue stays as it is", "pod", p.rec.Name(), "packets", want, "error", err)
		}
	}
}
