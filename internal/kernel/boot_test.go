package kernel_test

import (
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/netctl/netctl/internal/kernel"
)

func TestBootClockIsTheUptime(t *testing.T) {
	t.Parallel()
	before := kernel.BootClock()
	b, err := os.ReadFile("/proc/uptime") // counts suspended time, so only a bound
	if err != nil {
		t.Fatal(err)
	}
	uptime, err := strconv.ParseFloat(strings.Fields(string(b))[0], 64)
	if err != nil {
		t.Fatal(err)
	}
	after := kernel.BootClock()
	if before == 0 || float64(before) > uptime+1 || after < before || after > before+60 {
		t.Errorf("clock went from %d to %d at an uptime of %v", before, after, uptime)
	}
}

func TestBootClockDoesNotAllocate(t *testing.T) {
	if n := testing.AllocsPerRun(100, func() { kernel.BootClock() }); n != 0 {
		t.Errorf("allocates %v times", n)
	}
}

func TestBootIDStays(t *testing.T) {
	t.Parallel()
	first, err := kernel.BootID()
	if err != nil || len(first) != len("01234567-89ab-cdef-0123-456789abcdef") {
		t.Fatalf("got %q, %v", first, err)
	}
	if second, err := kernel.BootID(); second != first || err != nil {
		t.Errorf("got %q, %v, want %q again", second, err, first)
	}
}
