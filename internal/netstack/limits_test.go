package netstack

import (
	"testing"
)

// TestLimitsFitTheFiles: at the bounds, the process still opens a file.
func TestLimitsFitTheFiles(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name                     string
		files                    int
		conns, flows, echoes     int // totals
		dialsPerPod, connsPerPod int
		left                     int // at least
	}{
		{"plenty", 1 << 20, 32768, 16384, 1024, 256, 4096, 2048},
		{"just enough", 32768 + 16384 + 1024 + otherFiles, 32768, 16384, 1024, 256, 4096, 2048},
		{"one short", 32768 + 16384 + 1024 + otherFiles - 1, 32767, 16383, 1023, 255, 4095, 2048},
		{"a small service", 4096, 1337, 668, 41, 10, 167, 2048},
		{"the old default", 1024, 334, 167, 10, 4, 41, 512},
		{"next to nothing", 16, 5, 2, 0, 4, 4, 8},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var l Limits
			l.setDefaults()
			whole := l
			if smaller := l.fit(tt.files); smaller != (l != whole) {
				t.Errorf("fit says %t", smaller)
			}
			if l.Conns != tt.conns || l.Flows != tt.flows || l.Echoes != tt.echoes ||
				l.DialsPerPod != tt.dialsPerPod || l.ConnsPerPod != tt.connsPerPod {
				t.Errorf("got %+v", l)
			}
			if left := tt.files - l.Conns - l.Flows - l.Echoes; left < tt.left {
				t.Errorf("%d files are left, want %d", left, tt.left)
			}
		})
	}
}

// TestStackHonoursTheFiles: through Config, and nothing changes without.
func TestStackHonoursTheFiles(t *testing.T) {
	t.Parallel()
	for files, conns := range map[int]int{0: 32768, 4096: 1337} {
		s, err := New(Config{Out: func([]byte) {}, Files: files})
		if err != nil {
			t.Fatal(err)
		}
		if s.cfg.Limits.Conns != conns {
			t.Errorf("%d files: %d connections, want %d", files, s.cfg.Limits.Conns, conns)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	if _, err := New(Config{Out: func([]byte) {}, Files: -1}); err == nil {
		t.Error("a negative number of files is accepted")
	}
}
