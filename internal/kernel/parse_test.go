package kernel

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestFindMount(t *testing.T) {
	t.Parallel()
	const info = "22 1 0:20 / / rw,relatime - ext4 /dev/sda1 rw\n" +
		"23 22 0:21 / /run rw shared:5 - tmpfs tmpfs rw\n" +
		"24 23 0:21 /netns /run/netns rw shared:6 master:1 - tmpfs tmpfs rw\n" +
		"25 22 0:22 / /with\\040space rw master:3 - tmpfs tmpfs rw\n" +
		"26 22 0:22 / /twice rw shared:9 - tmpfs tmpfs rw\n" +
		"27 22 0:22 / /twice rw - tmpfs tmpfs rw\n" +
		"28 22 0:22 / /short rw\n"
	tests := []struct {
		dir             string
		mounted, shared bool
	}{
		{"/", true, false},
		{"/run", true, true},
		{"/run/netns", true, true},
		{"/with space", true, false},
		{"/twice", true, false}, // the one on top counts
		{"/none", false, false},
		{"/short", false, false},
	}
	for _, tt := range tests {
		if mounted, shared := findMount(info, tt.dir); mounted != tt.mounted || shared != tt.shared {
			t.Errorf("%s: got %v, %v, want %v, %v", tt.dir, mounted, shared, tt.mounted, tt.shared)
		}
	}
}

func FuzzFindMount(f *testing.F) {
	f.Add("24 23 0:21 /netns /run/netns rw shared:6 - tmpfs tmpfs rw\n", "/run/netns")
	f.Add("x - - - - - -", "-")
	f.Fuzz(func(t *testing.T, info, dir string) {
		if mounted, shared := findMount(info, dir); shared && !mounted {
			t.Error("shared without a mount")
		}
	})
}

func FuzzParseRights(f *testing.F) {
	f.Add(unix.UnixRights(3, 4, 5))
	f.Add(unix.UnixRights())
	f.Add([]byte{0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, control []byte) {
		fds, err := parseRights(control)
		if len(fds)*4 > len(control) {
			t.Errorf("%d descriptors from %d bytes, %v", len(fds), len(control), err)
		}
	})
}

func TestParseRightsReturnsAll(t *testing.T) {
	t.Parallel()
	control := append(unix.UnixRights(3, 4), unix.UnixRights(5)...)
	if fds, err := parseRights(control); err != nil || !slices.Equal(fds, []int{3, 4, 5}) {
		t.Errorf("got %v, %v", fds, err)
	}
}

func FuzzSysctlPath(f *testing.F) {
	f.Add("net/ipv4/ip_forward")
	f.Add("../../etc/passwd")
	f.Add("net/ipv6/conf/a.b/forwarding")
	f.Fuzz(func(t *testing.T, key string) {
		path, err := sysctlPath(key)
		if err == nil && (!strings.HasPrefix(path, sysctlRoot+"/") || filepath.Clean(path) != path) {
			t.Errorf("%q leads to %q", key, path)
		}
	})
}

func FuzzReadFeatures(f *testing.F) {
	names := make([]byte, 3*stringLen)
	copy(names, featureTSO)
	copy(names[stringLen:], featureUSO)
	copy(names[2*stringLen:], featureChecksum)
	bits := make([]byte, featureBlock)
	bits[featureActive] = 0b101
	f.Add(names, bits)
	f.Fuzz(func(_ *testing.T, names, bits []byte) { readFeatures(names, bits) })
	if got := readFeatures(names, bits); got != (Offloads{Checksum: true, TSO: true}) {
		f.Errorf("got %+v", got)
	}
}
