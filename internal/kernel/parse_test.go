package kernel

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

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
