package agent

import (
	"errors"
	"fmt"
	"time"

	"github.com/netctl/netctl/cni"
	"github.com/netctl/netctl/internal/agent/record"
	"github.com/netctl/netctl/internal/kernel"
	"github.com/netctl/netctl/internal/model"
	"github.com/netctl/netctl/internal/shape"
)

// Asked is what the runtime asked for when a pod was made.
type Asked struct {
	Bandwidth cni.Bandwidth
	// Annotated means that the runtime had it from the pod's annotations.
	Annotated bool
}

// limitsOf says which limits a pod has. What the runtime asked for holds until the
// cluster's own word is there: an annotation of the pod counts more, and where the
// runtime had its limits from annotations, so does one that was taken away.
func limitsOf(asked Asked, pod *model.Pod) shape.Limits {
	limits := shape.Limits{
		In:  shape.Rate{Bits: asked.Bandwidth.IngressRate, Burst: asked.Bandwidth.IngressBurst},
		Out: shape.Rate{Bits: asked.Bandwidth.EgressRate, Burst: asked.Bandwidth.EgressBurst},
	}
	if pod == nil {
		return limits
	}
	for _, d := range []struct {
		to        *shape.Rate
		annotated uint64
	}{{&limits.In, pod.Bandwidth.Ingress}, {&limits.Out, pod.Bandwidth.Egress}} {
		if d.annotated > 0 || asked.Annotated || pod.Bandwidth.Invalid != "" {
			*d.to = shape.Rate{Bits: d.annotated}
		}
	}
	return limits
}

// limits compiles the limits of a pod's port.
func (c *compiler) limits(p *LocalPort) {
	pod := c.in.State.Pod(p.Pod)
	if pod != nil && pod.Bandwidth.Invalid != "" {
		c.problem("pod " + pod.Name.String() + " has no bandwidth limit: " + pod.Bandwidth.Invalid)
	}
	if limits := limitsOf(p.Asked, pod); limits != (shape.Limits{}) {
		c.shaped[p.ID] = limits
		c.tables.Ports[p.ID].Shaper = p.Shaper
	}
}

// The annotations that a runtime's limits come from.
const (
	annotationIngress = "kubernetes.io/ingress-bandwidth"
	annotationEgress  = "kubernetes.io/egress-bandwidth"
)

func annotated(annotations map[string]string) bool {
	_, in := annotations[annotationIngress]
	_, out := annotations[annotationEgress]
	return in || out
}

// limit puts limits in force, before or together with the tables that name them.
func (a *Agent) limit(out Output) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, p := range a.pods {
		p.port.Shaper.Set(out.Limits[p.port.ID])
	}
}

// queueLens are the queues that pods' devices shall have, by device: what a pod
// sends beyond its rate waits in there, and a thousand packets would be seconds.
func (a *Agent) queueLens() error {
	a.mu.Lock()
	var pods []*pod
	for _, p := range a.pods {
		if want := queueLen(p.port.Shaper.Limits().Out, a.mtu); want != p.queue {
			pods = append(pods, p)
		}
	}
	a.mu.Unlock()
	var errs []error
	for _, p := range pods {
		want := queueLen(p.port.Shaper.Limits().Out, a.mtu)
		err := p.tun.SetQueueLen(want)
		if err != nil && !errors.Is(err, kernel.ErrGone) && !errors.Is(err, kernel.ErrClosed) {
			errs = append(errs, fmt.Errorf("set the queue of pod %s: %w", p.rec.Name(), err))
			continue
		}
		a.mu.Lock()
		p.queue = want
		a.mu.Unlock()
	}
	return errors.Join(errs...)
}

const (
	// queueTime is how long what a pod sends may wait in its device for its rate.
	queueTime = 50 * time.Millisecond
	// minQueueLen lets a TCP connection keep a slow limit busy.
	minQueueLen = 16
)

// queueLen is how many packets may wait in a pod's device.
func queueLen(r shape.Rate, mtu int) int {
	if r.Bits == 0 {
		return txQueueLen
	}
	n := float64(r.Bits) / 8 * queueTime.Seconds() / float64(mtu)
	return int(min(max(n, minQueueLen), txQueueLen))
}

// asked is what a record says of limits.
func asked(rec *record.Record) Asked {
	return Asked{Bandwidth: rec.Bandwidth, Annotated: rec.Annotated}
}
