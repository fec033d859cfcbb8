package load

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// A datagram of ours: stream, server's index, number, time of sending.
const datagramSize = 64

// Datagrams are numbered UDP packets, at a steady rate on every way and back. A
// stream that began at one server has to stay with it.
type Datagrams struct {
	every   time.Duration // between two numbers
	began   time.Time
	streams []*stream
	servers []*net.UDPConn
	work    sync.WaitGroup
	stop    chan struct{}
}

// stream is one way in both directions.
type stream struct {
	way         Way
	client      *net.UDPConn
	peer        atomic.Pointer[peer] // who serves it, once it was reached
	there, back sequence
	sentThere   uint64 // the sender's own
	sentBack    uint64
}

// peer is the server of a stream, and the address that it sees the client at.
type peer struct {
	server int
	addr   netip.AddrPort
}

// StartDatagrams begins to send so many packets a second on every way, to servers
// that it starts at places.
func StartDatagrams(ways []Way, places []*Place, rate int) (*Datagrams, error) {
	d := &Datagrams{every: time.Second / time.Duration(rate), began: time.Now(), stop: make(chan struct{})}
	for _, p := range places {
		c, err := p.packets(CountPort)
		if err != nil {
			return nil, errors.Join(err, d.Close())
		}
		d.servers = append(d.servers, c)
	}
	for _, w := range ways {
		c, err := w.From.dialUDP(netip.AddrPortFrom(w.To, CountPort))
		if err != nil {
			return nil, errors.Join(err, d.Close())
		}
		d.streams = append(d.streams, &stream{way: w, client: c})
	}
	for i, c := range d.servers {
		d.work.Go(func() { d.receive(c, func(m message, from netip.AddrPort) { d.served(i, m, from) }) })
	}
	for _, s := range d.streams {
		d.work.Go(func() { d.receive(s.client, func(m message, _ netip.AddrPort) { s.answered(m) }) })
	}
	d.work.Go(d.send)
	return d, nil
}

// message is a datagram's content.
type message struct {
	stream, server uint32
	number         uint64
	sent           time.Duration // since the load began
}

func (m message) encode(buf []byte) {
	binary.BigEndian.PutUint32(buf, m.stream)
	binary.BigEndian.PutUint32(buf[4:], m.server)
	binary.BigEndian.PutUint64(buf[8:], m.number)
	binary.BigEndian.PutUint64(buf[16:], uint64(m.sent))
}

func decode(buf []byte) message {
	return message{
		stream: binary.BigEndian.Uint32(buf), server: binary.BigEndian.Uint32(buf[4:]),
		number: binary.BigEndian.Uint64(buf[8:]), sent: time.Duration(binary.BigEndian.Uint64(buf[16:])),
	}
}

// send sends what is due on every stream.
func (d *Datagrams) send() {
	ticker := time.NewTicker(d.every)
	defer ticker.Stop()
	buf := make([]byte, datagramSize)
	for {
		select {
		case <-d.stop:
			return
		case <-ticker.C:
		}
		due := uint64(time.Since(d.began) / d.every)
		for i, s := range d.streams {
			for ; s.sentThere < due; s.sentThere++ {
				message{stream: uint32(i), number: s.sentThere + 1, sent: time.Since(d.began)}.encode(buf)
				if _, err := s.client.Write(buf); err != nil {
					s.there.fail()
				}
			}
			p := s.peer.Load()
			if p == nil {
				s.sentBack = due // it begins with the first that comes
				continue
			}
			for ; s.sentBack < due; s.sentBack++ {
				message{stream: uint32(i), server: uint32(p.server), number: s.sentBack + 1, sent: time.Since(d.began)}.encode(buf)
				if _, err := d.servers[p.server].WriteToUDPAddrPort(buf, p.addr); err != nil {
					s.back.fail()
				}
			}
		}
	}
}

// receive reads datagrams until the end.
func (d *Datagrams) receive(c *net.UDPConn, take func(message, netip.AddrPort)) {
	buf := make([]byte, 2*datagramSize)
	for {
		n, from, err := c.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if m := decode(buf); err == nil && n == datagramSize && int(m.stream) < len(d.streams) {
			take(m, from)
		}
	}
}

// served notes what reached a server.
func (d *Datagrams) served(server int, m message, from netip.AddrPort) {
	s := d.streams[m.stream]
	here := peer{server: server, addr: from}
	if s.peer.CompareAndSwap(nil, &here) || *s.peer.Load() == here {
		s.there.arrive(m.number, m.sent, time.Now())
		return
	}
	s.there.astray()
}

// answered notes what came back.
func (s *stream) answered(m message) {
	if p := s.peer.Load(); p == nil || int(m.server) != p.server {
		s.back.astray()
		return
	}
	s.back.arrive(m.number, m.sent, time.Now())
}

// Name implements Load.
func (d *Datagrams) Name() string { return "udp" }

// Cut implements Load.
func (d *Datagrams) Cut() Counts {
	var c Counts
	now := time.Now()
	for _, s := range d.streams {
		c.Add(s.there.cut(now))
		c.Add(s.back.cut(now))
	}
	return c
}

// Flows returns an error until on every stream something was received that was sent
// after a time.
func (d *Datagrams) Flows(since time.Time) error {
	after := since.Sub(d.began)
	for _, s := range d.streams {
		switch {
		case s.there.newest() <= after:
			return fmt.Errorf("no datagrams come through there: %s", s.way)
		case s.back.newest() <= after:
			return fmt.Errorf("no datagrams come back: %s", s.way)
		}
	}
	return nil
}

// Settle implements Load: what comes later than a second does not come.
func (d *Datagrams) Settle(ctx context.Context) { wait(ctx, time.Second) }

// Close implements Load.
func (d *Datagrams) Close() error {
	close(d.stop)
	var errs []error
	for _, c := range d.servers {
		errs = append(errs, c.Close())
	}
	for _, s := range d.streams {
		errs = append(errs, s.client.Close())
	}
	d.work.Wait()
	return errors.Join(errs...)
}

func wait(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
