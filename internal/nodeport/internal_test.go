package nodeport

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netctl/netctl/internal/model"
)

type nowhere struct{}

func (nowhere) Send([]byte) error         { return nil }
func (nowhere) LocalAddr() netip.AddrPort { return netip.AddrPort{} }
func (nowhere) Close()                    {}

func TestIdleFlowsExpire(t *testing.T) {
	t.Parallel()
	var receive func([]byte)
	s := New(Config{
		Place:  func(netip.Addr) Place { return PlacePod },
		Router: func(bool) netip.Addr { return netip.MustParseAddr("10.1.1.2") },
		Datagrams: func(_, _ netip.AddrPort, f func([]byte)) (Flow, error) {
			receive = f
			return nowhere{}, nil
		},
	})
	defer s.Close()
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	addr := c.LocalAddr().(*net.UDPAddr).AddrPort()
	c.Close()
	l := Listener{Addr: addr, Proto: model.UDP, Owner: "a", Target: netip.MustParseAddrPort("10.1.1.5:53")}
	if err := s.Apply([]Listener{l}); err != nil {
		t.Fatal(err)
	}
	sock := s.current()[keyOf(l)].(*udpListener)
	for _, tt := range []struct {
		replied bool
		idle    time.Duration
		left    int
	}{
		{false, udpUnreplied - time.Second, 1},
		{false, udpUnreplied + time.Second, 0},
		{true, udpReplied - time.Second, 1},
		{true, udpReplied + time.Second, 0},
	} {
		in := &incoming{buf: new([maxDatagram]byte), n: 1, client: netip.MustParseAddrPort("127.0.0.1:9"), asked: addr.Addr()}
		s.flows.receive(sock, in)
		if tt.replied {
			receive([]byte("x"))
		}
		s.flows.expire(time.Now().Add(tt.idle))
		if n := s.Stats().Flows; n != tt.left {
			t.Errorf("replied %t, idle for %s: %d flows, want %d", tt.replied, tt.idle, n, tt.left)
		}
		s.flows.endIf(func(*flow) bool { return true })
	}
}

// control is a control message as the kernel writes it.
func control(level, typ int32, data []byte) []byte {
	b := make([]byte, unix.CmsgSpace(len(data)))
	binary.NativeEndian.PutUint64(b, uint64(unix.CmsgLen(len(data))))
	binary.NativeEndian.PutUint32(b[8:], uint32(level))
	binary.NativeEndian.PutUint32(b[12:], uint32(typ))
	copy(b[unix.SizeofCmsghdr:], data)
	return b
}

func TestDestination(t *testing.T) {
	t.Parallel()
	v6 := func(s string, ifindex byte) []byte {
		a := netip.MustParseAddr(s).As16()
		return append(a[:], ifindex, 0, 0, 0)
	}
	for _, tt := range []struct {
		name    string
		control []byte
		want    string // empty: none
	}{
		{"nothing", nil, ""},
		{"IPv4", control(unix.IPPROTO_IP, unix.IP_PKTINFO, []byte{2, 0, 0, 0, 192, 0, 2, 1, 192, 0, 2, 1}), "192.0.2.1"},
		{"broadcast", control(unix.IPPROTO_IP, unix.IP_PKTINFO, []byte{2, 0, 0, 0, 192, 0, 2, 1, 192, 0, 2, 255}), ""},
		{"too short", control(unix.IPPROTO_IP, unix.IP_PKTINFO, []byte{2, 0, 0, 0, 192, 0, 2, 1}), ""},
		{"IPv6", control(unix.IPPROTO_IPV6, unix.IPV6_PKTINFO, v6("2001:db8::1", 2)), "2001:db8::1"},
		{"link-local", control(unix.IPPROTO_IPV6, unix.IPV6_PKTINFO, v6("fe80::1", 2)), "fe80::1%2"},
		{"multicast", control(unix.IPPROTO_IPV6, unix.IPV6_PKTINFO, v6("ff02::1", 2)), ""},
		{"behind another", bytes.Join([][]byte{
			control(unix.SOL_SOCKET, unix.SO_TIMESTAMP, make([]byte, 16)),
			control(unix.IPPROTO_IP, unix.IP_PKTINFO, []byte{2, 0, 0, 0, 192, 0, 2, 1, 192, 0, 2, 1}),
		}, nil), "192.0.2.1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got := destination(tt.control)
			if tt.want == "" && got.IsValid() || tt.want != "" && got.String() != tt.want {
				t.Errorf("got %s, want %q", got, tt.want)
			}
		})
	}
}

func FuzzDestination(f *testing.F) {
	f.Add(control(unix.IPPROTO_IP, unix.IP_PKTINFO, make([]byte, 12)))
	f.Add(control(unix.IPPROTO_IPV6, unix.IPV6_PKTINFO, make([]byte, 20)))
	f.Fuzz(func(t *testing.T, b []byte) {
		if a := destination(b); a.IsValid() && (a.IsMulticast() || a.Is4In6() && a.Zone() != "") {
			t.Errorf("destination %s", a)
		}
	})
}

func TestSockaddrs(t *testing.T) {
	t.Parallel()
	for _, s := range []string{"192.0.2.1:53", "[2001:db8::1]:53", "[fe80::1%7]:53"} {
		a := netip.MustParseAddrPort(s)
		if got := addrPortOf(sockaddrOf(a)); got != a {
			t.Errorf("%s becomes %s", a, got)
		}
	}
	if addrPortOf(&unix.SockaddrUnix{}).IsValid() {
		t.Error("a unix socket has an address")
	}
}
