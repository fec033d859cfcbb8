package announce

import (
	"log/slog"
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	"github.com/netctl/netctl/internal/kernel"
)

// patience is for a loaded machine.
const patience = 20 * time.Second

func newNS(t *testing.T) *kernel.Namespace {
	t.Helper()
	if err := kernel.HaveNamespaces(); err != nil {
		t.Skipf("needs namespaces: %v", err)
	}
	path := filepath.Join(t.TempDir(), "ns")
	ns, err := kernel.CreateNamespace(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ns.Close()
		if err := kernel.DeleteNamespace(path); err != nil {
			t.Error(err)
		}
	})
	return ns
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// world is two nodes and a machine on one network.
//
//	node1 .1 ─┐
//	node2 .2 ─┼─ bridge
//	   lan .9 ─┘
type world struct {
	wire  *kernel.Namespace
	hosts map[string]*kernel.Namespace
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{wire: newNS(t), hosts: map[string]*kernel.Namespace{}}
	must(t, kernel.CreateBridge(w.wire, "br0"))
	must(t, kernel.SetUp(w.wire, "br0"))
	for i, name := range []string{"node1", "node2", "lan"} {
		ns := newNS(t)
		w.hosts[name] = ns
		port := "to" + name
		must(t, kernel.CreateVeth(port, w.wire, "eth0", ns))
		must(t, kernel.SetMaster(w.wire, port, "br0"))
		must(t, kernel.SetUp(w.wire, port))
		must(t, kernel.SetUp(ns, "lo"))
		must(t, kernel.SetUp(ns, "eth0"))
		last := byte([]int{1, 2, 9}[i])
		must(t, kernel.AddAddress(ns, "eth0", netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 0, 2, last}), 24)))
		must(t, kernel.AddAddress(ns, "eth0", netip.PrefixFrom(netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 15: last}), 64)))
	}
	return w
}

// server is a Server whose sockets are in a host's namespace.
func (w *world) server(t *testing.T, host string) (apply func(...netip.Addr), mac [6]byte) {
	t.Helper()
	s := New(Config{Logger: slog.New(slog.DiscardHandler)})
	t.Cleanup(s.Close)
	must(t, w.hosts[host].Do(func() error {
		links, err := hostLinks()
		for _, l := range links {
			if l.Name == "eth0" {
				mac = l.MAC
			}
		}
		return err
	}))
	return func(addrs ...netip.Addr) {
		t.Helper()
		must(t, w.hosts[host].Do(func() error { return s.Apply(addrs) }))
	}, mac
}

// listener hears what the lan hears, and asks.
type ear struct{ arp, ndp *socket }

func (w *world) ear(t *testing.T, host string) (ear, Link) {
	t.Helper()
	var e ear
	var link Link
	must(t, w.hosts[host].Do(func() error {
		links, err := hostLinks()
		if err != nil {
			return err
		}
		for _, l := range links {
			if l.Name == "eth0" {
				link = l
			}
		}
		if e.arp, err = openSocket(link, protoARP); err != nil {
			return err
		}
		e.ndp, err = openSocketFor(link)
		return err
	}))
	t.Cleanup(func() { e.arp.close(); e.ndp.close() })
	return e, link
}

// owner waits for a message that says who has an address.
func (e ear) owner(t *testing.T, a netip.Addr, want [6]byte) {
	t.Helper()
	s := e.ndp
	if a.Is4() {
		s = e.arp
	}
	must(t, s.file.SetReadDeadline(time.Now().Add(patience)))
	buf := make([]byte, maxMessage)
	for {
		n, err := s.read(buf)
		if err != nil {
			t.Fatalf("nobody says that %x has %s: %v", want, a, err)
		}
		b := buf[:n]
		switch {
		case a.Is4() && n >= ethLen+arpLen && netip.AddrFrom4([4]byte(b[28:32])) == a && [6]byte(b[22:28]) == want:
			return
		case a.Is6() && n >= ethLen+ip6Len+naLen && b[ethLen+ip6Len] == typeNA && netip.AddrFrom16([16]byte(b[ethLen+ip6Len+8:])) == a && [6]byte(b[ethLen+ip6Len+26:]) == want:
			return
		}
	}
}

// Whoever has an address says so unasked, answers who asks, and stops when it has it
// no more; the next one takes it over.
func TestAddressesMove(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	apply1, mac1 := w.server(t, "node1")
	apply2, mac2 := w.server(t, "node2")
	e, lan := w.ear(t, "lan")
	addrs := []netip.Addr{addr("192.0.2.80"), addr("2001:db8::80")}
	apply1(addrs...)
	for _, a := range addrs {
		e.owner(t, a, mac1) // unasked
	}
	ask := func() {
		t.Helper()
		must(t, e.arp.write(arp(1, lan.MAC, addr("192.0.2.9"), broadcast, asker{addr: addrs[0]})))
		q := solicit(addrs[1], addr("2001:db8::9"))
		copy(q[6:], lan.MAC[:])
		must(t, e.ndp.write(q))
	}
	ask()
	for _, a := range addrs {
		e.owner(t, a, mac1)
	}
	apply1()
	apply2(addrs...)
	for _, a := range addrs {
		e.owner(t, a, mac2)
	}
	ask()
	for _, a := range addrs {
		e.owner(t, a, mac2)
	}
	apply2(addrs...) // again is nothing new
	apply2()
}

// An interface that was down for a while is answered on again, though nobody has told
// the server.
func TestInterfaceComesBack(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	apply, mac := w.server(t, "node1")
	a := addr("192.0.2.82")
	apply(a)
	e, lan := w.ear(t, "lan")
	for _, up := range []bool{false, true} {
		must(t, w.hosts["node1"].Do(func() error { return setUp("eth0", up) }))
	}
	buf := make([]byte, maxMessage)
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		must(t, e.arp.write(arp(1, lan.MAC, addr("192.0.2.9"), broadcast, asker{addr: a})))
		must(t, e.arp.file.SetReadDeadline(time.Now().Add(time.Second)))
		for {
			n, err := e.arp.read(buf)
			if err != nil {
				break
			}
			// To us: an announcement is to everybody.
			if n >= ethLen+arpLen && [6]byte(buf) == lan.MAC && buf[21] == 2 && [6]byte(buf[22:28]) == mac {
				return
			}
		}
	}
	t.Error("nobody is answered any more")
}

// The lan's own kernel believes it: it finds the way to an address that no interface
// has.
func TestKernelsBelieveIt(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	apply, mac := w.server(t, "node1")
	a := addr("192.0.2.81")
	apply(a)
	e, _ := w.ear(t, "lan")
	var got string
	for deadline := time.Now().Add(patience); got == "" && time.Now().Before(deadline); {
		must(t, w.hosts["lan"].Do(func() error { return sendTo(netip.AddrPortFrom(a, 9)) }))
		must(t, e.arp.file.SetReadDeadline(time.Now().Add(time.Second)))
		buf := make([]byte, maxMessage)
		n, err := e.arp.read(buf)
		if err == nil && n >= ethLen+arpLen && buf[21] == 2 && [6]byte(buf[22:28]) == mac {
			got = "answered"
		}
	}
	if got == "" {
		t.Error("the kernel's question for the address is not answered")
	}
}
