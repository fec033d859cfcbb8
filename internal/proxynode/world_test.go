package proxynode_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/netctl/netctl/internal/agent/probe"
	"github.com/netctl/netctl/internal/cluster"
	"github.com/netctl/netctl/internal/kernel"
	"github.com/netctl/netctl/internal/proxynode"
	"github.com/netctl/netctl/proxy"
	"github.com/netctl/netctl/proxy/health"
)

// childEnv has this very test program be a proxy: it lives in a namespace, so it
// must be a process of its own, and like this it has the race detector, too.
const childEnv = "PROXYNODE_TEST_CHILD"

type childConfig struct {
	Dir, Probe string
	Keep       bool
}

func TestMain(m *testing.M) {
	text := os.Getenv(childEnv)
	if text == "" {
		os.Exit(m.Run())
	}
	if err := child(text); err != nil {
		fmt.Fprintln(os.Stderr, "proxy:", err)
		os.Exit(1)
	}
}

func child(text string) error {
	var c childConfig
	if err := json.Unmarshal([]byte(text), &c); err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	source, err := cluster.NewDirectory(cluster.DirectoryConfig{Path: c.Dir, Logger: log})
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	nodePorts, err := proxy.ParseNodePortAddresses([]string{"primary", "localhost"})
	if err != nil {
		return err
	}
	return proxynode.Run(ctx, proxynode.Config{
		Node: "node1", Source: source, ProbeSocket: c.Probe, Keep: c.Keep, Log: log,
		NodePorts: nodePorts, Healthz: health.DefaultHealthzAddress, Metrics: health.DefaultMetricsAddress,
	})
}

// The world: a node with two pods of another CNI, which is plain routing, and the
// network that the node is in.
//
//	pod1 .5 ─┐                        ┌─ lan .99
//	         ├─ node .1 ─ 192.0.2.11 ─┘
//	pod2 .6 ─┘  10.244.1.0/24
type family struct {
	name                         string
	node, lan, gateway           netip.Addr
	pods                         [2]netip.Addr
	podRange, lanRange, services netip.Prefix
}

// vip returns the n-th address of the services' range.
func (f *family) vip(n byte) netip.Addr {
	a := f.services.Addr().AsSlice()
	a[len(a)-1] = n
	out, _ := netip.AddrFromSlice(a)
	return out
}

func families() []*family {
	addr, prefix := netip.MustParseAddr, netip.MustParsePrefix
	return []*family{
		{
			"ipv4", addr("192.0.2.11"), addr("192.0.2.99"), addr("10.244.1.1"),
			[2]netip.Addr{addr("10.244.1.5"), addr("10.244.1.6")},
			prefix("10.244.1.0/24"), prefix("192.0.2.0/24"), prefix("10.96.0.0/16"),
		},
		{
			"ipv6", addr("2001:db8::11"), addr("2001:db8::99"), addr("fd00:10:244:1::1"),
			[2]netip.Addr{addr("fd00:10:244:1::5"), addr("fd00:10:244:1::6")},
			prefix("fd00:10:244:1::/64"), prefix("2001:db8::/64"), prefix("fd00:10:96::/112"),
		},
	}
}

type world struct {
	node, lan *kernel.Namespace
	pods      [2]*kernel.Namespace
	dir       string
	probe     string
}

func newWorld(t *testing.T) *world {
	t.Helper()
	for _, err := range []error{kernel.HaveNamespaces(), kernel.HaveTUN()} {
		if err != nil {
			t.Skipf("needs namespaces and TUN devices: %v", err)
		}
	}
	w := &world{node: newNS(t), lan: newNS(t), pods: [2]*kernel.Namespace{newNS(t), newNS(t)}, dir: t.TempDir()}
	short, err := os.MkdirTemp("", "pn") //nolint:usetesting // t.TempDir is too long for a socket
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(short) })
	w.probe = filepath.Join(short, "probe.sock")

	must(t, kernel.CreateVeth("eth0", w.node, "eth0", w.lan))
	must(t, kernel.CreateBridge(w.node, "cni0"))
	must(t, kernel.SetForwarding(w.node))
	for i, pod := range w.pods {
		port := fmt.Sprintf("veth%d", i)
		must(t, kernel.CreateVeth(port, w.node, "eth0", pod))
		must(t, kernel.SetMaster(w.node, port, "cni0"))
		must(t, kernel.SetUp(w.node, port))
	}
	for _, l := range []struct {
		ns   *kernel.Namespace
		name string
		host func(*family) (netip.Addr, netip.Prefix)
	}{
		{w.node, "eth0", func(f *family) (netip.Addr, netip.Prefix) { return f.node, f.lanRange }},
		{w.node, "cni0", func(f *family) (netip.Addr, netip.Prefix) { return f.gateway, f.podRange }},
		{w.lan, "eth0", func(f *family) (netip.Addr, netip.Prefix) { return f.lan, f.lanRange }},
		{w.pods[0], "eth0", func(f *family) (netip.Addr, netip.Prefix) { return f.pods[0], f.podRange }},
		{w.pods[1], "eth0", func(f *family) (netip.Addr, netip.Prefix) { return f.pods[1], f.podRange }},
	} {
		must(t, kernel.SetUp(l.ns, "lo"))
		must(t, kernel.SetUp(l.ns, l.name))
		for _, f := range families() {
			a, p := l.host(f)
			must(t, kernel.AddAddress(l.ns, l.name, netip.PrefixFrom(a, p.Bits())))
		}
	}
	for _, f := range families() {
		all := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		if f.node.Is6() {
			all = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		}
		must(t, kernel.AddRoute(w.lan, "eth0", kernel.Route{Dst: all, Gateway: f.node}))
		for _, pod := range w.pods {
			must(t, kernel.AddRoute(pod, "eth0", kernel.Route{Dst: all, Gateway: f.gateway}))
		}
	}
	return w
}

func newNS(t *testing.T) *kernel.Namespace {
	t.Helper()
	path := filepath.Join(t.TempDir(), "ns")
	ns, err := kernel.CreateNamespace(path)
	must(t, err)
	t.Cleanup(func() { must(t, errors.Join(ns.Close(), kernel.DeleteNamespace(path))) })
	return ns
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// apply writes a manifest into the cluster's state, whole.
func (w *world) apply(t *testing.T, name, text string) {
	t.Helper()
	path := filepath.Join(w.dir, name+".yaml")
	must(t, os.WriteFile(path+".new", []byte(text), 0o600))
	must(t, os.Rename(path+".new", path))
}

// running is a proxy's process.
type running struct {
	cmd *exec.Cmd
	log *logged
}

// logged is what a process says.
type logged struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *logged) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// spawn starts a proxy on the node.
func (w *world) spawn(t *testing.T, keep bool) *running {
	t.Helper()
	text, err := json.Marshal(childConfig{Dir: w.dir, Probe: w.probe, Keep: keep})
	must(t, err)
	r := &running{cmd: exec.Command(os.Args[0]), log: new(logged)}
	r.cmd.Env = append(os.Environ(), childEnv+"="+string(text), "GORACE=atexit_sleep_ms=0")
	r.cmd.Stdout, r.cmd.Stderr = r.log, r.log
	must(t, kernel.StartIn(w.node, r.cmd))
	t.Cleanup(func() {
		if r.cmd.ProcessState == nil {
			_ = r.cmd.Process.Kill()
			_ = r.cmd.Wait()
		}
		for _, bad := range []string{"DATA RACE", "panic", "fatal error"} {
			if strings.Contains(r.log.String(), bad) {
				t.Errorf("%s in the proxy", bad)
			}
		}
		if t.Failed() {
			t.Log(r.log.String())
		}
	})
	return r
}

// start starts a proxy and waits until it is ready.
func (w *world) start(t *testing.T, keep bool) *running {
	t.Helper()
	_ = os.Remove(w.probe)
	r := w.spawn(t, keep)
	eventually(t, "the proxy is ready", func() error { return probe.Ask(t.Context(), w.probe, probe.Ready) })
	return r
}

// end ends a proxy by a signal and returns how it ended.
func (r *running) end(t *testing.T, sig syscall.Signal) error {
	t.Helper()
	must(t, r.cmd.Process.Signal(sig))
	return r.cmd.Wait()
}

// listen runs TCP and UDP servers that answer every line or datagram with their
// name and the client's address.
func listen(t *testing.T, ns *kernel.Namespace, name string, at netip.AddrPort) {
	t.Helper()
	var l *net.TCPListener
	var u *net.UDPConn
	must(t, ns.Do(func() (err error) {
		if l, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(at)); err != nil {
			return err
		}
		u, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
		return err
	}))
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				fmt.Fprintf(c, "%s %s\n", name, c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap())
				_, _ = io.Copy(c, c)
			})
		}
	})
	wg.Go(func() {
		buf := make([]byte, 2048)
		for {
			_, from, err := u.ReadFromUDPAddrPort(buf)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				_, _ = u.WriteToUDPAddrPort([]byte(name+" "+from.Addr().Unmap().String()), from)
			}
		}
	})
	t.Cleanup(func() {
		l.Close()
		u.Close()
		wg.Wait()
	})
}

const patience = 5 * time.Second

// dial opens a connection from a namespace.
func dial(ns *kernel.Namespace, network string, to netip.AddrPort, limit time.Duration) (c net.Conn, err error) {
	err = ns.Do(func() error {
		c, err = net.DialTimeout(network, to.String(), limit)
		return err
	})
	return c, err
}

// ask asks a server who it is and whom it sees.
func ask(ns *kernel.Namespace, network string, to netip.AddrPort, limit time.Duration) (server, client string, err error) {
	c, err := dial(ns, network, to, limit)
	if err != nil {
		return "", "", err
	}
	defer c.Close()
	return exchange(c, limit)
}

// exchange asks over a connection that is open; over TCP it works once.
func exchange(c net.Conn, limit time.Duration) (server, client string, err error) {
	_ = c.SetDeadline(time.Now().Add(limit))
	if _, ok := c.(*net.UDPConn); ok {
		if _, err := c.Write([]byte("who?")); err != nil {
			return "", "", err
		}
		buf := make([]byte, 256)
		n, err := c.Read(buf)
		if err != nil {
			return "", "", err
		}
		server, client, _ = strings.Cut(string(buf[:n]), " ")
		return server, client, nil
	}
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		return "", "", err
	}
	server, client, _ = strings.Cut(strings.TrimSpace(line), " ")
	return server, client, nil
}

func eventually(t *testing.T, what string, ok func() error) {
	t.Helper()
	deadline := time.Now().Add(3 * patience)
	for {
		err := ok()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v", what, err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}
