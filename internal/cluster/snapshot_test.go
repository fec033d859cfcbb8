package cluster

import (
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"strconv"
	"testing"

	"github.com/netctl/netctl/internal/model"
)

// TestSnapshotLikeItsSlowTwin: after any history of changes the State is what
// sorting everything would give, what did not change keeps its pointer, and
// States that were published stay as they were.
func TestSnapshotLikeItsSlowTwin(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 1))
	x, twin := newSnapshot(), map[model.Name]model.Pod{}
	blocks := map[model.Name]model.Block{}
	var last *model.State
	type published struct{ state, copy model.State }
	var history []published
	for step := range 2000 {
		for range r.IntN(8) {
			name := model.Name{Namespace: string(rune('a' + r.IntN(3))), Name: strconv.Itoa(r.IntN(30))}
			switch r.IntN(8) {
			case 0:
				x.set(kindPod, name, nil)
				delete(twin, name)
			case 1: // a whole list
				twin = map[model.Name]model.Pod{}
				now := map[model.Name]any{}
				for range r.IntN(40) {
					p := model.Pod{Name: model.Name{Namespace: name.Namespace, Name: strconv.Itoa(r.IntN(60))}, Node: strconv.Itoa(r.IntN(2))}
					twin[p.Name], now[p.Name] = p, &p
				}
				x.replace(kindPod, now)
			case 2:
				p := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, byte(r.IntN(20))}), 24)
				b := model.Block{CIDR: p, Node: strconv.Itoa(r.IntN(2))}
				key := model.Name{Name: BlockName(p)}
				if r.IntN(2) == 0 {
					x.set(kindBlock, key, nil)
					delete(blocks, key)
				} else {
					x.set(kindBlock, key, &b)
					blocks[key] = b
				}
			default:
				p := model.Pod{Name: name, Node: strconv.Itoa(r.IntN(2))}
				x.set(kindPod, name, &p)
				twin[name] = p
			}
		}
		before := last
		if s := x.build(); s != nil {
			last = s
			history = append(history, published{*s, model.State{Pods: slices.Clone(s.Pods), Blocks: slices.Clone(s.Blocks)}})
		} else if last == nil {
			t.Fatal("the first State is missing")
		}
		want := make([]model.Pod, 0, len(twin))
		for _, p := range twin {
			want = append(want, p)
		}
		slices.SortFunc(want, func(a, b model.Pod) int { return a.Name.Compare(b.Name) })
		got := make([]model.Pod, 0, len(last.Pods))
		for _, p := range last.Pods {
			got = append(got, *p)
		}
		if !reflect.DeepEqual(got, want) {
			t.Fatalf("seed %d, step %d: pods %v, want %v", seed, step, got, want)
		}
		var wantBlocks []model.Block
		for _, b := range blocks {
			wantBlocks = append(wantBlocks, b)
		}
		slices.SortFunc(wantBlocks, func(a, b model.Block) int { return a.CIDR.Compare(b.CIDR) })
		if !slices.Equal(last.Blocks, wantBlocks) {
			t.Fatalf("seed %d, step %d: blocks %v, want %v", seed, step, last.Blocks, wantBlocks)
		}
		if before == nil || before == last {
			continue
		}
		if last.Revision <= before.Revision {
			t.Fatalf("seed %d, step %d: revision %d after %d", seed, step, last.Revision, before.Revision)
		}
		for _, p := range before.Pods {
			i, ok := slices.BinarySearchFunc(last.Pods, p, func(a, b *model.Pod) int { return a.Name.Compare(b.Name) })
			if ok && last.Pods[i] != p && reflect.DeepEqual(last.Pods[i], p) {
				t.Fatalf("seed %d, step %d: pod %s did not change and has a new pointer", seed, step, p.Name)
			}
		}
	}
	for _, h := range history {
		if !slices.Equal(h.state.Pods, h.copy.Pods) || !slices.Equal(h.state.Blocks, h.copy.Blocks) {
			t.Fatalf("seed %d: the State of revision %d was changed after it was published", seed, h.state.Revision)
		}
	}
}

func TestSnapshotBeginsWithASeed(t *testing.T) {
	t.Parallel()
	kept, gone := &model.Pod{Name: model.Name{Name: "kept"}}, &model.Pod{Name: model.Name{Name: "gone"}}
	x := newSnapshot()
	x.seed(&model.State{Revision: 41, Synced: true, Pods: []*model.Pod{gone, kept}, Blocks: []model.Block{{Node: "n"}}})
	x.replace(kindPod, map[model.Name]any{kept.Name: &model.Pod{Name: kept.Name}})
	x.replace(kindBlock, nil)
	s := x.build()
	if s == nil || !s.Synced || s.Revision != 42 || len(s.Pods) != 1 || s.Pods[0] != kept || len(s.Blocks) != 0 {
		t.Errorf("State %+v, want revision 42 with the pod that was kept", s)
	}
	if again := x.build(); again != nil {
		t.Errorf("a State without a change: %+v", again)
	}
}

func TestInternerShares(t *testing.T) {
	t.Parallel()
	x := newInterner()
	pod := func(name, label string) *model.Pod {
		p := &model.Pod{Name: model.Name{Namespace: "ns", Name: name}, Labels: map[string]string{"app": label, label: "app"}}
		x.object(p)
		return p
	}
	a, b, c := pod("a", "one"), pod("b", "one"), pod("c", "two")
	same := func(a, b map[string]string) bool { return reflect.ValueOf(a).Pointer() == reflect.ValueOf(b).Pointer() }
	if !same(a.Labels, b.Labels) {
		t.Error("equal labels are kept twice")
	}
	if same(a.Labels, c.Labels) || c.Labels["app"] != "two" || a.Labels["app"] != "one" || len(a.Labels) != 2 {
		t.Errorf("labels %v and %v", a.Labels, c.Labels)
	}
	for i := range maxInterned + 10 { // a cluster with more begins anew
		if p := pod("p", strconv.Itoa(i)); p.Labels["app"] != strconv.Itoa(i) {
			t.Fatalf("labels %v of pod %d", p.Labels, i)
		}
	}
	if n := max(len(x.strings), len(x.labels)); n > maxInterned {
		t.Errorf("%d remembered, more than %d", n, maxInterned)
	}
	x.object((*model.Block)(nil)) // a kind with nothing to share
}
