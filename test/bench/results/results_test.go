package results

import (
	"encoding/xml"
	"errors"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func upTo(n int) []float64 {
	out := make([]float64, n)
	for i := range out {
		out[i] = float64(n - i) // in no order
	}
	return out
}

func TestMedianAndInterval(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		values            []float64
		median, low, high float64
	}{
		{nil, 0, 0, 0},
		{upTo(1), 1, 1, 1},
		{upTo(4), 2.5, 1, 4},
		{upTo(5), 3, 1, 5},
		{upTo(6), 3.5, 1, 6},
		{upTo(9), 5, 2, 8},
		{upTo(20), 10.5, 6, 15}, // as in every table of the sign test
		{upTo(100), 50.5, 40, 61},
	} {
		low, high := Interval(c.values)
		if m := Median(c.values); m != c.median || low != c.low || high != c.high {
			t.Errorf("of %d: %g (%g to %g), want %g (%g to %g)", len(c.values), m, low, high, c.median, c.low, c.high)
		}
	}
}

// TestIntervalCovers: the interval's chance to hold the median is at least 95 %, and
// the next narrower one's is less.
func TestIntervalCovers(t *testing.T) {
	t.Parallel()
	for n := 6; n < 60; n++ {
		low, _ := Interval(upTo(n))
		below := func(k int) float64 { // the chance that fewer than k values lie below the median
			sum := 0.0
			for i := range k {
				sum += math.Exp(lchoose(n, i) - float64(n)*math.Ln2)
			}
			return sum
		}
		if miss := 2 * below(int(low)); miss > 0.05 {
			t.Errorf("of %d, from the value %g on: it misses %.3f", n, low, miss)
		}
		if miss := 2 * below(int(low)+1); miss <= 0.05 {
			t.Errorf("of %d, from the value %g on: a narrower one would do, which misses %.3f", n, low, miss)
		}
	}
}

func lchoose(n, k int) float64 {
	a, _ := math.Lgamma(float64(n + 1))
	b, _ := math.Lgamma(float64(k + 1))
	c, _ := math.Lgamma(float64(n - k + 1))
	return a - b - c
}

func TestLines(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		r    Result
		want string
	}{
		{Figure("x", "ms", []float64{2}), "figure x 2 ms"},
		{Figure("agent-rss-110-pods", "MB", []float64{64}), "figure agent-rss-110-pods 64 MB mark=<=64MB met"},
		{Ratio("y", "us", []float64{1, 4, 3}, []float64{2, 2, 2}), "ratio y 1.500 ours=3 theirs=2 unit=us interval=0.5..2 pairs=3"},
		{Ratio("same-node-tcp", "Gbit/s", []float64{7, 7}, []float64{10, 10}), "ratio same-node-tcp 0.700 ours=7 theirs=10 unit=Gbit/s interval=0.7..0.7 pairs=2 mark=>=0.8 missed"},
		// A mark with a unit is about our side.
		{Ratio("encrypted-vs-wireguard-go-under-load-p99", "ms", []float64{2}, []float64{1}), "ratio encrypted-vs-wireguard-go-under-load-p99 2.000 ours=2 theirs=1 unit=ms mark=<=3ms met"},
		// This one counts when it is inside the interval.
		{Ratio("vip-vs-direct", "Gbit/s", []float64{9, 10}, []float64{10, 10}), "ratio vip-vs-direct 0.950 ours=9.5 theirs=10 unit=Gbit/s interval=0.9..1 pairs=2 mark=>=0.98 met"},
		// Nothing was there to divide by.
		{Ratio("z", "us", []float64{1}, []float64{0}), "ratio z 0.000 ours=1 theirs=0 unit=us"},
	} {
		if got := c.r.String(); got != c.want {
			t.Errorf("%s\nwant %s", got, c.want)
		}
	}
	r := Ratio("same-node-tcp", "Gbit/s", []float64{7}, []float64{10})
	r.Unmarked = true
	if strings.Contains(r.String(), "mark") {
		t.Errorf("%s: it has no mark", r)
	}
}

func TestMarksAreNamedOnce(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for _, m := range marks() {
		if seen[m.Name] || m.What == "" || m.Limit <= 0 {
			t.Errorf("%+v", m)
		}
		seen[m.Name] = true
	}
}

func TestFileKeepsOtherParts(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "dist", "results.jsonl")
	a, b, c := Figure("a", "ms", []float64{1}), Figure("b", "ms", []float64{2}), Figure("a", "ms", []float64{3})
	for _, part := range [][]Result{{a, b}, {c}} {
		if err := Write(path, part); err != nil {
			t.Fatal(err)
		}
	}
	got, err := Read(path)
	if diff := cmp.Diff([]Result{c, b}, got); err != nil || diff != "" {
		t.Errorf("%v %s", err, diff)
	}
	if err := os.WriteFile(path, []byte("{\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Read(path); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("a broken file: %v", err)
	}
	if err := Write(path, nil); err == nil {
		t.Error("a broken file was written over")
	}
}

func TestDocument(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "doc.md")
	all := []Result{Ratio("same-node-tcp", "Gbit/s", []float64{7, 8}, []float64{10, 10}), Figure("agent-rss-110-pods", "MB", []float64{70})}
	for range 2 { // what it has written it replaces
		if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
			if err := os.WriteFile(path, []byte("before\n"+beginMark+"\nold\n"+endMark+"\nafter\n"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if err := WriteDocument(path, "Measured here.", all); err != nil {
			t.Fatal(err)
		}
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	text := string(data)
	for _, want := range []string{
		"before\n" + beginMark, endMark + "\nafter\n", "Measured here.", "0.75 (0.70 to 0.80) | missed |",
		"| `agent-rss-110-pods` | <= 64 MB | 70.0 MB | missed |", "not measured",
		"| `same-node-tcp` | 0.75 (0.70 to 0.80) | 7.50 | 10.0 | Gbit/s | 2 |",
	} {
		if strings.Count(text, want) == 0 {
			t.Errorf("%q is missing in\n%s", want, text)
		}
	}
	if strings.Contains(text, "old") || strings.Count(text, beginMark) != 1 {
		t.Errorf("not replaced:\n%s", text)
	}
	if err := os.WriteFile(path, []byte("no lines"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := WriteDocument(path, "", all); err == nil {
		t.Error("a document without the lines was written")
	}
}

func TestChartIsXMLWithABarEach(t *testing.T) {
	t.Parallel()
	all := []Result{
		Ratio("same-node-tcp", "Gbit/s", []float64{7, 8}, []float64{10, 10}),
		Ratio("egress-vs-pasta", "Gbit/s", []float64{1e6, 1e6}, []float64{1, 2}), // beyond the axis
		Ratio("vip-vs-direct", "Gbit/s", []float64{1}, []float64{0}),             // nothing to draw
		Figure("agent-rss-110-pods", "MB", []float64{70}),
	}
	svg := Chart(all)
	bars := 0
	for dec := xml.NewDecoder(strings.NewReader(svg)); ; {
		tok, err := dec.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("%v in\n%s", err, svg)
		}
		if e, ok := tok.(xml.StartElement); ok && e.Name.Local == "rect" {
			bars++
		}
	}
	if bars != 3 { // the background is one
		t.Errorf("%d rectangles", bars)
	}
	if axis(1e9) != axis(chartCeil) || axis(0) != axis(chartFloor) || axis(0.5) >= axis(2) {
		t.Errorf("axis: %g %g %g %g", axis(1e9), axis(0), axis(0.5), axis(2))
	}
}
