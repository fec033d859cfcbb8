package limits_test

import (
	"testing"

	"github.com/netctl/netctl/cni"
	"github.com/netctl/netctl/internal/agent/limits"
	"github.com/netctl/netctl/internal/model"
	"github.com/netctl/netctl/internal/shape"
)

func TestOf(t *testing.T) {
	t.Parallel()
	runtime := cni.Bandwidth{IngressRate: 1e6, IngressBurst: 5e5, EgressRate: 2e6, EgressBurst: 6e5}
	whole := shape.Limits{In: shape.Rate{Bits: 1e6, Burst: 5e5}, Out: shape.Rate{Bits: 2e6, Burst: 6e5}}
	pod := func(b model.Bandwidth) *model.Pod { return &model.Pod{Bandwidth: b} }
	for _, c := range []struct {
		name  string
		asked limits.Asked
		pod   *model.Pod
		want  shape.Limits
	}{
		{"nothing", limits.Asked{}, pod(model.Bandwidth{}), shape.Limits{}},
		{"pod is not known yet", limits.Asked{runtime, true}, nil, whole},
		{"runtime alone", limits.Asked{runtime, false}, pod(model.Bandwidth{}), whole},
		{"annotation counts more", limits.Asked{runtime, false}, pod(model.Bandwidth{Ingress: 3e6}), shape.Limits{In: shape.Rate{Bits: 3e6}, Out: whole.Out}},
		{"annotation alone", limits.Asked{}, pod(model.Bandwidth{Egress: 3e6}), shape.Limits{Out: shape.Rate{Bits: 3e6}}},
		{"annotation changed", limits.Asked{runtime, true}, pod(model.Bandwidth{Ingress: 4e6, Egress: 5e6}), shape.Limits{In: shape.Rate{Bits: 4e6}, Out: shape.Rate{Bits: 5e6}}},
		{"annotations taken away", limits.Asked{runtime, true}, pod(model.Bandwidth{}), shape.Limits{}},
		{"one annotation taken away", limits.Asked{runtime, true}, pod(model.Bandwidth{Egress: 2e6}), shape.Limits{Out: shape.Rate{Bits: 2e6}}},
		{"annotation that cannot be read", limits.Asked{runtime, false}, pod(model.Bandwidth{Egress: 2e6, Invalid: "no"}), shape.Limits{Out: shape.Rate{Bits: 2e6}}},
	} {
		if got := limits.Of(c.asked, c.pod); got != c.want {
			t.Errorf("%s: %+v, want %+v", c.name, got, c.want)
		}
	}
}

func TestQueue(t *testing.T) {
	t.Parallel()
	for rate, want := range map[uint64]int{0: 1000, 1e6: 16, 10e6: 44, 100e6: 440, 1e9: 1000, 1e15: 1000} {
		if got := limits.Queue(shape.Rate{Bits: rate}, 1420, 1000); got != want {
			t.Errorf("%d bit/s: %d packets, want %d", rate, got, want)
		}
	}
}
