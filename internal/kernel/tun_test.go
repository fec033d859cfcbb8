package kernel_test

import (
	"bytes"
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/netctl/netctl/internal/kernel"
)

func TestMoveIntoMakesThePodsInterface(t *testing.T) {
	t.Parallel()
	needTUN(t)
	home, pod := newNS(t), newNS(t)
	tun := newTUN(t, home, kernel.TUNConfig{Name: "nctl%d", TxQueueLen: 1000, Offloads: kernel.AllOffloads()})
	if want := (kernel.Offloads{Checksum: true, TSO: true}); tun.Offloads().Checksum != want.Checksum || tun.Offloads().TSO != want.TSO {
		t.Errorf("got offloads %+v", tun.Offloads())
	}
	var optional []error
	cfg := podInterface()
	cfg.Persist = true
	cfg.OnOptional = func(err error) { optional = append(optional, err) }
	moveIn(t, home, tun, pod, cfg)
	if len(optional) > 0 {
		t.Errorf("not set: %v", optional)
	}
	got, err := kernel.Describe(pod, "eth0")
	if err != nil {
		t.Fatal(err)
	}
	if tun.PinsNamespace() {
		t.Error("the descriptor keeps the pod's namespace alive")
	}
	if got.Index != tun.Index() || tun.Name() != "eth0" {
		t.Errorf("TUN says %q %d, kernel says %q %d", tun.Name(), tun.Index(), got.Name, got.Index)
	}
	want := kernel.Link{
		Index: got.Index, Name: "eth0", Kind: "tun", MTU: 1420, TxQueueLen: 1000, GSOMaxSize: 60100, Up: true, Carrier: true,
		Addresses: cfg.Addresses, // and no fe80
		Routes: []kernel.Route{
			{Dst: netip.MustParsePrefix("0.0.0.0/0"), Link: got.Index, Scope: kernel.ScopeLink, Own: true},
			{Dst: netip.MustParsePrefix("fd00:7::5/128"), Link: got.Index},
			{Dst: netip.MustParsePrefix("::/0"), Link: got.Index, Own: true},
		},
	}
	slices.SortFunc(got.Routes, func(a, b kernel.Route) int {
		return cmpInt(family(a.Dst), family(b.Dst))*2 - cmpInt(a.Dst.Bits(), b.Dst.Bits())
	})
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
		t.Error(diff)
	}
	for _, dst := range []string{"192.0.2.1", "2001:db8::1"} {
		err := pod.Do(func() error {
			r, err := kernel.RouteGet(netip.MustParseAddr(dst))
			if err == nil && r.Link != got.Index {
				t.Errorf("%s goes to interface %d, want %d", dst, r.Link, got.Index)
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
	}
	if left, err := kernel.Interfaces(home); err != nil || len(left) != 1 {
		t.Errorf("home has %v, %v, want lo alone", left, err)
	}
	if ns, err := tun.Namespace(); err != nil || inode(t, ns) != inode(t, pod) {
		t.Errorf("TUN says it is in %v, %v", ns, err)
	} else {
		ns.Close()
	}
}

func family(p netip.Prefix) int { return p.Addr().BitLen() }

func cmpInt(a, b int) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	default:
		return 0
	}
}

// noisyReads are the kernel's own packets that a TUN may get without anybody
// sending: there must be none (router solicitations, MLD reports).
func TestPodInterfaceIsSilent(t *testing.T) {
	t.Parallel()
	needTUN(t)
	for name, addrs := range map[string][]netip.Prefix{
		"IPv4": prefixes("10.7.0.5/32"),
		"dual": prefixes("10.7.0.5/32", "fd00:7::5/128"),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			home, pod := newNS(t), newNS(t)
			tun := newTUN(t, home, kernel.TUNConfig{Name: "nctl%d"})
			moveIn(t, home, tun, pod, kernel.Interface{Name: "eth0", Addresses: addrs, Routes: kernel.DefaultRoutes(addrs)})
			time.Sleep(300 * time.Millisecond)
			buf := make([]byte, 2000)
			for {
				n, err := tun.Read(buf)
				if errors.Is(err, kernel.ErrAgain) {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				// MLD reports cannot be switched off by an interface's owner;
				// anything else is ours to prevent.
				if pkt := buf[kernel.VNetLen:n]; pkt[0]>>4 != 6 || pkt[6] != 0 {
					t.Errorf("unasked packet % x", pkt)
				}
			}
			link, err := kernel.Describe(pod, "eth0")
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(len(addrs), len(link.Addresses)); diff != "" {
				t.Errorf("addresses %v: %s", link.Addresses, diff)
			}
		})
	}
}

func TestMoveIntoSwitchesIPv6OnOnlyWhenUsed(t *testing.T) {
	t.Parallel()
	needTUN(t)
	tests := []struct {
		name  string
		addrs []netip.Prefix
		want  string
	}{
		{"IPv4 leaves it off", prefixes("10.7.0.5/32"), "1"},
		{"IPv6 switches it on", prefixes("fd00:7::5/128"), "0"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			home, pod := newNS(t), newNS(t)
			for _, conf := range []string{"all", "default"} {
				if err := kernel.SetSysctl(pod, "net/ipv6/conf/"+conf+"/disable_ipv6", "1"); err != nil {
					t.Skipf("needs a writable /proc/sys: %v", err)
				}
			}
			tun := newTUN(t, home, kernel.TUNConfig{})
			moveIn(t, home, tun, pod, kernel.Interface{Name: "eth0", Addresses: tt.addrs, Routes: kernel.DefaultRoutes(tt.addrs)})
			if got, err := kernel.Sysctl(pod, "net/ipv6/conf/eth0/disable_ipv6"); got != tt.want || err != nil {
				t.Errorf("disable_ipv6 is %q, %v, want %s", got, err, tt.want)
			}
			link, err := kernel.Describe(pod, "eth0")
			if err != nil || !slices.Equal(link.Addresses, tt.addrs) {
				t.Errorf("got %v, %v", link.Addresses, err)
			}
		})
	}
}

func TestMoveIntoFailsWithoutTrace(t *testing.T) {
	t.Parallel()
	needTUN(t)
	tests := []struct {
		name string
		cfg  kernel.Interface
		want error
	}{
		{"name is taken", kernel.Interface{Name: "eth0"}, kernel.ErrExists},
		{"bad name", kernel.Interface{Name: "../eth0"}, nil},
		{"name too long", kernel.Interface{Name: "sixteen-chars-xx"}, nil},
		{"bad address", kernel.Interface{Name: "eth1", Addresses: []netip.Prefix{{}}}, nil},
		{"route of a family that it has not", kernel.Interface{Name: "eth1", Persist: true, Addresses: prefixes("10.7.0.5/32"), Routes: []kernel.Route{
			{Dst: netip.MustParsePrefix("192.0.2.0/24"), Gateway: netip.MustParseAddr("203.0.113.1")},
		}}, nil},
		{"source that is not its own", kernel.Interface{Name: "eth1", Addresses: prefixes("10.7.0.5/32"), Routes: []kernel.Route{
			{Dst: netip.MustParsePrefix("0.0.0.0/0"), Src: netip.MustParseAddr("203.0.113.1")},
		}}, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			home, pod := newNS(t), newNS(t)
			first := newTUN(t, home, kernel.TUNConfig{Name: "nctl%d"})
			moveIn(t, home, first, pod, podInterface())
			before, err := kernel.Describe(pod, "eth0")
			if err != nil {
				t.Fatal(err)
			}
			tun := newTUN(t, home, kernel.TUNConfig{Name: "nctl%d", Persist: true})
			err = home.Do(func() error { return tun.MoveInto(pod, tt.cfg) })
			if err == nil || tt.want != nil && !errors.Is(err, tt.want) {
				t.Errorf("got error %v, want %v", err, tt.want)
			}
			if after, err := kernel.Describe(pod, "eth0"); err != nil || !cmp.Equal(before, after, cmp.AllowUnexported(netip.Addr{}, netip.Prefix{}), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })) {
				t.Errorf("eth0 was disturbed: %+v, %v", after, err)
			}
			for place, ns := range map[string]*kernel.Namespace{"home": home, "pod": pod} {
				links, err := kernel.Interfaces(ns)
				if err != nil {
					t.Fatal(err)
				}
				for _, l := range links {
					if l.Name != "lo" && l.Name != "eth0" {
						t.Errorf("%s keeps %+v", place, l)
					}
				}
			}
			if _, err := tun.Read(make([]byte, 100)); !errors.Is(err, kernel.ErrClosed) {
				t.Errorf("TUN after the failure: %v, want ErrClosed", err)
			}
		})
	}
}

// An ADD that is killed in the middle closes its descriptors; until the very
// last step that takes the device along.
func TestKilledAddLeavesNothing(t *testing.T) {
	t.Parallel()
	needTUN(t)
	if path := os.Getenv("KERNEL_TEST_ADD"); path != "" {
		pod, err := kernel.OpenNamespace(path)
		if err != nil {
			t.Fatal(err)
		}
		tun, err := kernel.CreateTUN(kernel.TUNConfig{Name: "nctl%d"})
		if err != nil {
			t.Fatal(err)
		}
		cfg := podInterface()
		if err := tun.MoveInto(pod, cfg); err != nil {
			t.Fatal(err)
		}
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	}
	pod, path := newNamedNS(t)
	cmd := exec.Command(os.Args[0], "-test.run=^TestKilledAddLeavesNothing$")
	cmd.Env = append(os.Environ(), "KERNEL_TEST_ADD="+path)
	out, err := cmd.CombinedOutput()
	if state := cmd.ProcessState; state == nil || state.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Fatalf("%v\n%s", err, out)
	}
	deadline := time.Now().Add(5 * time.Second)
	for {
		links, err := kernel.Interfaces(pod)
		if err == nil && len(links) == 1 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("left behind: %+v, %v", links, err)
		}
		time.Sleep(time.Millisecond)
	}
}

func TestPacketsPassBothWays(t *testing.T) {
	t.Parallel()
	needTUN(t)
	home, pod := newNS(t), newNS(t)
	tun := newTUN(t, home, kernel.TUNConfig{Name: "nctl%d", Offloads: kernel.AllOffloads()})
	cfg := podInterface()
	moveIn(t, home, tun, pod, cfg)
	var conn *net.UDPConn
	err := pod.Do(func() (err error) {
		conn, err = net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(10, 7, 0, 5), Port: 7000})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	outside := netip.MustParseAddrPort("192.0.2.9:53")
	if _, err := conn.WriteToUDPAddrPort([]byte("ask"), outside); err != nil {
		t.Fatal(err)
	}
	got := readPacket(t, tun)
	for got[kernel.VNetLen]>>4 == 6 { // MLD reports of the kernel
		got = readPacket(t, tun)
	}
	if !bytes.HasSuffix(got, []byte("ask")) || len(got) != kernel.VNetLen+28+3 {
		t.Errorf("read % x", got)
	}
	reply := udp4(outside, netip.MustParseAddrPort("10.7.0.5:7000"), "answer")
	if n, err := tun.Write(reply); n != len(reply) || err != nil {
		t.Fatalf("write: %d, %v", n, err)
	}
	if err := conn.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 100)
	n, from, err := conn.ReadFromUDPAddrPort(buf)
	if err != nil || string(buf[:n]) != "answer" || from != outside {
		t.Errorf("got %q from %v, %v", buf[:n], from, err)
	}
	bad := slices.Clone(reply)
	bad[0], bad[1] = 1, 77 // NEEDS_CSUM, a GSO type that does not exist
	if _, err := tun.Write(bad); !errors.Is(err, kernel.ErrInvalid) {
		t.Errorf("bad header: got %v, want ErrInvalid", err)
	}
	if err := kernel.SetDown(pod, "eth0"); err != nil {
		t.Fatal(err)
	}
	if _, err := tun.Write(reply); !errors.Is(err, kernel.ErrDown) {
		t.Errorf("interface down: got %v, want ErrDown", err)
	}
}

func TestDeletedDeviceIsGone(t *testing.T) {
	t.Parallel()
	needTUN(t)
	tests := []struct {
		name   string
		remove func(*testing.T, *kernel.Namespace, string)
	}{
		{"interface deleted", func(t *testing.T, pod *kernel.Namespace, _ string) {
			if err := kernel.DeleteInterface(pod, "eth0"); err != nil {
				t.Error(err)
			}
		}},
		{"namespace deleted", func(t *testing.T, pod *kernel.Namespace, path string) {
			if err := errors.Join(kernel.DeleteNamespace(path), pod.Close()); err != nil {
				t.Error(err)
			}
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			home := newNS(t)
			path := t.TempDir() + "/pod"
			pod, err := kernel.CreateNamespace(path)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				pod.Close()
				if err := kernel.DeleteNamespace(path); err != nil {
					t.Error(err)
				}
			})
			tun := newTUN(t, home, kernel.TUNConfig{})
			cfg := podInterface()
			cfg.Persist = true
			moveIn(t, home, tun, pod, cfg)
			poller := newPoller(t)
			if err := poller.Add(tun.FD(), 5); err != nil {
				t.Fatal(err)
			}
			tt.remove(t, pod, path)
			for deadline := time.Now().Add(10 * time.Second); ; {
				events := make([]kernel.Event, 4)
				n, err := poller.Wait(events, 1000)
				if err != nil {
					t.Fatal(err)
				}
				if n > 0 && events[0].Gone {
					break
				}
				if time.Now().After(deadline) {
					t.Fatal("the poller never said that the device is gone")
				}
				for n > 0 {
					if _, err := tun.Read(make([]byte, 2000)); err != nil {
						break
					}
				}
			}
			buf := make([]byte, 2000)
			var errRead error
			for range 100 {
				if _, errRead = tun.Read(buf); errRead != nil && !errors.Is(errRead, kernel.ErrAgain) {
					break
				}
				time.Sleep(time.Millisecond)
			}
			_, errWrite := tun.Write(udp4(netip.MustParseAddrPort("192.0.2.1:1"), netip.MustParseAddrPort("10.7.0.5:1"), ""))
			if !errors.Is(errRead, kernel.ErrGone) || !errors.Is(errWrite, kernel.ErrGone) {
				t.Errorf("read: %v, write: %v, want ErrGone", errRead, errWrite)
			}
			if _, err := tun.Namespace(); !errors.Is(err, kernel.ErrGone) {
				t.Errorf("namespace: %v, want ErrGone", err)
			}
			if err := tun.Destroy(); err != nil {
				t.Errorf("destroy of the gone: %v", err)
			}
		})
	}
}

func TestReadAndWriteDoNotAllocate(t *testing.T) {
	needTUN(t) // not parallel: AllocsPerRun counts everybody's
	home, pod := newNS(t), newNS(t)
	tun := newTUN(t, home, kernel.TUNConfig{})
	addrs := prefixes("10.7.0.5/32")
	moveIn(t, home, tun, pod, kernel.Interface{Name: "eth0", Addresses: addrs, Routes: kernel.DefaultRoutes(addrs)})
	buf := make([]byte, 2000)
	pkt := udp4(netip.MustParseAddrPort("192.0.2.1:1"), netip.MustParseAddrPort("10.7.0.5:9"), "")
	bad := append([]byte{1, 77}, pkt[2:]...)
	for name, fn := range map[string]func(){
		"read":      func() { _, _ = tun.Read(buf) },
		"write":     func() { _, _ = tun.Write(pkt) },
		"bad write": func() { _, _ = tun.Write(bad) },
	} {
		if n := testing.AllocsPerRun(200, fn); n != 0 {
			t.Errorf("%s allocates %v times", name, n)
		}
	}
}

// The queue of a device in another namespace is changed while it is in use.
func TestSetQueueLen(t *testing.T) {
	t.Parallel()
	needTUN(t)
	ns, err := kernel.PrivateNamespace()
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	tun, err := kernel.CreateTUNIn(ns, kernel.Interface{Name: "eth0", TxQueueLen: 1000}, kernel.AllOffloads())
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{16, 1000} {
		if err := tun.SetQueueLen(n); err != nil {
			t.Fatal(err)
		}
		if got, err := kernel.Describe(ns, "eth0"); err != nil || got.TxQueueLen != n {
			t.Errorf("queue of %d packets, want %d; %v", got.TxQueueLen, n, err)
		}
	}
	if err := tun.Destroy(); err != nil {
		t.Fatal(err)
	}
	if err := tun.SetQueueLen(16); err == nil {
		t.Error("the queue of a device that is gone was set")
	}
}

func BenchmarkSetQueueLen(b *testing.B) {
	ns, err := kernel.PrivateNamespace()
	if err != nil {
		b.Skip(err)
	}
	defer ns.Close()
	tun, err := kernel.CreateTUNIn(ns, kernel.Interface{Name: "eth0"}, kernel.AllOffloads())
	if err != nil {
		b.Skip(err)
	}
	defer func() { _ = tun.Destroy() }()
	for b.Loop() {
		if err := tun.SetQueueLen(1000); err != nil {
			b.Fatal(err)
		}
	}
}
