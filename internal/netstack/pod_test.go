package netstack_test

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"

	"github.com/netctl/netctl/internal/netstack"
	"github.com/netctl/netctl/internal/packet"
)

// The addresses of the test. The pod speaks to documentation addresses; the
// dialers of the stack under test turn them into loopback.
var (
	pod4, pod6 = netip.MustParseAddr("10.1.0.5"), netip.MustParseAddr("fd00:1::5")
	out4, out6 = netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")
)

// family is one of the two address families, for tests that run in both.
type family struct {
	name      string
	pod, out  netip.Addr
	loopback  netip.Addr
	proto     tcpip.NetworkProtocolNumber
	icmpProto uint8
}

func families(t testing.TB) []family {
	t.Helper()
	all := []family{{"ipv4", pod4, out4, netip.MustParseAddr("127.0.0.1"), ipv4.ProtocolNumber, packet.ProtoICMP}}
	l, err := net.Listen("tcp", "[::1]:0")
	if err != nil {
		t.Logf("ipv6 left out: %v", err)
		return all
	}
	l.Close()
	return append(all, family{"ipv6", pod6, out6, netip.IPv6Loopback(), ipv6.ProtocolNumber, packet.ProtoICMPv6})
}

// toLoopback turns the test's outside into loopback.
func toLoopback(dst netip.AddrPort) netip.AddrPort {
	switch dst.Addr() {
	case out4:
		return netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), dst.Port())
	case out6:
		return netip.AddrPortFrom(netip.IPv6Loopback(), dst.Port())
	}
	return dst
}

// network is a stack under test with a pod beside it.
type network struct {
	stack *netstack.Stack
	pod   *pod
}

// start makes a network; change may adapt the configuration.
func start(t testing.TB, change func(*netstack.Config)) *network {
	t.Helper()
	p := newPod(t)
	t.Cleanup(p.stack.Destroy)
	s := startStack(t, p, change)
	p.send = s.Write
	return &network{stack: s, pod: p}
}

// startStack runs a stack beside a pod, which does not use it yet.
func startStack(t testing.TB, p *pod, change func(*netstack.Config)) *netstack.Stack {
	t.Helper()
	cfg := netstack.Config{
		Refuse: func(netip.Addr) error { return nil },
		DialTCP: func(ctx context.Context, dst netip.AddrPort) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "tcp", toLoopback(dst).String())
		},
		DialUDP: func(_ context.Context, dst netip.AddrPort) (*net.UDPConn, error) {
			return net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(toLoopback(dst)))
		},
	}
	if p != nil {
		cfg.Out = p.receive
	}
	if change != nil {
		change(&cfg)
	}
	s, err := netstack.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan struct{})
	go func() {
		defer close(ran)
		_ = s.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		select {
		case <-ran:
		case <-time.After(patience):
			t.Error("Run did not return")
		}
	})
	return s
}

// pod is a gVisor stack that plays a pod with offloads, as a TUN gives them.
type pod struct {
	stack      *stack.Stack
	dispatcher stack.NetworkDispatcher
	send       func([]byte) error

	mu   sync.Mutex
	tap  func(buf []byte) // guarded by mu; sees everything that arrives
	bufs sync.Pool
}

func newPod(t testing.TB) *pod {
	t.Helper()
	p := &pod{bufs: sync.Pool{New: func() any { return new([packet.MaxSize]byte) }}}
	p.stack = stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, ipv6.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol},
	})
	if err := p.stack.CreateNIC(1, p); err != nil {
		t.Fatal(err)
	}
	for proto, a := range map[tcpip.NetworkProtocolNumber]netip.Addr{ipv4.ProtocolNumber: pod4, ipv6.ProtocolNumber: pod6} {
		addr := tcpip.ProtocolAddress{Protocol: proto, AddressWithPrefix: tcpip.AddrFromSlice(a.AsSlice()).WithPrefix()}
		if err := p.stack.AddProtocolAddress(1, addr, stack.AddressProperties{}); err != nil {
			t.Fatal(err)
		}
	}
	p.stack.SetRouteTable([]tcpip.Route{{Destination: header.IPv4EmptySubnet, NIC: 1}, {Destination: header.IPv6EmptySubnet, NIC: 1}})
	return p
}

// watch sets the tap and returns a function that takes it off.
func (p *pod) watch(tap func(buf []byte)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.tap = tap
}

// receive is the Config.Out of the stack under test.
func (p *pod) receive(buf []byte) {
	p.mu.Lock()
	tap := p.tap
	p.mu.Unlock()
	if tap != nil {
		tap(buf)
	}
	if p := (packet.Packet{Buf: buf}); packet.Parse(&p) != packet.FaultNone || p.Tuple.Src.Netip().IsLoopback() {
		return // gVisor logs packets from loopback
	}
	proto := ipv4.ProtocolNumber
	if buf[packet.VNetLen]>>4 == 6 {
		proto = ipv6.ProtocolNumber
	}
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(buf[packet.VNetLen:])})
	p.dispatcher.DeliverNetworkPacket(proto, pkt)
	pkt.DecRef()
}

func (p *pod) WritePackets(list stack.PacketBufferList) (int, tcpip.Error) {
	buf := p.bufs.Get().(*[packet.MaxSize]byte)
	defer p.bufs.Put(buf)
	for _, pkt := range list.AsSlice() {
		n := packet.VNetLen
		for _, part := range pkt.AsSlices() {
			n += copy(buf[n:], part)
		}
		var v packet.VNet
		if g := pkt.GSOOptions; g.NeedsCsum {
			l3, l4 := len(pkt.NetworkHeader().Slice()), len(pkt.TransportHeader().Slice())
			v = packet.VNet{Flags: packet.VNetNeedsCsum, HdrLen: uint16(l3 + l4), ChecksumStart: uint16(l3), ChecksumField: g.CsumOffset}
			if n-packet.VNetLen-l3-l4 > int(g.MSS) {
				v.GSOSize, v.GSOType = g.MSS, packet.GSOTCPv4
				if g.Type == stack.GSOTCPv6 {
					v.GSOType = packet.GSOTCPv6
				}
			}
		}
		v.Put(buf[:])
		_ = p.send(buf[:n])
		clear(buf[:n]) // Write must not have kept it
	}
	return list.Len(), nil
}

func (*pod) MTU() uint32                             { return 1420 }
func (*pod) SetMTU(uint32)                           {}
func (*pod) MaxHeaderLength() uint16                 { return 0 }
func (*pod) LinkAddress() tcpip.LinkAddress          { return "" }
func (*pod) SetLinkAddress(tcpip.LinkAddress)        {}
func (p *pod) Attach(d stack.NetworkDispatcher)      { p.dispatcher = d }
func (p *pod) IsAttached() bool                      { return p.dispatcher != nil }
func (*pod) Wait()                                   {}
func (*pod) Close()                                  {}
func (*pod) SetOnCloseAction(func())                 {}
func (*pod) AddHeader(*stack.PacketBuffer)           {}
func (*pod) ParseHeader(*stack.PacketBuffer) bool    { return true }
func (*pod) ARPHardwareType() header.ARPHardwareType { return header.ARPHardwareNone }
func (*pod) GSOMaxSize() uint32                      { return 65535 }
func (*pod) SupportedGSO() stack.SupportedGSO        { return stack.HostGSOSupported }
func (*pod) Capabilities() stack.LinkEndpointCapabilities {
	return stack.CapabilityRXChecksumOffload
}

func full(ap netip.AddrPort) tcpip.FullAddress {
	return tcpip.FullAddress{NIC: 1, Addr: tcpip.AddrFromSlice(ap.Addr().AsSlice()), Port: ap.Port()}
}

// dial opens a TCP connection from the pod.
func (n *network) dial(ctx context.Context, f family, port uint16) (*gonet.TCPConn, error) {
	return gonet.DialContextTCP(ctx, n.pod.stack, full(netip.AddrPortFrom(f.out, port)), f.proto)
}

// mustDial is dial, closed at the end of the test.
func (n *network) mustDial(t testing.TB, f family, port uint16) *gonet.TCPConn {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c, err := n.dial(ctx, f, port)
	if err != nil {
		t.Fatalf("dial: %v", err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// listen runs a TCP server on loopback until the end of the test.
func listen(t testing.TB, f family, serve func(*net.TCPConn)) uint16 {
	t.Helper()
	l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(f.loopback, 0)))
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.AcceptTCP()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				serve(c)
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		wg.Wait()
	})
	return l.Addr().(*net.TCPAddr).AddrPort().Port()
}

// patience is how long a test waits for what must come: longer than a loaded
// machine needs under the race detector.
const patience = time.Minute

// eventually waits until ok holds.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s", patience, what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}
