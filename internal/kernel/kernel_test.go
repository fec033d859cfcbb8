package kernel_test

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	"github.com/netctl/netctl/internal/kernel"
)

// newNS makes a named namespace in a directory of its own and removes it again.
func newNS(tb testing.TB) *kernel.Namespace {
	tb.Helper()
	ns, _ := newNamedNS(tb)
	return ns
}

func newNamedNS(tb testing.TB) (*kernel.Namespace, string) {
	tb.Helper()
	if err := kernel.HaveNamespaces(); err != nil {
		tb.Skipf("needs network namespaces: %v", err)
	}
	path := filepath.Join(tb.TempDir(), "ns")
	ns, err := kernel.CreateNamespace(path)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := errors.Join(ns.Close(), kernel.DeleteNamespace(path)); err != nil {
			tb.Error(err)
		}
	})
	return ns, path
}

func needTUN(tb testing.TB) {
	tb.Helper()
	if err := kernel.HaveTUN(); err != nil {
		tb.Skipf("needs TUN devices: %v", err)
	}
}

// newTUN makes a TUN in home and closes it at the end.
func newTUN(tb testing.TB, home *kernel.Namespace, cfg kernel.TUNConfig) *kernel.TUN {
	tb.Helper()
	var tun *kernel.TUN
	err := home.Do(func() (err error) {
		tun, err = kernel.CreateTUN(cfg)
		return err
	})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := tun.Destroy(); err != nil {
			tb.Error(err)
		}
	})
	return tun
}

// moveIn moves a TUN from home into ns.
func moveIn(tb testing.TB, home *kernel.Namespace, tun *kernel.TUN, ns *kernel.Namespace, cfg kernel.Interface) {
	tb.Helper()
	if err := home.Do(func() error { return tun.MoveInto(ns, cfg) }); err != nil {
		tb.Fatal(err)
	}
}

func prefixes(list ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

// podInterface is a dual-stack eth0 as the agent makes it.
func podInterface() kernel.Interface {
	addrs := prefixes("10.7.0.5/32", "fd00:7::5/128")
	return kernel.Interface{Name: "eth0", MTU: 1420, GSOMaxSize: 60100, Addresses: addrs, Routes: kernel.DefaultRoutes(addrs)}
}

// udp4 builds a virtio-net header and an IPv4 UDP packet without checksum.
func udp4(src, dst netip.AddrPort, payload string) []byte {
	b := make([]byte, kernel.VNetLen+28+len(payload))
	ip := b[kernel.VNetLen:]
	ip[0], ip[8], ip[9] = 0x45, 64, 17
	binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)))
	s, d := src.Addr().As4(), dst.Addr().As4()
	copy(ip[12:], s[:])
	copy(ip[16:], d[:])
	var sum uint32
	for i := 0; i < 20; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(ip[i:]))
	}
	sum = sum>>16 + sum&0xffff
	sum += sum >> 16
	binary.BigEndian.PutUint16(ip[10:], ^uint16(sum))
	binary.BigEndian.PutUint16(ip[20:], src.Port())
	binary.BigEndian.PutUint16(ip[22:], dst.Port())
	binary.BigEndian.PutUint16(ip[24:], uint16(8+len(payload)))
	copy(ip[28:], payload)
	return b
}

// readPacket polls a TUN for a packet.
func readPacket(tb testing.TB, tun *kernel.TUN) []byte {
	tb.Helper()
	buf := make([]byte, kernel.VNetLen+65535)
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		n, err := tun.Read(buf)
		if err == nil {
			return buf[:n]
		}
		if !errors.Is(err, kernel.ErrAgain) {
			tb.Fatal(err)
		}
	}
	tb.Fatal("no packet came")
	return nil
}

func TestProbesSayYesOrWhy(t *testing.T) {
	t.Parallel()
	for name, probe := range map[string]func() error{"tun": kernel.HaveTUN, "namespaces": kernel.HaveNamespaces} {
		first, second := probe(), probe()
		if (first == nil) != (second == nil) {
			t.Errorf("%s: first %v, then %v", name, first, second)
		}
	}
}

func TestDefaultLink(t *testing.T) {
	t.Parallel()
	needTUN(t)
	ns := newNS(t)
	err := ns.Do(func() error {
		if l, err := kernel.DefaultLink(); !errors.Is(err, kernel.ErrNoRoute) {
			t.Errorf("without a route: %+v, %v", l, err)
		}
		tun, err := kernel.CreateTUN(kernel.TUNConfig{Name: "up0", MTU: 1400})
		if err != nil {
			return err
		}
		defer func() { _ = tun.Destroy() }()
		addrs := []netip.Prefix{netip.MustParsePrefix("192.0.2.1/32")}
		if err := tun.Configure(kernel.Interface{Name: "up0", Addresses: addrs, Routes: kernel.DefaultRoutes(addrs)}); err != nil {
			return err
		}
		if l, err := kernel.DefaultLink(); err != nil || l.Name != "up0" || l.MTU != 1400 {
			t.Errorf("got %+v, %v", l, err)
		}
		all, err := kernel.DescribeAll()
		if err != nil || len(all) != 2 || len(all[1].Routes) != 1 || !all[1].Routes[0].Own {
			t.Errorf("all: %+v, %v", all, err)
		}
		removed, err := kernel.RemoveOwnRoutes()
		if err != nil || len(removed) != 1 || removed[0].Dst.Bits() != 0 {
			t.Errorf("removed %+v, %v", removed, err)
		}
		removed, err = kernel.RemoveOwnRoutes()
		if err != nil || len(removed) != 0 {
			t.Errorf("removed again %+v, %v", removed, err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
