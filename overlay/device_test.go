package overlay_test

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"

	"github.com/netctl/netctl/internal/packet"
	"github.com/netctl/netctl/overlay"
)

// superTUN gives a wireguard-go device super-packets, cut, and takes what it
// opened, put together: what our engine does by itself.
type superTUN struct {
	mtu    int
	in     chan []byte // super-packets, borrowed
	sink   func([][]byte)
	cut    packet.Segmenter
	left   bool
	events chan tun.Event
	closed chan struct{}
	once   sync.Once
	merge  sync.Pool
}

func newSuperTUN(sink func([][]byte)) *superTUN {
	return &superTUN{
		mtu: testMTU, in: make(chan []byte, 16), sink: sink, events: make(chan tun.Event), closed: make(chan struct{}),
		merge: sync.Pool{New: func() any { return new(packet.Coalescer) }},
	}
}

func (s *superTUN) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	n := 0
	for n == 0 {
		if !s.left {
			select {
			case buf := <-s.in:
				if s.cut.Reset(buf, s.mtu) != packet.FaultNone {
					continue
				}
			case <-s.closed:
				return 0, os.ErrClosed
			}
		}
		s.left = true
		for n < len(bufs) {
			size, ok := s.cut.Next(bufs[n][offset:])
			if !ok {
				s.left = false
				break
			}
			sizes[n] = size
			n++
		}
	}
	return n, nil
}

func (s *superTUN) Write(bufs [][]byte, offset int) (int, error) {
	c := s.merge.Get().(*packet.Coalescer)
	defer s.merge.Put(c)
	for _, b := range bufs {
		c.Add(b[offset:])
	}
	s.sink(c.Flush())
	return len(bufs), nil
}

func (s *superTUN) Close() error {
	s.once.Do(func() { close(s.closed); close(s.events) })
	return nil
}

func (*superTUN) File() *os.File             { return nil }
func (s *superTUN) MTU() (int, error)        { return s.mtu, nil }
func (*superTUN) Name() (string, error)      { return "super", nil }
func (s *superTUN) Events() <-chan tun.Event { return s.events }
func (*superTUN) BatchSize() int             { return conn.IdealBatchSize }

// devices are two of them on loopback.
func devices(b *testing.B) *ends {
	e := &ends{received: new(atomic.Int64)}
	keys := []overlay.PrivateKey{newKey(b), newKey(b)}
	tuns, devs := make([]*superTUN, 2), make([]*device.Device, 2)
	ports := make([]string, 2)
	for i := range devs {
		tuns[i] = newSuperTUN(e.count)
		devs[i] = device.NewDevice(tuns[i], conn.NewDefaultBind(), device.NewLogger(device.LogLevelSilent, ""))
		b.Cleanup(devs[i].Close)
		set(b, devs[i], "private_key="+secretHex(b, keys[i]), "listen_port=0")
		if err := devs[i].Up(); err != nil {
			b.Fatal(err)
		}
		text, err := devs[i].IpcGet()
		if err != nil {
			b.Fatal(err)
		}
		for line := range strings.Lines(text) {
			if port, ok := strings.CutPrefix(strings.TrimSpace(line), "listen_port="); ok {
				ports[i] = port
			}
		}
	}
	for i, d := range devs {
		o := 1 - i
		public := keys[o].Public()
		set(b, d, "public_key="+hex.EncodeToString(public[:]), "endpoint=127.0.0.1:"+ports[o],
			"allowed_ip="+netip.PrefixFrom(pod4(byte(o+1)), 24).Masked().String())
	}
	e.send = func(pkt []byte) error { tuns[0].in <- pkt; return nil }
	return e
}

func set(t testing.TB, d *device.Device, lines ...string) {
	t.Helper()
	if err := d.IpcSet(strings.Join(lines, "\n") + "\n"); err != nil {
		t.Fatal(fmt.Errorf("%v: %w", lines, err))
	}
}
