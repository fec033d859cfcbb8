package agent

import (
	"strings"
	"testing"

	"github.com/netctl/netctl/internal/datapath"
	"github.com/netctl/netctl/internal/model"
	"github.com/netctl/netctl/internal/shape"
)

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
