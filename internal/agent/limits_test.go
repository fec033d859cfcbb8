package agent

import (
	"strings"
	"testing"

	"github.com/netctl/netctl/cni"
	"github.com/netctl/netctl/internal/datapath"
	"github.com/netctl/netctl/internal/model"
	"github.com/netctl/netctl/internal/shape"
)

func TestLimitsOf(t *testing.T) {
	t.Parallel()
	runtime := cni.Bandwidth{IngressRate: 1e6, IngressBurst: 5e5, EgressRate: 2e6, EgressBurst: 6e5}
	whole := shape.Limits{In: shape.Rate{Bits: 1e6, Burst: 5e5}, Out: shape.Rate{Bits: 2e6, Burst: 6e5}}
	pod := func(b model.Bandwidth) *model.Pod { return &model.Pod{Bandwidth: b} }
	for _, c := range []struct {
		name  string
		asked Asked
		pod   *model.Pod
		want  shape.Limits
	}{
		{"nothing", Asked{}, pod(model.Bandwidth{}), shape.Limits{}},
		{"pod is not known yet", Asked{runtime, true}, nil, whole},
		{"runtime alone", Asked{runtime, false}, pod(model.Bandwidth{}), whole},
		{"annotation counts more", Asked{runtime, false}, pod(model.Bandwidth{Ingress: 3e6}), shape.Limits{In: shape.Rate{Bits: 3e6}, Out: whole.Out}},
		{"annotation alone", Asked{}, pod(model.Bandwidth{Egress: 3e6}), shape.Limits{Out: shape.Rate{Bits: 3e6}}},
		{"annotation changed", Asked{runtime, true}, pod(model.Bandwidth{Ingress: 4e6, Egress: 5e6}), shape.Limits{In: shape.Rate{Bits: 4e6}, Out: shape.Rate{Bits: 5e6}}},
		{"annotations taken away", Asked{runtime, true}, pod(model.Bandwidth{}), shape.Limits{}},
		{"one annotation taken away", Asked{runtime, true}, pod(model.Bandwidth{Egress: 2e6}), shape.Limits{Out: shape.Rate{Bits: 2e6}}},
		{"annotation that cannot be read", Asked{runtime, false}, pod(model.Bandwidth{Egress: 2e6, Invalid: "no"}), shape.Limits{Out: shape.Rate{Bits: 2e6}}},
	} {
		if got := limitsOf(c.asked, c.pod); got != c.want {
			t.Errorf("%s: %+v, want %+v", c.name, got, c.want)
		}
	}
}

// A pod's limit is in the tables of its own port, an invalid one is said, and
// nobody else has any.
func TestCompileLimits(t *testing.T) {
	t.Parallel()
	name := func(n string) model.Name { return model.Name{Namespace: "default", Name: n} }
	port := func(id datapath.PortID, n string) LocalPort {
		return LocalPort{ID: id, Kind: datapath.KindPod, Name: "default/" + n, Pod: name(n), Shaper: shape.New(nil)}
	}
	in := Input{
		State: &model.State{Pods: []*model.Pod{
			{Name: name("broken"), Bandwidth: model.Bandwidth{Invalid: `annotation x: "fast" is no quantity`}},
			{Name: name("free")},
			{Name: name("slow"), Bandwidth: model.Bandwidth{Egress: 1e6}},
		}},
		Ports: []LocalPort{port(FirstPodPort, "broken"), port(FirstPodPort+1, "free"), port(FirstPodPort+2, "slow")},
	}
	out := Compile(in)
	if len(out.Limits) != 1 || out.Limits[FirstPodPort+2].Out.Bits != 1e6 {
		t.Errorf("limits %v", out.Limits)
	}
	for i, p := range in.Ports {
		if has := out.Tables.Ports[p.ID].Shaper; (has == p.Shaper) != (i == 2) || i != 2 && has != nil {
			t.Errorf("port of %s: shaper %p", p.Name, has)
		}
	}
	said := strings.Join(out.Problems, "\n")
	if !strings.Contains(said, `pod default/broken has no bandwidth limit: annotation x: "fast"`) || strings.Count(said, "bandwidth") != 1 {
		t.Errorf("problems:\n%s", said)
	}
}

func TestQueueLen(t *testing.T) {
	t.Parallel()
	for rate, want := range map[uint64]int{0: txQueueLen, 1e6: 16, 10e6: 44, 100e6: 440, 1e9: txQueueLen, 1e15: txQueueLen} {
		if got := queueLen(shape.Rate{Bits: rate}, 1420); got != want {
			t.Errorf("%d bit/s: %d packets, want %d", rate, got, want)
		}
	}
}
