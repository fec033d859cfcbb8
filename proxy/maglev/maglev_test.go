package maglev

import (
	"math/rand/v2"
	"slices"
	"testing"
)

// The paper's own example, table 1: three backends, seven entries, and then the
// second backend is gone.
func TestPaper(t *testing.T) {
	t.Parallel()
	b0, b1, b2 := walk{3, 4, 0}, walk{0, 2, 1}, walk{3, 1, 2}
	if got, want := fill([]walk{b0, b1, b2}, 7), []uint16{1, 0, 1, 0, 2, 2, 0}; !slices.Equal(got, want) {
		t.Errorf("before: %v, want %v", got, want)
	}
	if got, want := fill([]walk{b0, b2}, 7), []uint16{0, 0, 0, 0, 2, 2, 2}; !slices.Equal(got, want) {
		t.Errorf("after: %v, want %v", got, want)
	}
}

func names(n int, seed uint64) []uint64 {
	rng := rand.New(rand.NewPCG(seed, 7))
	out := make([]uint64, n)
	for i := range out {
		out[i] = rng.Uint64()
	}
	return out
}

// §3.4 and figure 11: the load is even. Taking turns gives each the same number of
// entries, but for one.
func TestShares(t *testing.T) {
	t.Parallel()
	for _, n := range []int{2, 3, 10, 11, 100, 1000} {
		count := make([]int, n)
		for _, b := range Table(names(n, uint64(n))) {
			count[b]++
		}
		least, most := slices.Min(count), slices.Max(count)
		if most-least > 1 || least < 65 {
			t.Errorf("%d backends have %d to %d entries", n, least, most)
		}
		t.Logf("%d backends, %d entries: the largest share is %.2f%% above the mean", n, Size(n), 100*(float64(most*n)/float64(Size(n))-1))
	}
}

// moved is which share of the entries whose backend is in both tables has another.
func moved(before, after []uint16, bNames, aNames []uint64) float64 {
	same, other := 0, 0
	for i := range before {
		was, is := bNames[before[i]], aNames[after[i]]
		switch {
		case was == is:
			same++
		case slices.Contains(aNames, was):
			other++
		}
	}
	return float64(other) / float64(same+other)
}

// A backend that goes takes its own flows with it and at most 2% of the others', and
// one that comes the same, besides its share.
func TestDisruption(t *testing.T) {
	t.Parallel()
	all := names(101, 1)
	hundred := all[:100]
	before := Table(hundred)
	worst := 0.0
	for gone := 0; gone < len(hundred); gone += 7 {
		rest := slices.Delete(slices.Clone(hundred), gone, gone+1)
		worst = max(worst, moved(before, Table(rest), hundred, rest))
	}
	t.Logf("one of 100 goes: %.2f%% of the others' flows move at most", 100*worst)
	if worst > 0.02 {
		t.Errorf("one of 100 backends goes: %.2f%% of the others' flows move", 100*worst)
	}
	came := all
	more := moved(before, Table(came), hundred, came) - 1.0/101 // its own share
	t.Logf("one comes to 100: %.2f%% of the others' flows move", 100*more)
	if more > 0.02 {
		t.Errorf("one comes to 100 backends: %.2f%% of the others' flows move", 100*more)
	}
}

// Figure 12: of 1000 backends some fail at once. The smaller of the paper's tables
// moves more than the larger one; with 1% of the backends gone, a few percent.
func TestConcurrentFailures(t *testing.T) {
	t.Parallel()
	all := names(1000, 2)
	rest := all[10:]
	small := func(of []uint64) []uint16 {
		walks := make([]walk, len(of))
		for i, h := range of {
			walks[i] = walk{h % 65537, mix(h)%65536 + 1, uint16(i)}
		}
		return fill(walks, 65537)
	}
	large := moved(Table(all), Table(rest), all, rest)
	if Size(1000) != 655373 {
		t.Fatal("a thousand backends have another table than the paper's")
	}
	few := moved(small(all), small(rest), all, rest)
	t.Logf("10 of 1000 fail: %.2f%% of 65537 entries move, %.2f%% of 655373", 100*few, 100*large)
	if large > few || few > 0.05 || large > 0.03 {
		t.Errorf("10 of 1000 fail: %.2f%% of 65537 entries move, %.2f%% of 655373", 100*few, 100*large)
	}
}

// Every node makes the same table, in whatever order it knows the backends.
func TestOrderDoesNotCount(t *testing.T) {
	t.Parallel()
	a := names(37, 3)
	b := slices.Clone(a)
	slices.Reverse(b)
	ta, tb := Table(a), Table(b)
	for i := range ta {
		if a[ta[i]] != b[tb[i]] {
			t.Fatalf("entry %d is another backend's", i)
		}
	}
	if Table(a[:1]) != nil || Table(nil) != nil {
		t.Error("one backend needs no table")
	}
}

func BenchmarkTable(b *testing.B) {
	of := names(100, 1)
	for b.Loop() {
		Table(of)
	}
}
