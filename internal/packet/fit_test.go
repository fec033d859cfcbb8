package packet_test

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/netctl/netctl/internal/packet"
	"github.com/netctl/netctl/internal/packet/packettest"
)

func TestLimitSegment(t *testing.T) {
	t.Parallel()
	spec := func(proto uint8, v6, df bool, n, gso int) packettest.Spec {
		s := packettest.Spec{Src: a4, Dst: b4, Proto: proto, DF: df, Payload: make([]byte, n), GSOSize: gso, Flags: 0x10}
		if v6 {
			s.Src, s.Dst = a6, b6
		}
		return s
	}
	tests := []struct {
		name string
		spec packettest.Spec
		mtu  int
		want packet.Fit
		gso  int
	}{
		{"exact", spec(17, false, true, 1472, 0), 1500, packet.FitOK, 0},
		{"one over, DF", spec(17, false, true, 1473, 0), 1500, packet.FitTooBig, 0},
		{"one over, no DF", spec(17, false, false, 1473, 0), 1500, packet.FitFragment, 0},
		{"one over, IPv6", spec(17, true, false, 1453, 0), 1500, packet.FitTooBig, 0},
		{"tcp super-packet fits", spec(6, false, true, 9000, 1460), 1500, packet.FitOK, 1460},
		{"tcp super-packet lowered", spec(6, false, true, 9000, 1460), 1420, packet.FitOK, 1380},
		{"tcp6 super-packet lowered", spec(6, true, false, 9000, 1440), 1420, packet.FitOK, 1360},
		{"tcp super-packet, absurd link", spec(6, false, false, 9000, 1460), 45, packet.FitTooBig, 1460},
		{"tcp super-packet, too many segments", spec(6, false, false, 60000, 1460), 68, packet.FitTooBig, 1460},
		{"udp super-packet fits", spec(17, false, true, 9000, 1472), 1500, packet.FitOK, 1472},
		{"udp super-packet, DF", spec(17, false, true, 9000, 1472), 1420, packet.FitTooBig, 1472},
		{"udp super-packet, no DF", spec(17, false, false, 9000, 1472), 1420, packet.FitFragment, 1472},
		{"udp6 super-packet", spec(17, true, false, 9000, 1452), 1420, packet.FitTooBig, 1452},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p := parse(t, tt.spec.Build())
			if got := p.LimitSegment(tt.mtu); got != tt.want || p.GSOSize != tt.gso {
				t.Errorf("got %v gso_size %d, want %v %d", got, p.GSOSize, tt.want, tt.gso)
			}
			if got := packet.VNetFrom(p.Buf).GSOSize; int(got) != tt.gso {
				t.Errorf("header says gso_size %d, want %d", got, tt.gso)
			}
			check(t, p.Buf)
		})
	}
}

// reassemble puts IPv4 fragments together; every byte must come exactly once.
func reassemble(t *testing.T, frags [][]byte) []byte {
	t.Helper()
	whole := []byte{}
	for i, f := range frags {
		p := parse(t, f)
		if p.FragOffset != len(whole) || p.MoreFrag != (i < len(frags)-1) {
			t.Fatalf("fragment %d: offset %d more %v, have %d bytes", i, p.FragOffset, p.MoreFrag, len(whole))
		}
		hl := int(p.IP()[0]&15) * 4
		whole = append(whole, p.IP()[hl:]...)
	}
	head := bytes.Clone(frags[0][:packet.VNetLen+int(frags[0][packet.VNetLen]&15)*4])
	ip := head[packet.VNetLen:]
	binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)+len(whole)))
	ip[6], ip[7] = ip[6]&0x40, 0
	reseal(head)
	return append(head, whole...)
}

func TestFragment4(t *testing.T) {
	t.Parallel()
	data := bytes.Repeat([]byte("fragment"), 500)
	tests := []struct {
		name string
		spec packettest.Spec
		mtu  int
		want int
	}{
		{"udp", packettest.Spec{Src: a4, Dst: b4, Payload: data, ID: 5}, 1500, 3},
		{"udp with partial checksum", packettest.Spec{Src: a4, Dst: b4, Payload: data, Partial: true}, 1500, 3},
		{"smallest link", packettest.Spec{Src: a4, Dst: b4, Payload: data}, 68, 84},
		{"mtu not a multiple of eight", packettest.Spec{Src: a4, Dst: b4, Payload: data}, 1003, 5},
		{"options", packettest.Spec{Src: a4, Dst: b4, Payload: data, IPOptions: []byte{1, 148, 4, 0, 0, 7, 3, 4}}, 1500, 3},
		{"fits", packettest.Spec{Src: a4, Dst: b4, Payload: data[:100]}, 1500, 1},
		{"mtu too small", packettest.Spec{Src: a4, Dst: b4, Payload: data}, 67, 0},
		{"IPv6", packettest.Spec{Src: a6, Dst: b6, Payload: data}, 1500, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var frags [][]byte
			packet.Fragment4(parse(t, tt.spec.Build()), tt.mtu, func(b []byte) {
				if len(b)-packet.VNetLen > tt.mtu {
					t.Errorf("fragment of %d bytes", len(b)-packet.VNetLen)
				}
				frags = append(frags, bytes.Clone(b))
			})
			if len(frags) != tt.want {
				t.Fatalf("got %d fragments, want %d", len(frags), tt.want)
			}
			if tt.want == 0 {
				return
			}
			tt.spec.Partial = false
			if got, want := reassemble(t, frags), tt.spec.Build(); !bytes.Equal(got, want) {
				t.Errorf("got %x, want %x", got, want)
			}
			if tt.spec.IPOptions == nil {
				return
			}
			for i, f := range frags[1:] {
				if got := f[packet.VNetLen+20 : packet.VNetLen+int(f[packet.VNetLen]&15)*4]; !bytes.Equal(got, []byte{148, 4, 0, 0}) {
					t.Errorf("fragment %d carries options %v, want only the copied one", i+1, got)
				}
			}
		})
	}
}

func TestFragmentOfFragment(t *testing.T) {
	t.Parallel()
	spec := packettest.Spec{Src: a4, Dst: b4, Payload: bytes.Repeat([]byte("fragment"), 500), ID: 5}
	var small [][]byte
	packet.Fragment4(parse(t, spec.Build()), 1500, func(b []byte) {
		packet.Fragment4(parse(t, bytes.Clone(b)), 600, func(b []byte) {
			small = append(small, bytes.Clone(b))
		})
	})
	if got, want := reassemble(t, small), spec.Build(); !bytes.Equal(got, want) {
		t.Errorf("got %x, want %x", got, want)
	}
}

func TestFragmentSuperPacket(t *testing.T) {
	t.Parallel()
	spec := packettest.Spec{Src: a4, Dst: b4, Payload: bytes.Repeat([]byte("0123456789"), 500), GSOSize: 2000, ID: 0xffff}
	var frags [][]byte
	packet.Fragment4(parse(t, spec.Build()), 1500, func(b []byte) { frags = append(frags, bytes.Clone(b)) })
	if len(frags) != 5 {
		t.Fatalf("got %d fragments, want 2+2+1", len(frags))
	}
	for i, at := range []int{0, 2, 4} {
		one := spec
		one.GSOSize = 0
		one.ID += uint16(i)
		one.Payload = spec.Payload[i*2000 : min(i*2000+2000, 5000)]
		got := frags[4]
		if at < 4 {
			got = reassemble(t, frags[at:at+2])
		}
		if !bytes.Equal(got, one.Build()) {
			t.Errorf("datagram %d: got %x", i, got)
		}
	}
}
