package kernel_test

import (
	"errors"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/netctl/netctl/internal/kernel"
)

func TestAttachTUN(t *testing.T) {
	t.Parallel()
	needTUN(t)
	home, pod := newNS(t), newNS(t)
	offloads := kernel.Offloads{Checksum: true, TSO: true} // USO off by its switch
	tun := newTUN(t, home, kernel.TUNConfig{Name: "nctl%d", Offloads: offloads})
	cfg := podInterface()
	cfg.Persist = true
	moveIn(t, home, tun, pod, cfg)
	index := tun.Index()

	if _, err := kernel.AttachTUN(pod, "eth0", index); !errors.Is(err, kernel.ErrBusy) {
		t.Errorf("while held: got %v, want ErrBusy", err)
	}
	before, err := kernel.Describe(pod, "eth0")
	if err != nil {
		t.Fatal(err)
	}
	if err := tun.Close(); err != nil {
		t.Fatal(err)
	}
	if alone, err := kernel.Describe(pod, "eth0"); err != nil || alone.Carrier || len(alone.Addresses) != len(before.Addresses) {
		t.Errorf("without holder: %+v, %v", alone, err)
	}
	for name, try := range map[string]func() (*kernel.TUN, error){
		"elsewhere":   func() (*kernel.TUN, error) { return kernel.AttachTUN(home, "eth0", index) },
		"other index": func() (*kernel.TUN, error) { return kernel.AttachTUN(pod, "eth0", index+1) },
		"not a TUN":   func() (*kernel.TUN, error) { return kernel.AttachTUN(pod, "lo", 1) },
		"bad name":    func() (*kernel.TUN, error) { return kernel.AttachTUN(pod, "eth%d", index) },
	} {
		if _, err := try(); !errors.Is(err, kernel.ErrNotFound) && !errors.Is(err, kernel.ErrChanged) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if links, err := kernel.Interfaces(home); err != nil || len(links) != 1 {
		t.Errorf("created by accident: %+v, %v", links, err)
	}
	again, err := kernel.AttachTUN(pod, "eth0", index)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Destroy()
	if again.Offloads() != offloads {
		t.Errorf("offloads are %+v, want %+v", again.Offloads(), offloads)
	}
	if !again.PinsNamespace() || again.Index() != index || again.Name() != "eth0" {
		t.Errorf("attached %+v", again)
	}
	after, err := kernel.Describe(pod, "eth0")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, after, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Errorf("changed by the restart: %s", diff)
	}
	err = pod.Do(func() error { return again.Configure(cfg) })
	if err != nil {
		t.Errorf("configure again: %v", err)
	}
}

func TestConfigureIsIdempotentAndRemoves(t *testing.T) {
	t.Parallel()
	needTUN(t)
	home := newNS(t)
	tun := newTUN(t, home, kernel.TUNConfig{Name: "netctl0"})
	steps := []struct {
		name  string
		addrs []netip.Prefix
	}{
		{"first", prefixes("10.7.0.1/32", "fd00:7::1/128")},
		{"same", prefixes("10.7.0.1/32", "fd00:7::1/128")},
		{"other block", prefixes("10.9.0.1/32", "fd00:7::1/128")},
		{"one family", prefixes("10.9.0.1/32")},
		{"none", nil},
	}
	for _, s := range steps {
		err := home.Do(func() error { return tun.Configure(kernel.Interface{Name: "netctl0", MTU: 1420, Addresses: s.addrs}) })
		if err != nil {
			t.Fatalf("%s: %v", s.name, err)
		}
		link, err := kernel.Describe(home, "netctl0")
		if err != nil || !slices.Equal(link.Addresses, s.addrs) || !link.Up {
			t.Errorf("%s: got %+v, %v, want %v", s.name, link, err, s.addrs)
		}
	}
	if err := home.Do(func() error { return tun.Configure(kernel.Interface{Name: "other"}) }); err == nil {
		t.Error("renamed in passing")
	}
}

func TestCreateTUNRefusesTakenNames(t *testing.T) {
	t.Parallel()
	needTUN(t)
	home := newNS(t)
	newTUN(t, home, kernel.TUNConfig{Name: "netctl0"})
	for _, name := range []string{"netctl0", "lo"} {
		err := home.Do(func() error {
			tun, err := kernel.CreateTUN(kernel.TUNConfig{Name: name})
			if err == nil {
				tun.Destroy()
			}
			return err
		})
		if !errors.Is(err, kernel.ErrExists) {
			t.Errorf("%s: got %v, want ErrExists", name, err)
		}
	}
}

func TestOffloadsHaveSwitches(t *testing.T) {
	t.Parallel()
	needTUN(t)
	home := newNS(t)
	for _, want := range []kernel.Offloads{{}, {Checksum: true}, {Checksum: true, TSO: true}, {TSO: true, USO: true}} {
		tun := newTUN(t, home, kernel.TUNConfig{Offloads: want, Persist: true})
		granted, name, index := tun.Offloads(), tun.Name(), tun.Index()
		if !want.Checksum {
			want = kernel.Offloads{} // nothing works without checksums left to us
		}
		if granted != want {
			t.Errorf("wanted %+v, granted %+v", want, granted)
		}
		if err := tun.Close(); err != nil {
			t.Fatal(err)
		}
		again, err := kernel.AttachTUN(home, name, index)
		if err != nil {
			t.Fatal(err)
		}
		if again.Offloads() != want {
			t.Errorf("kernel has %+v, want %+v", again.Offloads(), want)
		}
		if err := again.Destroy(); err != nil {
			t.Error(err)
		}
	}
	links, err := kernel.Interfaces(home)
	if err != nil || len(links) != 1 {
		t.Errorf("left behind: %+v, %v", links, err)
	}
}

func TestClosedTUNNeverHitsAnotherFile(t *testing.T) {
	t.Parallel()
	needTUN(t)
	home := newNS(t)
	tun := newTUN(t, home, kernel.TUNConfig{})
	fd := tun.FD()
	if err := tun.Close(); err != nil {
		t.Fatal(err)
	}
	for range 100 { // whoever opens files now must not get the number
		other, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(other)
		if other == fd {
			t.Fatal("the descriptor's number was given away")
		}
	}
	buf := make([]byte, 100)
	_, errRead := tun.Read(buf)
	_, errWrite := tun.Write(buf)
	if !errors.Is(errRead, kernel.ErrClosed) || !errors.Is(errWrite, kernel.ErrClosed) {
		t.Errorf("read: %v, write: %v, want ErrClosed", errRead, errWrite)
	}
	if err := errors.Join(tun.Close(), tun.Destroy()); err != nil {
		t.Errorf("closing twice: %v", err)
	}
	links, err := kernel.Interfaces(home)
	if err != nil || len(links) != 1 {
		t.Errorf("device stayed: %+v, %v", links, err)
	}
}

// A TUN goes to another owner by its descriptor alone, and its carrier stays.
func TestAdoptTUN(t *testing.T) {
	t.Parallel()
	needTUN(t)
	home, pod := newNS(t), newNS(t)
	cfg := podInterface()
	cfg.Persist = true
	tun, err := kernel.CreateTUNIn(pod, cfg, kernel.AllOffloads())
	if err != nil {
		t.Fatal(err)
	}
	_, inode := pod.Inode()
	_, elsewhere := home.Inode()
	copied := func() int {
		fd, err := kernel.DupFD(tun.FD())
		if err != nil {
			t.Fatal(err)
		}
		return fd
	}
	r, _ := pipe(t)
	noTUN, err := kernel.DupFD(r)
	if err != nil {
		t.Fatal(err)
	}
	for name, try := range map[string]func() (*kernel.TUN, error){
		"another name":      func() (*kernel.TUN, error) { return kernel.AdoptTUN(copied(), "eth1", tun.Index(), inode) },
		"another namespace": func() (*kernel.TUN, error) { return kernel.AdoptTUN(copied(), "eth0", tun.Index(), elsewhere) },
		"a pipe":            func() (*kernel.TUN, error) { return kernel.AdoptTUN(noTUN, "eth0", tun.Index(), inode) },
	} {
		if got, err := try(); err == nil {
			t.Errorf("%s: adopted %+v", name, got)
		}
	}
	again, err := kernel.AdoptTUN(copied(), "eth0", tun.Index(), inode)
	if err != nil {
		t.Fatal(err)
	}
	if err := tun.Close(); err != nil {
		t.Fatal(err)
	}
	if link, err := kernel.Describe(pod, "eth0"); err != nil || !link.Carrier || !again.PinsNamespace() {
		t.Errorf("adopted: %+v, %v, pins %t", link, err, again.PinsNamespace())
	}
	gone, err := kernel.DupFD(again.FD())
	if err != nil {
		t.Fatal(err)
	}
	if err := kernel.DeleteInterface(pod, "eth0"); err != nil {
		t.Fatal(err)
	}
	if _, err := kernel.AdoptTUN(gone, "eth0", tun.Index(), inode); !errors.Is(err, kernel.ErrGone) {
		t.Errorf("a deleted device: %v", err)
	}
	if err := again.Destroy(); err != nil {
		t.Error(err)
	}
}
