package packet_test

import (
	"testing"

	"github.com/netctl/netctl/internal/packet"
	"github.com/netctl/netctl/internal/packet/packettest"
)

// BenchmarkForward is what the router does with a packet of a known flow.
func BenchmarkForward(b *testing.B) {
	for name, s := range map[string]packettest.Spec{
		"tcp4":   {Src: a4, Dst: b4, Proto: 6, Flags: packet.TCPAck, Payload: make([]byte, 100)},
		"udp4":   {Src: a4, Dst: b4, Payload: make([]byte, 100)},
		"tcp6":   {Src: a6, Dst: b6, Proto: 6, Flags: packet.TCPAck, Payload: make([]byte, 100)},
		"super4": {Src: a4, Dst: b4, Proto: 6, Flags: packet.TCPAck, Payload: make([]byte, 60000), GSOSize: 1380},
		"super6": {Src: a6, Dst: b6, Proto: 6, Flags: packet.TCPAck, Payload: make([]byte, 60000), GSOSize: 1360},
	} {
		b.Run(name, func(b *testing.B) {
			p := &packet.Packet{Buf: s.Build()}
			rw := [2]packet.Rewrite{*rewriteOf(s), *rewriteOf(packettest.Spec{Src: s.Dst, Dst: s.Src})}
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if packet.Parse(p) != packet.FaultNone {
					b.Fatal("fault")
				}
				p.Apply(&rw[i&1])
			}
		})
	}
}

func BenchmarkParse(b *testing.B) {
	p := &packet.Packet{Buf: packettest.Spec{Src: a4, Dst: b4, Proto: 6}.Build()}
	for b.Loop() {
		packet.Parse(p)
	}
}

func BenchmarkDecrementTTL(b *testing.B) {
	p := &packet.Packet{Buf: packettest.Spec{Src: a4, Dst: b4, Proto: 6}.Build()}
	packet.Parse(p)
	for b.Loop() {
		p.IP()[8] = 64
		p.DecrementTTL()
	}
}

func BenchmarkSegment(b *testing.B) {
	buf := packettest.Spec{Src: a4, Dst: b4, Proto: 6, Flags: packet.TCPAck, Payload: make([]byte, 62100), GSOSize: 1380}.Build()
	dst := make([]byte, 1500)
	var s packet.Segmenter
	b.SetBytes(62100)
	for b.Loop() {
		s.Reset(buf, 1420)
		for ok := true; ok; {
			_, ok = s.Next(dst)
		}
	}
}

func BenchmarkCoalesce(b *testing.B) {
	buf := packettest.Spec{Src: a4, Dst: b4, Proto: 6, Flags: packet.TCPAck, Payload: make([]byte, 62100), GSOSize: 1380}.Build()
	var s packet.Segmenter
	var segs [][]byte
	s.Reset(buf, 1420)
	for {
		dst := make([]byte, 1500)
		n, ok := s.Next(dst)
		if !ok {
			break
		}
		segs = append(segs, dst[:n])
	}
	var c packet.Coalescer
	b.SetBytes(62100)
	for b.Loop() {
		for _, ip := range segs {
			c.Add(ip)
		}
		if len(c.Flush()) != 1 {
			b.Fatal("not merged")
		}
	}
}
