package load

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// askers is how many sockets ask in turn, as the processes of a pod do.
const askers = 16

// Names are questions to a name server, at a steady rate. Each has to be answered,
// without an error.
type Names struct {
	every   time.Duration // between two questions
	began   time.Time
	sockets []*net.UDPConn
	answers sequence
	work    sync.WaitGroup
	stop    chan struct{}
}

// StartNames begins to ask a server for the address of a name, so often a second.
func StartNames(from *Place, server netip.AddrPort, name string, rate int) (*Names, error) {
	question, err := new(dns.Msg).SetQuestion(dns.Fqdn(name), dns.TypeA).Pack()
	if err != nil {
		return nil, fmt.Errorf("ask for %s: %w", name, err)
	}
	n := &Names{every: time.Second / time.Duration(rate), began: time.Now(), stop: make(chan struct{})}
	for range askers {
		c, err := from.dialUDP(server)
		if err != nil {
			return nil, errors.Join(err, n.Close())
		}
		n.sockets = append(n.sockets, c)
		n.work.Go(func() { n.receive(c) })
	}
	n.work.Go(func() { n.send(question) })
	return n, nil
}

func (n *Names) send(question []byte) {
	ticker := time.NewTicker(n.every)
	defer ticker.Stop()
	for sent := uint64(0); ; {
		select {
		case <-n.stop:
			return
		case <-ticker.C:
		}
		for due := uint64(time.Since(n.began) / n.every); sent < due; {
			sent++
			binary.BigEndian.PutUint16(question, uint16(sent))
			if _, err := n.sockets[sent%askers].Write(question); err != nil {
				n.answers.fail()
			}
		}
	}
}

// receive takes answers. An answer has the last bits of its question's number; the
// rest of it is that of the newest question which can be meant.
func (n *Names) receive(c *net.UDPConn) {
	buf := make([]byte, 1<<12)
	for {
		size, err := c.Read(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil || size < 12 {
			n.answers.fail() // such as that nobody listens there
			continue
		}
		now := time.Now()
		number := widen(binary.BigEndian.Uint16(buf), uint64(now.Sub(n.began)/n.every)+1)
		if rcode := buf[3] & 0xf; rcode != dns.RcodeSuccess {
			n.answers.fail()
		}
		n.answers.arrive(number, time.Duration(number)*n.every, now)
	}
}

// widen returns the highest number up to newest that ends in the given bits.
func widen(bits uint16, newest uint64) uint64 {
	return newest - uint64(uint16(newest)-bits)
}

// Name implements Load.
func (n *Names) Name() string { return "dns" }

// Cut implements Load.
func (n *Names) Cut() Counts { return n.answers.cut(time.Now()) }

// Flows implements Load.
func (n *Names) Flows(since time.Time) error {
	if n.answers.newest() <= since.Sub(n.began) {
		return errors.New("the name server does not answer")
	}
	return nil
}

// Settle implements Load.
func (n *Names) Settle(ctx context.Context) { wait(ctx, time.Second) }

// Close implements Load.
func (n *Names) Close() error {
	close(n.stop)
	var errs []error
	for _, c := range n.sockets {
		errs = append(errs, c.Close())
	}
	n.work.Wait()
	return errors.Join(errs...)
}
