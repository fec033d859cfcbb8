package rawport_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/gaissmai/bart"
	"golang.org/x/sys/unix"

	"github.com/netctl/netctl/internal/datapath"
	"github.com/netctl/netctl/internal/flow"
	"github.com/netctl/netctl/internal/kernel"
	"github.com/netctl/netctl/internal/netstack"
	"github.com/netctl/netctl/internal/packet"
	"github.com/netctl/netctl/internal/policy"
	"github.com/netctl/netctl/internal/rawport"
	"github.com/netctl/netctl/proxy"
)

// The world of these tests: an outside host, a node and a pod, each a network
// namespace, and an agent, which is this test program again as a process of the
// node. The test itself is the holder: it has copies of the sockets that must
// outlive the agent.
//
//	pod 10.9.0.5 ── TUN ── agent ── netctl0 ── node 198.51.100.1 ── veth ── outside 198.51.100.10
const (
	mtu        = 1420
	firstPort  = 61000
	ports      = 32
	most       = 4096
	agentEnv   = "NETCTL_TEST_RAWPORT_AGENT"
	firstFD    = 4 // of the agent's descriptors: 3 is the pod's namespace
	waitLong   = 20 * time.Second
	podTUN     = "eth0"
	hostTUN    = "netctl0"
	portPod    = datapath.PortID(1)
	portSocket = datapath.PortID(2)
	portRaw    = datapath.PortID(3)
)

type family struct {
	name               string
	pod, node, outside netip.Addr
	bits               int
}

func families() []family {
	return []family{
		{"IPv4", netip.MustParseAddr("10.9.0.5"), netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("198.51.100.10"), 24},
		{"IPv6", netip.MustParseAddr("fd09::5"), netip.MustParseAddr("2001:db8:1::1"), netip.MustParseAddr("2001:db8:1::10"), 64},
	}
}

type world struct {
	tb                 testing.TB
	outside, node, pod *kernel.Namespace
	podIndex, hostIdx  int
	held               []int
	dir, mode          string
	ports              int
	agent              *exec.Cmd
	ended              chan struct{}
}

// newWorld makes the three hosts; mode says what the agent carries packets to the
// outside with: "raw" or "netstack".
func newWorld(tb testing.TB, mode string) *world {
	tb.Helper()
	return newWorldOf(tb, mode, ports)
}

// newWorldOf has so many ports to the outside at first.
func newWorldOf(tb testing.TB, mode string, n int) *world {
	tb.Helper()
	if err := errors.Join(kernel.HaveTUN(), kernel.HaveNamespaces()); err != nil {
		tb.Skip(err)
	}
	w := &world{tb: tb, outside: newNS(tb), node: newNS(tb), pod: newNS(tb), dir: tb.TempDir(), mode: mode, ports: n}
	w.must(kernel.CreateVeth("eth0", w.outside, "eth0", w.node))
	for _, f := range families() {
		w.must(kernel.AddAddress(w.outside, "eth0", netip.PrefixFrom(f.outside, f.bits)))
		w.must(kernel.AddAddress(w.node, "eth0", netip.PrefixFrom(f.node, f.bits)))
	}
	for _, ns := range []*kernel.Namespace{w.outside, w.node, w.pod} {
		w.must(kernel.SetLoopbackUp(ns))
	}
	w.must(kernel.SetUp(w.outside, "eth0"))
	w.must(kernel.SetUp(w.node, "eth0"))
	w.must(kernel.SetForwarding(w.node))
	w.must(w.devices())
	w.must(kernel.ForwardOwn(w.node, hostTUN))
	w.start()
	tb.Cleanup(w.end)
	return w
}

// devices makes the TUNs, persistent, and lets go of them.
func (w *world) devices() error {
	var addrs []netip.Prefix
	for _, f := range families() {
		addrs = append(addrs, netip.PrefixFrom(f.pod, f.pod.BitLen()))
	}
	eth0, err := kernel.CreateTUNIn(w.pod, kernel.Interface{
		Name: podTUN, MTU: mtu, TxQueueLen: 1000, Addresses: addrs, Routes: kernel.DefaultRoutes(addrs), Persist: true,
	}, kernel.AllOffloads())
	if err != nil {
		return err
	}
	var host *kernel.TUN
	err = w.node.Do(func() error {
		host, err = kernel.CreateTUN(kernel.TUNConfig{Name: hostTUN, MTU: mtu, TxQueueLen: 1000, Offloads: kernel.AllOffloads(), Persist: true})
		return err
	})
	if err != nil {
		return err
	}
	w.podIndex, w.hostIdx = eth0.Index(), host.Index()
	return errors.Join(
		// Without an address of its own the device falls to the loose filter of sources, too.
		kernel.AddAddress(w.node, hostTUN, netip.MustParsePrefix("10.9.0.1/32")),
		kernel.SetUp(w.node, hostTUN), eth0.Close(), host.Close())
}

func newNS(tb testing.TB) *kernel.Namespace {
	tb.Helper()
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
	return ns
}

func (w *world) must(err error) {
	w.tb.Helper()
	if err != nil {
		w.tb.Fatal(err)
	}
}

// start runs an agent until it says that it serves.
func (w *world) start() {
	w.tb.Helper()
	if w.mode == "raw" && w.held == nil {
		w.must(w.node.Do(func() error {
			p, err := open(w.ports)
			if err != nil {
				return err
			}
			w.tb.Cleanup(p.Close)
			w.held = p.FDs()
			return nil
		}))
	}
	program, err := os.Executable()
	w.must(err)
	cmd := exec.Command(program, "-test.run=^$")
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s %d %d %d %d %s", agentEnv, w.mode, w.podIndex, w.hostIdx, w.ports, len(w.held), filepath.Join(w.dir, "flows")))
	cmd.Stderr = os.Stderr
	for _, fd := range append([]int{w.pod.FD()}, w.held...) {
		dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		w.must(err)
		f := os.NewFile(uintptr(dup), "held")
		defer f.Close()
		cmd.ExtraFiles = append(cmd.ExtraFiles, f)
	}
	out, err := cmd.StdoutPipe()
	w.must(err)
	w.must(kernel.StartIn(w.node, cmd))
	w.agent, w.ended = cmd, make(chan struct{})
	if _, err := io.ReadFull(out, make([]byte, 1)); err != nil {
		w.tb.Fatalf("the agent does not serve: %v", errors.Join(err, cmd.Wait()))
	}
}

// open makes a Port that only keeps its sockets.
func open(n int) (*rawport.Port, error) {
	return rawport.New(rawport.Config{Out: func([]byte) {}, Send: func([]byte) error { return nil }, First: firstPort, Ports: n, Most: n, MTU: mtu})
}

// kill ends the agent as a crash does.
func (w *world) kill() {
	w.must(w.agent.Process.Kill())
	_ = w.agent.Wait() // it was killed
	w.agent = nil
}

func (w *world) end() {
	if w.agent != nil {
		w.kill()
	}
}

// setMTU changes the wire's, at one end.
func setMTU(ns *kernel.Namespace, mtu uint32) error {
	return ns.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		ifr, err := unix.NewIfreq("eth0")
		if err != nil {
			return err
		}
		ifr.SetUint32(mtu)
		return unix.IoctlIfreq(fd, unix.SIOCSIFMTU, ifr)
	})
}

// segment returns the size of a connection's segments.
func (w *world) segment(c net.Conn) (size int) {
	raw, err := c.(*net.TCPConn).SyscallConn()
	w.must(err)
	var optErr error
	w.must(raw.Control(func(fd uintptr) {
		size, optErr = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_MAXSEG)
	}))
	w.must(optErr)
	return size
}

// listen opens a TCP listener of the outside host.
func (w *world) listen(f family) net.Listener {
	w.tb.Helper()
	var l net.Listener
	w.must(w.outside.Do(func() (err error) {
		l, err = net.Listen("tcp", netip.AddrPortFrom(f.outside, 0).String())
		return err
	}))
	w.tb.Cleanup(func() { l.Close() })
	return l
}

// dial connects from the pod.
func (w *world) dial(network string, to net.Addr) net.Conn {
	w.tb.Helper()
	var c net.Conn
	w.must(w.pod.Do(func() (err error) {
		d := net.Dialer{Timeout: waitLong}
		c, err = d.Dial(network, to.String())
		return err
	}))
	w.tb.Cleanup(func() { c.Close() })
	w.must(c.SetDeadline(time.Now().Add(waitLong)))
	return c
}

// silence is how long nothing must come for it to be no answer.
const silence = time.Second

// reaches reports whether the pod gets a byte back. What is not expected to come
// is waited for less long.
func (w *world) reaches(network, to string, expected bool) bool {
	wait := silence
	if expected {
		wait = waitLong
	}
	var n int
	_ = w.pod.Do(func() error { // an error is no answer
		c, err := net.DialTimeout(network, to, wait)
		if err != nil {
			return err
		}
		defer c.Close()
		if err := c.SetDeadline(time.Now().Add(wait)); err != nil {
			return err
		}
		if _, err := c.Write([]byte("x")); err != nil {
			return err
		}
		n, err = c.Read(make([]byte, 1))
		return err
	})
	return n == 1
}

// refuses reports whether the node refuses what the outside host sends to a port:
// other than that it may only be silent.
func (w *world) refuses(network string, to netip.AddrPort) bool {
	w.tb.Helper()
	err := w.outside.Do(func() error {
		d := net.Dialer{Timeout: silence}
		c, err := d.Dial(network, to.String())
		if err != nil {
			return err
		}
		defer c.Close()
		if err := c.SetDeadline(time.Now().Add(silence)); err != nil {
			return err
		}
		if _, err := c.Write([]byte("x")); err != nil {
			return err
		}
		_, err = c.Read(make([]byte, 1))
		return err
	})
	var slow net.Error
	if !errors.Is(err, syscall.ECONNREFUSED) && (!errors.As(err, &slow) || !slow.Timeout()) {
		w.tb.Errorf("%s %s: %v", network, to, err)
	}
	return errors.Is(err, syscall.ECONNREFUSED)
}

// ping sends an echo request with that identifier from the pod and waits for its
// answer.
func (w *world) ping(f family, id uint16) error {
	buf := packet.Echo(make([]byte, packet.MaxSize), packet.EchoHeader{
		Src: f.pod, Dst: f.outside, ID: id, Seq: 7,
	}, []byte("hello"))
	return w.pod.Do(func() error {
		domain, proto, head := unix.AF_INET6, unix.IPPROTO_ICMPV6, 40
		var to unix.Sockaddr = &unix.SockaddrInet6{Addr: f.outside.As16()}
		if f.outside.Is4() {
			domain, proto, head, to = unix.AF_INET, unix.IPPROTO_ICMP, 20, &unix.SockaddrInet4{Addr: f.outside.As4()}
		}
		fd, err := unix.Socket(domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC, proto)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		tv := unix.NsecToTimeval(int64(waitLong))
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
			return err
		}
		message := buf[packet.VNetLen+head:]
		if err := unix.Sendto(fd, message, 0, to); err != nil {
			return err
		}
		for {
			in := make([]byte, 1500)
			n, _, err := unix.Recvfrom(fd, in, 0)
			if errors.Is(err, unix.EINTR) {
				continue
			}
			if err != nil {
				return err
			}
			in = in[:n]
			if f.outside.Is4() {
				in = in[head:]
			}
			// Type aside and checksum, the answer is the question.
			if len(in) == len(message) && in[0] != message[0] && bytes.Equal(in[4:], message[4:]) {
				return nil
			}
		}
	})
}

func TestMain(m *testing.M) {
	if args := os.Getenv(agentEnv); args != "" {
		if err := agent(args); err != nil {
			fmt.Fprintln(os.Stderr, "agent:", err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// tunPort is a TUN as the router sees it.
type tunPort struct{ *kernel.TUN }

func (p tunPort) Write(buf []byte) error {
	_, err := p.TUN.Write(buf)
	return err
}

// agent is the process of the node: the router with a pod and the way outside.
func agent(args string) error {
	var mode, path string
	var podIndex, hostIndex, n, held int
	if _, err := fmt.Sscan(args, &mode, &podIndex, &hostIndex, &n, &held, &path); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	podNS, err := kernel.NamespaceFromFD(firstFD - 1)
	if err != nil {
		return err
	}
	pod, err := attach(podNS, podTUN, podIndex)
	if err != nil {
		return err
	}
	host, err := attach(nil, hostTUN, hostIndex)
	if err != nil {
		return err
	}
	flows, err := flow.Open(flow.Config{Path: path, Slots: 1 << 12, Epoch: "test"})
	if err != nil {
		return err
	}
	r := datapath.New(datapath.Config{Flows: flows, Clock: kernel.BootClock})
	t := tables(pod)
	var wg sync.WaitGroup
	switch mode {
	case "raw":
		var fds []int
		for i := range held {
			fds = append(fds, firstFD+i)
		}
		in := r.NewInputs(portRaw)
		raw, err := rawport.New(rawport.Config{
			Out: func(b []byte) { in.Deliver(b) }, Send: tunPort{host}.Write, Adopt: fds,
			First: firstPort, Ports: n, Most: most, MTU: mtu, Refuse: new(netstack.HostGuard).Refuse,
		})
		if err != nil {
			return err
		}
		t.Ports[portRaw].Port = raw
		wg.Go(func() { report(raw.Run(ctx)) })
	default:
		in := r.NewInputs(portSocket)
		stack, err := netstack.New(netstack.Config{MTU: mtu, Out: func(b []byte) { in.Deliver(b) }})
		if err != nil {
			return err
		}
		t.Ports[portSocket].Port = stack
		t.Masquerade = datapath.NoPort
		route(t, "0.0.0.0/0", portSocket)
		route(t, "::/0", portSocket)
		wg.Go(func() { report(stack.Run(ctx)) })
	}
	workers, err := datapath.NewWorkers(r, 1)
	if err != nil {
		return err
	}
	for id, err := range workers.Publish(t) {
		return fmt.Errorf("port %d: %w", id, err)
	}
	fmt.Print("r")
	err = workers.Run(ctx)
	wg.Wait()
	return err
}

// attach waits until nobody has the device: a program that is being started may
// have a copy of the test's descriptor for a moment.
func attach(ns *kernel.Namespace, name string, index int) (*kernel.TUN, error) {
	until := time.Now().Add(waitLong)
	for {
		t, err := kernel.AttachTUN(ns, name, index)
		if !errors.Is(err, kernel.ErrBusy) || time.Now().After(until) {
			return t, err
		}
		time.Sleep(time.Millisecond)
	}
}

// report says why something ended that should not have.
func report(err error) {
	if !errors.Is(err, context.Canceled) {
		fmt.Fprintln(os.Stderr, "agent:", err)
	}
}

// tables has a pod, sockets and the way outside, and nothing else.
func tables(pod *kernel.TUN) *datapath.Tables {
	services, _ := proxy.Compile(proxy.Input{})
	policies, _ := policy.Compile(nil)
	t := &datapath.Tables{
		Ports: make([]datapath.PortEntry, portRaw+1), Routes: new(bart.Table[datapath.Route]), Services: services, Policy: policies,
		Netstack: portSocket, Masquerade: portRaw,
	}
	t.Ports[portPod] = datapath.PortEntry{Port: tunPort{pod}, Kind: datapath.KindPod, Gen: 1, MTU: mtu, Name: "pod"}
	t.Ports[portSocket] = datapath.PortEntry{Kind: datapath.KindNetstack, Gen: 2, MTU: 65535, Name: "netstack"}
	t.Ports[portRaw] = datapath.PortEntry{Kind: datapath.KindOutside, Gen: 3, MTU: mtu, Name: "outside"}
	route(t, "0.0.0.0/0", portRaw)
	route(t, "::/0", portRaw)
	for _, f := range families() {
		t.Ports[portPod].Addrs = append(t.Ports[portPod].Addrs, packet.AddrFrom(f.pod))
		t.Ports[portRaw].Addrs = append(t.Ports[portRaw].Addrs, packet.AddrFrom(f.node))
		route(t, f.pod.String()+"/"+strconv.Itoa(f.pod.BitLen()), portPod)
	}
	return t
}

func route(t *datapath.Tables, prefix string, port datapath.PortID) {
	t.Routes.Insert(netip.MustParsePrefix(prefix), datapath.Route{Port: port})
}
