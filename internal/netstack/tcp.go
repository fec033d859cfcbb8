package netstack

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"

	"github.com/netctl/netctl/internal/packet"
	"github.com/netctl/netctl/internal/quota"
	"github.com/netctl/netctl/internal/splice"
)

// Buffers of one connection in gVisor. The path to a pod is a memory copy, so
// a few super-packets in flight are enough; the receive buffer grows only when
// the outside takes data as fast as the pod gives it. A pod with more than
// crowd connections gets small fixed ones, which bounds what it can pin:
// crowd*2*maxBuffer + ConnsPerPod*2*crowdBuffer.
const (
	minBuffer     = 4 << 10
	defaultBuffer = 256 << 10
	maxBuffer     = 1 << 20
	crowdBuffer   = 64 << 10
	crowd         = 64
)

// The interfaces of gVisor's stack.
const (
	nicPods    tcpip.NICID = 1 + iota // connections that pods open
	nicInbound                        // connections that Dial opens
)

// connKey names a connection as the pod sees it.
type connKey struct {
	src, dst netip.AddrPort
}

// attempt is a SYN on its way: from its arrival until the handshake with the
// pod is done. Owned by the goroutine of connect, stop and cancel guarded by
// Stack.mu.
type attempt struct {
	syn     []byte // virtio-net header and packet, for the answer
	cancel  context.CancelFunc
	stopped bool
}

// stop ends the attempt's dial, now or when it begins. Called with Stack.mu
// held.
func (a *attempt) stop() {
	a.stopped = true
	if a.cancel != nil {
		a.cancel()
	}
}

// startTCP makes the gVisor stack. Any address is ours (promiscuous, spoofing)
// and everything that belongs to no connection comes to unknownTCP.
func (s *Stack) startTCP() error {
	s.stack = stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, ipv6.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol},
		HandleLocal:        false,
	})
	s.link = &link{owner: s, id: nicPods, cfgOut: s.cfg.Out}
	s.inLink = &link{owner: s, id: nicInbound, cfgOut: s.cfg.Inbound}
	if err := s.configureTCP(); err != nil {
		s.stack.Destroy()
		return err
	}
	s.forwarder = tcp.NewForwarder(s.stack, defaultBuffer, s.cfg.Limits.Dials+1, s.connect)
	s.stack.SetTransportProtocolHandler(tcp.ProtocolNumber, s.unknownTCP)
	return nil
}

func (s *Stack) configureTCP() error {
	var (
		sack      = tcpip.TCPSACKEnabled(true)
		congest   = tcpip.CongestionControlOption("cubic")
		moderate  = tcpip.TCPModerateReceiveBufferOption(true)
		receive   = tcpip.TCPReceiveBufferSizeRangeOption{Min: minBuffer, Default: defaultBuffer, Max: maxBuffer}
		send      = tcpip.TCPSendBufferSizeRangeOption{Min: minBuffer, Default: defaultBuffer, Max: maxBuffer}
		waitTime  = tcpip.TCPTimeWaitTimeoutOption(timeWait)
		linger    = tcpip.TCPLingerTimeoutOption(lingerTimeout)
		retries   = tcpip.TCPSynRetriesOption(handshakeRetries)
		transport = []tcpip.SettableTransportProtocolOption{&sack, &congest, &moderate, &receive, &send, &waitTime, &linger, &retries}
	)
	for _, o := range transport {
		if err := s.stack.SetTransportProtocolOption(tcp.ProtocolNumber, o); err != nil {
			return fmt.Errorf("set %T: %s", o, err)
		}
	}
	var routes []tcpip.Route
	for _, l := range []*link{s.link, s.inLink} {
		if err := s.stack.CreateNIC(l.id, l); err != nil {
			return fmt.Errorf("create interface: %s", err)
		}
		if err := s.stack.SetPromiscuousMode(l.id, true); err != nil {
			return fmt.Errorf("accept any destination: %s", err)
		}
		if err := s.stack.SetSpoofing(l.id, true); err != nil {
			return fmt.Errorf("send from any source: %s", err)
		}
		routes = append(routes,
			tcpip.Route{Destination: header.IPv4EmptySubnet, NIC: l.id},
			tcpip.Route{Destination: header.IPv6EmptySubnet, NIC: l.id})
	}
	s.stack.SetRouteTable(routes)
	return nil
}

// unknownTCP is called inside Write for a segment of no known connection. A
// SYN begins an attempt, anything else is answered with a reset.
func (s *Stack) unknownTCP(id stack.TransportEndpointID, pkt *stack.PacketBuffer) bool {
	key := connKey{
		src: netip.AddrPortFrom(addrOf(id.RemoteAddress), id.RemotePort),
		dst: netip.AddrPortFrom(addrOf(id.LocalAddress), id.LocalPort),
	}
	flags := header.TCP(pkt.TransportHeader().Slice()).Flags()
	const handshake = header.TCPFlagSyn | header.TCPFlagAck | header.TCPFlagRst
	on := s.link
	if pkt.NICID == nicInbound {
		on = s.inLink
	}
	if flags&handshake == header.TCPFlagSyn && on == s.link {
		s.admit(key, id, pkt)
		return true
	}
	s.counters.drop(DropNoFlow)
	if flags&header.TCPFlagRst == 0 {
		buf := s.buffer()
		defer s.buffers.Put(buf)
		s.answerReset(buf[:encode(buf[:], pkt)], on)
	}
	return true
}

// admit begins an attempt unless there is one already (a repeated SYN) or a
// bound is reached; then the SYN is dropped and the pod repeats it.
func (s *Stack) admit(key connKey, id stack.TransportEndpointID, pkt *stack.PacketBuffer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped {
		s.counters.drop(DropClosing)
		return
	}
	if _, ok := s.attempts[key]; ok {
		return
	}
	if !s.live.admit(key.tuple()) {
		s.live.disown(key.tuple()) // or the heir would send it here again
		s.returnSYN(pkt)
		return
	}
	admitted := false
	defer func() {
		if !admitted {
			s.live.end(key.tuple())
		}
	}()
	owner := key.src.Addr()
	if s.dials.Take(owner) == quota.None {
		s.counters.drop(DropDialLimit)
		return
	}
	if s.conns.Take(owner) == quota.None {
		s.dials.Give(owner)
		s.counters.drop(DropConnLimit)
		return
	}
	a := &attempt{syn: make([]byte, packet.VNetLen+pkt.Size())}
	encode(a.syn, pkt)
	s.attempts[key] = a
	s.work.Add(1) // connect runs in a goroutine of the forwarder
	if !s.forwarder.HandlePacket(id, pkt) {
		s.counters.drop(DropMalformed)
		delete(s.attempts, key)
		s.dials.Give(owner)
		s.conns.Give(owner)
		s.work.Done()
		return
	}
	admitted = true
}

// returnSYN gives the beginning of a connection to the heir. Its checksum was
// looked at, and may not be in the packet at all.
func (s *Stack) returnSYN(pkt *stack.PacketBuffer) {
	buf := s.buffer()
	defer s.buffers.Put(buf)
	if n := encode(buf[:], pkt); n > 0 {
		packet.VNet{Flags: packet.VNetDataValid}.Put(buf[:])
		s.giveBack(buf[:n], s.link)
	}
}

// connect carries one attempt through: dial, answer, splice. It runs in a
// goroutine of its own and ends with the connection.
func (s *Stack) connect(req *tcp.ForwarderRequest) {
	defer s.work.Done()
	id := req.ID()
	key := connKey{
		src: netip.AddrPortFrom(addrOf(id.RemoteAddress), id.RemotePort),
		dst: netip.AddrPortFrom(addrOf(id.LocalAddress), id.LocalPort),
	}
	defer s.conns.Give(key.src.Addr())
	defer s.live.end(key.tuple())

	var server func(net.Conn)
	if s.cfg.Serve != nil {
		server = s.cfg.Serve(key.dst)
	}
	var host net.Conn
	if server == nil {
		var err error
		if host, err = s.dial(key); err != nil {
			s.answerDial(key, err)
			s.settle(req, key)
			return
		}
		defer host.Close()
	}
	c := &spliced{stack: s, key: key, host: host}
	ep, terr := req.CreateEndpoint(&c.events)
	if terr != nil {
		s.settle(req, key)
		s.counters.handshakes.Add(1)
		splice.ResetOnClose(host)
		return
	}
	c.pod = ep
	if server != nil {
		c.served = &servedConn{TCPConn: gonet.NewTCPConn(&c.events, ep)}
	}
	s.tune(ep, host, s.conns.Held(key.src.Addr()) > crowd)
	wanted := s.register(c) // before it is no attempt any more: Forget must find one of the two
	s.settle(req, key)
	if !wanted {
		c.abort()
		return
	}
	defer s.unregister(c)
	s.counters.opened.Add(1)
	if host != nil {
		splice.ResetOnClose(host) // by the kernel, should this process die
	}
	if server != nil {
		s.counters.served.Add(1)
		if s.heir.Load() != nil {
			c.served.limit(time.Now().Add(servedPatience))
		}
		server(c.served)
	} else {
		c.run()
		splice.FlushOnClose(host)
	}
	c.finish()
}

// dial opens the connection to the outside. Cancelled by Close and Forget.
func (s *Stack) dial(key connKey) (net.Conn, error) {
	to, err := s.destination(packet.ProtoTCP, key.src, key.dst)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), dialTimeout)
	defer cancel()
	s.mu.Lock()
	a := s.attempts[key]
	a.cancel = cancel
	stopped := a.stopped || s.stopped
	s.mu.Unlock()
	if stopped {
		return nil, context.Canceled
	}
	s.counters.dialled.Add(1)
	return s.cfg.DialTCP(ctx, to)
}

// destination returns where something that a pod sends to dst is to be sent.
func (s *Stack) destination(proto uint8, src, dst netip.AddrPort) (netip.AddrPort, error) {
	if s.cfg.Translate != nil {
		to, err := s.cfg.Translate(proto, src, dst)
		if err != nil {
			return to, err
		}
		dst = to
	}
	if err := s.cfg.Refuse(dst.Addr()); err != nil {
		return dst, &refusedError{err}
	}
	return dst, nil
}

// settle ends the attempt. The forwarder forgets it first: it must never know
// more attempts than we do, or it would drop a SYN that we have admitted.
func (s *Stack) settle(req *tcp.ForwarderRequest, key connKey) {
	req.Complete(false)
	s.mu.Lock()
	delete(s.attempts, key)
	s.mu.Unlock()
	s.dials.Give(key.src.Addr())
}

// answerDial tells the pod what happened to its SYN, as the network would.
func (s *Stack) answerDial(key connKey, err error) {
	s.mu.Lock()
	syn := s.attempts[key].syn
	s.mu.Unlock()
	var refused *refusedError
	switch {
	case errors.As(err, &refused):
		s.counters.drop(DropRefused)
		s.answerReset(syn, s.link)
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ECONNRESET):
		s.counters.refused.Add(1)
		s.answerReset(syn, s.link)
	case errors.Is(err, context.Canceled):
		// Closing, or the pod is gone: nobody to tell.
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, syscall.ETIMEDOUT):
		s.counters.timedOut.Add(1)
	default:
		code, ok := unreachable(err)
		if !ok {
			s.counters.drop(DropSocket)
			s.log.Debug("dial for pod", "dst", key.dst, "error", err)
			return
		}
		s.counters.unreachable.Add(1)
		s.answerUnreachable(syn, code)
	}
}

// unreachable translates what a socket says into the ICMP code that made the
// kernel say so; false: the error is not the network's.
func unreachable(err error) (packet.Unreach, bool) {
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return packet.UnreachPort, true
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.EHOSTDOWN):
		return packet.UnreachHost, true
	case errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.ENETDOWN):
		return packet.UnreachNet, true
	case errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EPERM):
		return packet.UnreachAdmin, true
	}
	return 0, false
}

// tune sets what every connection needs: no delays, probes that find a dead
// end on either side, and small buffers for one of a crowd.
func (s *Stack) tune(ep tcpip.Endpoint, host net.Conn, crowded bool) {
	o := ep.SocketOptions()
	o.SetDelayOption(false)
	idle := tcpip.KeepaliveIdleOption(keepaliveIdle)
	interval := tcpip.KeepaliveIntervalOption(keepaliveInterval)
	for _, opt := range []tcpip.SettableSocketOption{&idle, &interval} {
		if err := ep.SetSockOpt(opt); err != nil {
			s.log.Debug("socket option refused", "error", err.String())
		}
	}
	if err := ep.SetSockOptInt(tcpip.KeepaliveCountOption, keepaliveCount); err != nil {
		s.log.Debug("socket option refused", "error", err.String())
	}
	o.SetKeepAlive(true)
	if !crowded {
		return
	}
	o.SetReceiveBufferSize(crowdBuffer, true)
	o.SetSendBufferSize(crowdBuffer, true)
	if t, ok := host.(*net.TCPConn); ok {
		// The kernel's buffers count against this process too. An error
		// means that the connection is gone, which the splice will find.
		_ = t.SetReadBuffer(crowdBuffer)
		_ = t.SetWriteBuffer(crowdBuffer)
	}
}

// register enters an open connection; false: nobody wants it any more, as the stack
// closes or the pod was forgotten during the handshake.
func (s *Stack) register(c *spliced) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if a := s.attempts[c.key]; s.stopped || a != nil && a.stopped {
		return false
	}
	s.open[c] = struct{}{}
	return true
}

func (s *Stack) unregister(c *spliced) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.open, c)
}

// connections returns the open connections that match.
func (s *Stack) connections(match func(*spliced) bool) []*spliced {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []*spliced
	for c := range s.open {
		if match(c) {
			out = append(out, c)
		}
	}
	return out
}

// sweep resets connections on which nothing has moved for too long.
func (s *Stack) sweep() {
	for _, c := range s.connections((*spliced).expired) {
		c.abort()
	}
}

// dialTCP is the default Config.DialTCP.
func dialTCP(ctx context.Context, dst netip.AddrPort) (net.Conn, error) {
	d := net.Dialer{KeepAliveConfig: net.KeepAliveConfig{
		Enable: true, Idle: keepaliveIdle, Interval: keepaliveInterval, Count: keepaliveCount,
	}}
	c, err := d.DialTCP(ctx, "tcp", netip.AddrPort{}, dst)
	if err != nil {
		return nil, err // not a typed nil
	}
	return c, nil
}

// addrOf converts gVisor's address.
func addrOf(a tcpip.Address) netip.Addr {
	addr, _ := netip.AddrFromSlice(a.AsSlice())
	return addr
}
