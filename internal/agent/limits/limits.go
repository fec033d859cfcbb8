// Package limits says which bandwidth limits a pod has: what its annotations say
// now, or what the runtime asked for when it was made. Package shape has them hold.
//
// Everything here is a pure function of values; tables test it.
package limits

import (
	"time"

	"github.com/netctl/netctl/cni"
	"github.com/netctl/netctl/internal/agent/status"
	"github.com/netctl/netctl/internal/model"
	"github.com/netctl/netctl/internal/shape"
)

// The annotations of a pod that a runtime's limits come from.
const (
	ingress = "kubernetes.io/ingress-bandwidth"
	egress  = "kubernetes.io/egress-bandwidth"
)

// Asked is what the runtime asked for when a pod was made.
type Asked struct {
	Bandwidth cni.Bandwidth
	// Annotated means that the runtime had it from the pod's annotations.
	Annotated bool
}

// Annotated reports whether annotations name a limit.
func Annotated(annotations map[string]string) bool {
	_, in := annotations[ingress]
	_, out := annotations[egress]
	return in || out
}

// Of returns a pod's limits. What the runtime asked for holds until the cluster's
// own word is there, nil while it is not: an annotation of the pod counts more, and
// where the runtime had its limits from annotations, so does one that was taken away.
func Of(asked Asked, pod *model.Pod) shape.Limits {
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

const (
	// queueTime is how long what a pod sends may wait in its device for its rate.
	queueTime = 50 * time.Millisecond
	// minQueue lets a TCP connection keep a slow limit busy.
	minQueue = 16
)

// Queue returns how many packets may wait in a pod's device, which is most where it
// has no limit: what it sends beyond its rate waits there, and a thousand packets
// would be seconds.
func Queue(r shape.Rate, mtu, most int) int {
	if r.Bits == 0 {
		return most
	}
	n := float64(r.Bits) / 8 * queueTime.Seconds() / float64(mtu)
	return int(min(max(n, minQueue), float64(most)))
}

// Describe says what a port's limits are and what they did, nil without any.
func Describe(s *shape.Shaper) *status.Limits {
	if s == nil {
		return nil
	}
	st := s.Stats()
	if st.Limits == (shape.Limits{}) && st.Waiting == 0 {
		return nil
	}
	return &status.Limits{
		IngressBits: st.Limits.In.Bits, EgressBits: st.Limits.Out.Bits, Held: st.Held, HeldBytes: st.HeldBytes,
		Dropped: st.Dropped, Waiting: st.Waiting, Pauses: st.Pauses, PausedSeconds: st.Paused.Seconds(),
	}
}
