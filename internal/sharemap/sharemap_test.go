package sharemap_test

import (
	"maps"
	"math/rand/v2"
	"reflect"
	"testing"

	"github.com/netctl/netctl/internal/sharemap"
)

// Versions agree with plain maps, on random histories, and none changes when the
// next one is made.
func TestVersions(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	var m sharemap.Map[int, string]
	want := map[int]string{}
	type version struct {
		m    sharemap.Map[int, string]
		want map[int]string
	}
	var history []version
	for range 200 {
		e := m.Edit()
		for range rng.IntN(40) {
			k, v := rng.IntN(500), string(rune('a'+rng.IntN(26)))
			if rng.IntN(3) == 0 {
				e.Delete(k)
				delete(want, k)
			} else {
				e.Set(k, v)
				want[k] = v
			}
			if got, ok := e.Lookup(k); got != want[k] || ok != (want[k] != "") {
				t.Fatalf("edit: %d is %q, %v", k, got, ok)
			}
		}
		m = e.Done()
		history = append(history, version{m, maps.Clone(want)})
	}
	for i, v := range history {
		if got := maps.Collect(v.m.All()); !maps.Equal(got, v.want) || v.m.Len() != len(v.want) {
			t.Fatalf("version %d is %v, want %v", i, got, v.want)
		}
		for k := range 500 {
			if got, ok := v.m.Lookup(k); got != v.want[k] || got != v.m.Get(k) || ok != (got != "") {
				t.Fatalf("version %d: %d is %q, want %q", i, k, got, v.want[k])
			}
		}
		var e sharemap.Map[int, string]
		again := e.Edit()
		for k, s := range v.want {
			again.Set(k, s)
		}
		if !reflect.DeepEqual(again.Done(), v.m) {
			t.Fatalf("version %d differs from one with its content that was made at once", i)
		}
	}
}

func TestEditsAfterDoneLeaveTheVersionAlone(t *testing.T) {
	t.Parallel()
	e := sharemap.Map[int, int]{}.Edit()
	e.Set(1, 1)
	m := e.Done()
	e.Set(1, 2)
	e.Delete(1)
	if m.Get(1) != 1 || m.Len() != 1 {
		t.Errorf("the version changed: %v", maps.Collect(m.All()))
	}
}

func TestZeroMap(t *testing.T) {
	t.Parallel()
	var m sharemap.Map[string, int]
	if _, ok := m.Lookup("x"); ok || m.Len() != 0 || len(maps.Collect(m.All())) != 0 {
		t.Error("the zero map holds something")
	}
	e := m.Edit()
	e.Set("x", 1)
	e.Delete("y")
	e.Delete("x")
	if !reflect.DeepEqual(e.Done(), m) {
		t.Error("an emptied map differs from the zero one")
	}
}

func TestLookupDoesNotAllocate(t *testing.T) {
	e := sharemap.Map[[16]byte, int]{}.Edit()
	e.Set([16]byte{1}, 1)
	m := e.Done()
	if n := testing.AllocsPerRun(100, func() { m.Get([16]byte{1}) }); n != 0 {
		t.Errorf("%v allocations a lookup", n)
	}
}
