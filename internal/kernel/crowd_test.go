package kernel

import "testing"

func TestCrowdCountsItsOwnThread(t *testing.T) {
	t.Parallel()
	c, err := OpenCrowd()
	if err != nil {
		t.Fatal(err)
	}
	if n, err := c.Runnable(); err != nil || n < 1 {
		t.Errorf("%d threads are runnable (%v), and this is one", n, err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if n, err := c.Runnable(); err == nil {
		t.Errorf("%d threads after Close", n)
	}
}

func TestParseRunnable(t *testing.T) {
	t.Parallel()
	for line, want := range map[string]int{
		"0.20 0.18 0.12 3/80 11206\n":      3,
		"140.14 49.78 23.19 137/901 7\n":   137,
		"":                                 -1,
		"0.20 0.18 0.12\n":                 -1,
		"0.20 0.18 0.12 many/80 11206\n":   -1,
		"0.20 0.18 0.12 3 of 80 threads\n": -1,
	} {
		n, err := parseRunnable([]byte(line))
		if err != nil {
			n = -1
		}
		if n != want {
			t.Errorf("%q: %d (%v), want %d", line, n, err, want)
		}
	}
}

func TestCrowdDoesNotAllocate(t *testing.T) { //nolint:paralleltest // counts allocations of the process
	c, err := OpenCrowd()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if n := testing.AllocsPerRun(100, func() { _, _ = c.Runnable() }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
