package lab

import (
	"encoding/binary"
	"slices"
	"strings"
	"testing"
)

func ether(kind uint16, payload ...[]byte) []byte {
	return append(binary.BigEndian.AppendUint16(make([]byte, 12), kind), slices.Concat(payload...)...)
}

func ip4(proto byte, dst [4]byte, payload []byte) []byte {
	h := make([]byte, 20)
	h[0], h[9] = 0x45, proto
	copy(h[16:], dst[:])
	return ether(etherIPv4, h, payload)
}

func ip6(proto byte, payload []byte) []byte {
	h := make([]byte, 40)
	h[0], h[6] = 0x60, proto
	return ether(etherIPv6, h, payload)
}

func udp(src, dst uint16, payload ...byte) []byte {
	h := binary.BigEndian.AppendUint16(nil, src)
	return append(append(binary.BigEndian.AppendUint16(h, dst), 0, 0, 0, 0), payload...)
}

// What the demo proves with a capture is worth what the counting is.
func TestWireTally(t *testing.T) {
	t.Parallel()
	wg := udp(wireGuardPort, wireGuardPort, 4, 0, 0, 0, 9, 9)
	for _, c := range []struct {
		name  string
		frame []byte
		want  string // "wireguard", "link" or "other"
	}{
		{"WireGuard over IPv4", ip4(17, [4]byte{192, 0, 2, 12}, wg), "wireguard"},
		{"WireGuard over IPv6", ip6(17, wg), "wireguard"},
		{"UDP between other ports", ip4(17, [4]byte{192, 0, 2, 12}, udp(53, wireGuardPort, 4, 0, 0, 0)), "other"},
		{"the port, but no message of WireGuard", ip4(17, [4]byte{192, 0, 2, 12}, udp(wireGuardPort, wireGuardPort, 'G', 'E', 'T', ' ')), "other"},
		{"ARP", ether(etherARP, make([]byte, 28)), "link"},
		{"TCP", ip4(6, [4]byte{192, 0, 2, 12}, make([]byte, 20)), "other"},
		{"ping", ip4(1, [4]byte{192, 0, 2, 12}, make([]byte, 8)), "other"},
		{"IGMP report", ip4(2, [4]byte{224, 0, 0, 22}, make([]byte, 16)), "link"},
		{"IGMP to somebody", ip4(2, [4]byte{192, 0, 2, 12}, make([]byte, 16)), "other"},
		{"neighbour solicitation", ip6(58, []byte{135, 0, 0, 0}), "link"},
		{"ping over IPv6", ip6(58, []byte{128, 0, 0, 0}), "other"},
		{"MLD report", ip6(0, []byte{58, 0, 5, 2, 0, 0, 1, 0, 143, 0}), "link"},
		{"ping behind a hop-by-hop header", ip6(0, []byte{58, 0, 5, 2, 0, 0, 1, 0, 128, 0}), "other"},
		{"TCP behind a hop-by-hop header", ip6(0, []byte{6, 0, 5, 2, 0, 0, 1, 0, 1, 1}), "other"},
		{"a header length beyond the frame", ether(etherIPv4, append([]byte{0x4f}, make([]byte, 19)...)), "other"},
		{"a cut IPv6 header", ether(etherIPv6, make([]byte, 39)), "other"},
		{"something else", ether(0x88cc, make([]byte, 30)), "other"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			var w wireTally
			w.count(c.frame)
			got := map[string]int{"wireguard": w.wireGuard, "link": w.neighbours, "other": len(w.others)}
			for what, n := range got {
				if (what == c.want) != (n == 1) {
					t.Errorf("counted as %v, want %s", got, c.want)
					break
				}
			}
			if _, err := w.verdict(); (err == nil) != (c.want == "wireguard") {
				t.Errorf("verdict %v", err)
			}
		})
	}
	var w wireTally
	w.count(ip6(17, append(slices.Clone(wg), "a-secret-that-nobody-on-the-wire-may-read"...)))
	if _, err := w.verdict(); err == nil || !strings.Contains(err.Error(), "readable") {
		t.Errorf("a secret on the wire: %v", err)
	}
}

func FuzzWireTally(f *testing.F) {
	f.Add(ip4(17, [4]byte{192, 0, 2, 12}, nil))
	f.Add(ip6(0, []byte{58, 255, 5, 2, 0, 0, 1, 0}))
	f.Fuzz(func(t *testing.T, frame []byte) {
		var w wireTally
		w.count(frame)
		if n := w.wireGuard + w.neighbours + len(w.others); n > 1 || n == 0 && len(frame) >= etherHeader {
			t.Errorf("counted %d times", n)
		}
	})
}
