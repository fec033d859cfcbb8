package offload

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"github.com/netctl/netctl/internal/kernel"
	"github.com/netctl/netctl/internal/packet"
)

const (
	port = 9
	// segment is the payload of one segment of a super-packet, pieces how many it
	// stands for.
	segment = 1000
	pieces  = 4
	// patience bounds the wait for a packet. What is waited for is under way in the
	// same moment, or lost.
	patience = 3 * time.Second
	lookTime = 10 * time.Millisecond
	// udpSegment is UDP_SEGMENT of linux/udp.h.
	udpSegment = 103
)

// peer is the far end of the sockets in the namespace.
type peer struct {
	ns     *kernel.Namespace
	tun    link
	poller *kernel.Poller
	events []kernel.Event
	buf    []byte
	pkt    packet.Packet
}

func newPeer(ns *kernel.Namespace, tun link) (*peer, error) {
	poller, err := kernel.NewPoller()
	if err != nil {
		return nil, err
	}
	if err := poller.Add(tun.FD(), 0); err != nil {
		return nil, errors.Join(err, poller.Close())
	}
	return &peer{ns: ns, tun: tun, poller: poller, events: make([]kernel.Event, 1), buf: make([]byte, packet.MaxSize)}, nil
}

func (p *peer) close() { _ = p.poller.Close() }

// next reads until there is a packet of a protocol for us and leaves it in p.pkt.
// What else a kernel sends by itself is passed over.
func (p *peer) next(proto uint8, family int) error {
	for began := time.Now(); time.Since(began) < patience; {
		n, err := p.tun.Read(p.buf)
		if errors.Is(err, kernel.ErrAgain) {
			if _, err := p.poller.Wait(p.events, int(lookTime/time.Millisecond)); err != nil {
				return err
			}
			continue
		}
		if err != nil {
			return err
		}
		p.pkt.Buf = p.buf[:n]
		fault := packet.Parse(&p.pkt)
		if fault != packet.FaultNone && n > packet.VNetLen && p.buf[1] != packet.GSONone {
			return fmt.Errorf("%w: one contradicts itself (%s)", superError(proto), fault)
		}
		if t := p.pkt.Tuple; fault == packet.FaultNone && t.Proto == proto && t.Dst == packet.AddrFrom(far[family]) && t.DstPort == port {
			return nil
		}
	}
	return os.ErrDeadlineExceeded
}

// superError blames the super-packets of a protocol.
func superError(proto uint8) error {
	if proto == packet.ProtoUDP {
		return errUSO
	}
	return errTSO
}

// collect reads n bytes of payload of a protocol, from one super-packet or several
// packets.
func (p *peer) collect(proto uint8, family, n int, each func()) ([]byte, error) {
	var got []byte
	for len(got) < n {
		if err := p.next(proto, family); err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				err = fmt.Errorf("%w: %d of %d bytes came out of the device", superError(proto), len(got), n)
			}
			return got, err
		}
		got = append(got, p.pkt.IP()[p.pkt.Payload:]...)
		each()
	}
	return got, nil
}

// pattern is n bytes of which no two pieces are alike.
func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i>>8) ^ byte(i*7)
	}
	return b
}

// dial opens a socket in the namespace.
func (p *peer) dial(network string, family int) (net.Conn, error) {
	d := net.Dialer{Timeout: patience}
	var c net.Conn
	err := p.ns.Do(func() error {
		var err error
		c, err = d.DialContext(context.Background(), network, netip.AddrPortFrom(far[family], port).String())
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open a socket for the test: %w", err)
	}
	return c, c.SetDeadline(time.Now().Add(2 * patience))
}

// form is what a packet leaves to the device.
type form int

const (
	whole   form = iota // nothing
	partial             // its checksum
	super               // that, and to be cut into pieces
)

// write sends a packet into the namespace, to where the current one came from.
func (p *peer) write(family int, transport, payload []byte, as form) error {
	t := p.pkt.Tuple
	proto, field := t.Proto, 16
	if proto == packet.ProtoUDP {
		field = 6
		binary.BigEndian.PutUint16(transport[4:], uint16(len(transport)+len(payload)))
	}
	head := ipv4Len
	if family == 1 {
		head = ipv6Len
	}
	buf := make([]byte, packet.VNetLen+head, packet.VNetLen+head+len(transport)+len(payload))
	buf = append(append(buf, transport...), payload...)
	putIP(buf[packet.VNetLen:], family, proto)
	ip := buf[packet.VNetLen:]
	binary.BigEndian.PutUint16(ip[head+field:], pseudo(ip[:head], family, proto, len(ip)-head))
	v := packet.VNet{Flags: packet.VNetNeedsCsum, ChecksumStart: uint16(head), ChecksumField: uint16(field)}
	if as == whole {
		v = packet.VNet{}
		binary.BigEndian.PutUint16(ip[head+field:], ^sum(ip[head:]))
	}
	if as == super {
		v.HdrLen, v.GSOSize = uint16(head+len(transport)), segment
		switch {
		case proto == packet.ProtoUDP:
			v.GSOType = packet.GSOUDPL4
		case family == 0:
			v.GSOType = packet.GSOTCPv4
		default:
			v.GSOType = packet.GSOTCPv6
		}
	}
	v.Put(buf)
	_, err := p.tun.Write(buf)
	if errors.Is(err, kernel.ErrInvalid) && as == super {
		return fmt.Errorf("%w: the device refuses one", superError(proto))
	}
	return err
}

const (
	ipv4Len, ipv6Len = 20, 40
	udpLen, tcpLen   = 8, 20
	hops             = 64
)

// putIP writes the header of a packet from the far end to the near one.
func putIP(ip []byte, family int, proto uint8) {
	if family == 0 {
		ip[0] = 0x45
		binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)))
		ip[6] = 0x40 // do not fragment
		ip[8], ip[9] = hops, proto
		copy(ip[12:], far[0].AsSlice())
		copy(ip[16:], near[0].AsSlice())
		binary.BigEndian.PutUint16(ip[10:], ^sum(ip[:ipv4Len]))
		return
	}
	ip[0] = 0x60
	binary.BigEndian.PutUint16(ip[4:], uint16(len(ip)-ipv6Len))
	ip[6], ip[7] = proto, hops
	copy(ip[8:], far[1].AsSlice())
	copy(ip[24:], near[1].AsSlice())
}

// sum is the Internet checksum of an even number of bytes, not inverted.
func sum(b []byte) uint16 {
	s := uint32(0)
	for ; len(b) > 1; b = b[2:] {
		s += uint32(binary.BigEndian.Uint16(b))
	}
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}

// pseudo is what a checksum holds that is left to the device: the sum of the
// addresses, the protocol and the length.
func pseudo(head []byte, family int, proto uint8, n int) uint16 {
	b := append([]byte(nil), head[12:]...)
	if family == 1 {
		b = append([]byte(nil), head[8:]...)
	}
	return sum(append(b, 0, proto, byte(n>>8), byte(n)))
}

// datagrams tests UDP: one datagram there and back, then a super-packet each way.
func (p *peer) datagrams(family int, supers bool) (err error) {
	c, err := p.dial("udp", family)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	hello := pattern(100)
	if _, err := c.Write(hello); err != nil {
		return err
	}
	if err := p.next(packet.ProtoUDP, family); err != nil {
		return fmt.Errorf("no ordinary packet came: %w", err)
	}
	header := make([]byte, udpLen)
	binary.BigEndian.PutUint16(header, port)
	binary.BigEndian.PutUint16(header[2:], p.pkt.Tuple.SrcPort)
	if err := p.answer(c, family, header, hello, whole); err != nil {
		return fmt.Errorf("an ordinary packet into the device: %w", err)
	}
	if err := p.answer(c, family, header, hello[:90], partial); err != nil {
		return fmt.Errorf("%w: a packet whose checksum was left to the device: %w", errChecksum, err)
	}
	if !supers {
		return nil
	}
	data := pattern(segment*pieces - 100) // the last piece is short
	raw, err := c.(*net.UDPConn).SyscallConn()
	if err != nil {
		return err
	}
	var refused error
	if err := raw.Control(func(fd uintptr) {
		refused = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_UDP, udpSegment, segment)
	}); err != nil || refused != nil {
		return nil // nobody can send such packets here
	}
	if _, err := c.Write(data); err != nil {
		return err
	}
	got, err := p.collect(packet.ProtoUDP, family, len(data), func() {})
	if err == nil {
		err = different(packet.ProtoUDP, got, data, "out of")
	}
	if err != nil {
		return err
	}
	if err := p.write(family, header, data, super); err != nil {
		return err
	}
	for at := 0; at < len(data); at += segment {
		if err := expect(c, data[at:min(at+segment, len(data))]); err != nil {
			return fmt.Errorf("%w: datagram %d of one into the device: %w", errUSO, at/segment, err)
		}
	}
	return nil
}

// answer sends a datagram until it is received: the kernel may not be done yet with
// the device's address.
func (p *peer) answer(c net.Conn, family int, header, data []byte, as form) error {
	for began := time.Now(); ; {
		if err := p.write(family, bytes.Clone(header), data, as); err != nil {
			return err
		}
		err := expectWithin(c, data, patience/30)
		if !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(began) > patience {
			return err
		}
	}
}

// expect reads one datagram.
func expect(c net.Conn, want []byte) error { return expectWithin(c, want, patience) }

func expectWithin(c net.Conn, want []byte, limit time.Duration) error {
	got := make([]byte, 2*segment*pieces)
	if err := c.SetReadDeadline(time.Now().Add(limit)); err != nil {
		return err
	}
	for {
		n, err := c.Read(got)
		switch {
		case err != nil:
			return err
		case n < segment/2 && n != len(want): // sent more than once by answer
		case !bytes.Equal(got[:n], want):
			return fmt.Errorf("%d bytes came, not the %d that were sent", n, len(want))
		default:
			return nil
		}
	}
}

// different says that what came is not what was sent, nil when it is.
func different(proto uint8, got, want []byte, way string) error {
	if bytes.Equal(got, want) {
		return nil
	}
	return fmt.Errorf("%w: %d bytes that came %s the device are not the %d that were sent", superError(proto), len(got), way, len(want))
}

// stream tests TCP: a connection, and many segments at once each way.
func (p *peer) stream(family int, supers bool) (err error) {
	type dialled struct {
		c   net.Conn
		err error
	}
	open := make(chan dialled, 1)
	go func() {
		c, err := p.dial("tcp", family)
		open <- dialled{c, err}
	}()
	handshake := p.accept(family)
	d := <-open
	if err := errors.Join(handshake, d.err); err != nil {
		if d.c != nil {
			_ = d.c.Close()
		}
		return err
	}
	c := d.c
	defer func() {
		_ = c.(*net.TCPConn).SetLinger(0)
		err = errors.Join(err, c.Close())
	}()
	data := pattern(segment * pieces)
	if _, err := c.Write(data); err != nil {
		return err
	}
	var header []byte
	seen, next := uint32(0), binary.BigEndian.Uint32(p.pkt.IP()[p.pkt.L4+4:])
	got, err := p.collect(packet.ProtoTCP, family, len(data), func() {
		h := p.pkt.IP()[p.pkt.L4:]
		if len(p.pkt.IP()) > p.pkt.Payload && seen == 0 {
			next = binary.BigEndian.Uint32(h[4:])
		}
		seen += uint32(len(p.pkt.IP()) - p.pkt.Payload)
		header = tcpHeader(p.pkt.Tuple.SrcPort, binary.BigEndian.Uint32(h[8:]), next+seen, packet.TCPAck)
	})
	if err == nil {
		err = different(packet.ProtoTCP, got, data, "out of")
	}
	if err != nil {
		return err
	}
	if err := p.write(family, header, nil, partial); err != nil {
		return err
	}
	back, as := data, super
	if !supers {
		back, as = data[:segment], partial
	}
	if err := p.write(family, header, back, as); err != nil {
		return err
	}
	in := make([]byte, len(back))
	if err := c.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if n, err := io.ReadFull(c, in); err != nil {
		return fmt.Errorf("%w: %d of %d bytes of one into the device came: %w", errTSO, n, len(in), err)
	}
	return different(packet.ProtoTCP, in, back, "into")
}

// accept is the far end of a handshake. The last packet of it is in p.pkt.
func (p *peer) accept(family int) error {
	if err := p.next(packet.ProtoTCP, family); err != nil {
		return fmt.Errorf("no ordinary packet came: %w", err)
	}
	h := p.pkt.IP()[p.pkt.L4:]
	header := tcpHeader(p.pkt.Tuple.SrcPort, 1, binary.BigEndian.Uint32(h[4:])+1, packet.TCPSyn|packet.TCPAck)
	const mss = 4
	header[12] = (tcpLen + mss) << 2
	header = append(header, 2, mss, segment>>8, segment&0xff)
	if err := p.write(family, header, nil, partial); err != nil {
		return err
	}
	if err := p.next(packet.ProtoTCP, family); err != nil {
		return fmt.Errorf("%w: a packet whose checksum was left to the device was not answered: %w", errChecksum, err)
	}
	return nil
}

func tcpHeader(to uint16, seq, ack uint32, flags uint8) []byte {
	h := make([]byte, tcpLen)
	binary.BigEndian.PutUint16(h, port)
	binary.BigEndian.PutUint16(h[2:], to)
	binary.BigEndian.PutUint32(h[4:], seq)
	binary.BigEndian.PutUint32(h[8:], ack)
	h[12], h[13] = tcpLen<<2, flags
	binary.BigEndian.PutUint16(h[14:], 65535)
	return h
}
