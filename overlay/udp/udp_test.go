package udp

import (
	"bytes"
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// batch is memory for Receive.
type batch struct {
	bufs            [][]byte
	sizes, segments []int
	from            []netip.AddrPort
}

func newBatch() *batch {
	b := &batch{sizes: make([]int, Batch), segments: make([]int, Batch), from: make([]netip.AddrPort, Batch)}
	for range Batch {
		b.bufs = append(b.bufs, make([]byte, 1<<16))
	}
	return b
}

func listenTest(t testing.TB, gso bool) *Sockets {
	t.Helper()
	s, err := Listen(0, Options{GSO: gso, GRO: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func (s *Sockets) at(t testing.TB, a string) (netip.AddrPort, int) {
	t.Helper()
	to := netip.AddrPortFrom(netip.MustParseAddr(a), s.Port())
	for i, q := range s.queues {
		if q == s.to(to.Addr()) {
			return to, i
		}
	}
	t.Skipf("no socket for %s", a)
	return to, 0
}

// TestPieces sends many datagrams in one piece and looks at what comes out: with
// GSO, loopback hands it over in one.
func TestPieces(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, addr string
		gso        bool
		size, all  int
	}{
		{"v4", "127.0.0.1", true, 200, 2000},
		{"v6", "::1", true, 1452, 1452*45 - 100},
		{"one", "127.0.0.1", true, 1000, 1000},
		{"without GSO", "127.0.0.1", false, 200, 1990},
		{"most", "::1", false, 1000, 64000},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			a, b := listenTest(t, tt.gso), listenTest(t, true)
			to, queue := b.at(t, tt.addr)
			want := make([]byte, tt.all)
			for i := range want {
				want[i] = byte(i / 7)
			}
			if err := a.Send(want, tt.size, to); err != nil {
				t.Fatal(err)
			}
			var got []byte
			pieces := 0
			for in := newBatch(); len(got) < len(want); {
				n, err := b.Receive(queue, in.bufs, in.sizes, in.segments, in.from)
				if err != nil {
					t.Fatal(err)
				}
				pieces += n
				for i := range n {
					if in.segments[i] != min(tt.size, in.sizes[i]) {
						t.Errorf("piece of %d bytes in datagrams of %d, want %d", in.sizes[i], in.segments[i], tt.size)
					}
					if f := in.from[i]; f.Port() != a.Port() || f.Addr() != to.Addr() {
						t.Errorf("from %s", f)
					}
					got = append(got, in.bufs[i][:in.sizes[i]]...)
				}
			}
			if !bytes.Equal(got, want) {
				t.Error("something else came")
			}
			if tt.gso && pieces != 1 {
				t.Errorf("%d pieces, want 1", pieces)
			}
		})
	}
}

func TestInterruptAndClose(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(*Sockets){
		"interrupt": (*Sockets).Interrupt, "close": func(s *Sockets) { _ = s.Close() },
	} {
		s := listenTest(t, true)
		ended := make(chan error, s.Queues())
		for q := range s.Queues() {
			go func() {
				in := newBatch()
				_, err := s.Receive(q, in.bufs, in.sizes, in.segments, in.from)
				ended <- err
			}()
		}
		time.Sleep(10 * time.Millisecond)
		end(s)
		for range s.Queues() {
			if err := <-ended; !errors.Is(err, net.ErrClosed) {
				t.Errorf("%s: got %v, want net.ErrClosed", name, err)
			}
		}
		if name == "close" {
			if err := s.Send([]byte("x"), 1, netip.MustParseAddrPort("127.0.0.1:9")); !errors.Is(err, net.ErrClosed) {
				t.Errorf("send after close: %v", err)
			}
		}
	}
}

func TestAdopt(t *testing.T) {
	t.Parallel()
	a := listenTest(t, true)
	dup := func() (out []int) {
		for _, fd := range a.FDs() {
			d, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, d)
		}
		return out
	}
	b, err := Adopt(dup(), Options{GRO: true})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if b.Port() != a.Port() || b.Queues() != a.Queues() {
		t.Errorf("port %d with %d queues, want %d with %d", b.Port(), b.Queues(), a.Port(), a.Queues())
	}
	if s, err := Adopt(append(dup(), dup()...), Options{GSO: true, GRO: true}); err == nil {
		t.Errorf("two sockets of a family were adopted: %v", s.FDs())
	}
	other := listenTest(t, true)
	mixed := []int{dup()[0]}
	for _, fd := range other.FDs()[1:] {
		d, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		mixed = append(mixed, d)
	}
	if s, err := Adopt(mixed, Options{GSO: true, GRO: true}); err == nil && s.Queues() > 1 {
		t.Error("sockets on two ports were adopted")
	}
}

// FuzzControl gives the parser of control messages any bytes.
func FuzzControl(f *testing.F) {
	f.Add([]byte{20, 0, 0, 0, 0, 0, 0, 0, 17, 0, 0, 0, 104, 0, 0, 0, 200, 0, 0, 0}, 1000)
	f.Fuzz(func(t *testing.T, oob []byte, whole int) {
		if n := groSize(oob, whole); whole > 0 && (n < 1 || n > whole) {
			t.Errorf("datagrams of %d bytes in a piece of %d", n, whole)
		}
	})
}

func TestSendDoesNotAllocate(t *testing.T) {
	// Not parallel: it counts allocations.
	for _, gso := range []bool{true, false} {
		a, b := listenTest(t, gso), listenTest(t, true)
		to, queue := b.at(t, "127.0.0.1")
		buf, in := make([]byte, 20000), newBatch()
		got := testing.AllocsPerRun(100, func() {
			if err := a.Send(buf, 1000, to); err != nil {
				t.Error(err)
			}
			for n := 0; n < len(buf); {
				k, err := b.Receive(queue, in.bufs, in.sizes, in.segments, in.from)
				if err != nil {
					t.Fatal(err)
				}
				for _, size := range in.sizes[:k] {
					n += size
				}
			}
		})
		if got != 0 {
			t.Errorf("gso %v: %v allocations", gso, got)
		}
	}
}

// TestSelfTest holds the self-test against this machine's kernel, which is no
// broken one, and against sockets that do the wrong thing.
func TestSelfTest(t *testing.T) {
	t.Parallel()
	if gso, gro := SelfTest(); gso != nil || gro != nil {
		t.Errorf("gso %v, gro %v", gso, gro)
	}
	to, from, addr, err := testPair(unix.AF_INET)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(to)
	defer unix.Close(from)
	if err := testJoined(to, from, addr); err == nil {
		t.Error("a socket that joins nothing passes for one that does")
	}
	for range testCount - 1 { // what that left
		if _, _, err := unix.Recvfrom(to, make([]byte, testSize), 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.SetsockoptInt(to, unix.IPPROTO_UDP, unix.UDP_GRO, 1); err != nil {
		t.Fatal(err)
	}
	if err := testCut(to, from, addr, 0); err == nil {
		t.Error("datagrams that arrive otherwise than they were sent pass for good ones")
	}
}

// TestCardWithoutChecksums has the kernel refuse to cut, as it does for such
// cards: nothing is lost, and it is not asked again.
func TestCardWithoutChecksums(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		errno  unix.Errno
		off    bool
		narrow bool
	}{{"no checksum offload", unix.EIO, true, false}, {"too long for the way", unix.EINVAL, false, true}, {"too long", unix.EMSGSIZE, false, true}} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			c, err := net.ListenUDP("udp4", &net.UDPAddr{})
			if err != nil {
				t.Fatal(err)
			}
			pieces := 0
			a, err := build([]*net.UDPConn{c}, Options{GSO: true}, func(fd uintptr, hdrs []mmsghdr) (int, unix.Errno) {
				if hdrs[0].hdr.Control != nil {
					pieces++
					return 0, tt.errno
				}
				return sendmmsgRaw(fd, hdrs)
			})
			if err != nil {
				t.Fatal(err)
			}
			defer a.Close()
			b := listenTest(t, true)
			to, queue := b.at(t, "127.0.0.1")
			in, got := newBatch(), 0
			for range 2 {
				if err := a.Send(make([]byte, 1000), 300, to); errors.Is(err, ErrNarrow) != tt.narrow || err != nil && !tt.narrow {
					t.Errorf("got %v", err)
				}
			}
			for got < 2000 {
				n, err := b.Receive(queue, in.bufs, in.sizes, in.segments, in.from)
				if err != nil {
					t.Fatal(err)
				}
				for _, size := range in.sizes[:n] {
					got += size
				}
			}
			if want := map[bool]int{true: 1, false: 2}[tt.off]; pieces != want || a.GSO() == tt.off {
				t.Errorf("the kernel was asked %d times, want %d; GSO is on: %v", pieces, want, a.GSO())
			}
			if want := map[bool]uint64{true: 1}[tt.off]; a.Refused() != want {
				t.Errorf("counted %d times", a.Refused())
			}
		})
	}
}

// TestReceiveOff has datagrams come one by one.
func TestReceiveOff(t *testing.T) {
	t.Parallel()
	a := listenTest(t, true)
	b, err := Listen(0, Options{GSO: true})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	to, queue := b.at(t, "127.0.0.1")
	if err := a.Send(make([]byte, 900), 300, to); err != nil {
		t.Fatal(err)
	}
	in, pieces := newBatch(), 0
	for got := 0; got < 900; {
		n, err := b.Receive(queue, in.bufs, in.sizes, in.segments, in.from)
		if err != nil {
			t.Fatal(err)
		}
		for i, size := range in.sizes[:n] {
			if pieces++; in.segments[i] != size {
				t.Errorf("%d bytes in datagrams of %d", size, in.segments[i])
			}
			got += size
		}
	}
	if pieces != 3 {
		t.Errorf("%d pieces, want 3", pieces)
	}
}

func TestLongestWhole(t *testing.T) {
	t.Parallel()
	s := listenTest(t, true)
	if got := s.LongestWhole(netip.MustParseAddrPort("127.0.0.1:9")); got < 1280 {
		t.Errorf("%d bytes on loopback", got)
	}
	if got := s.LongestWhole(netip.MustParseAddrPort("[::1]:9")); got != 0 && got < 1280 {
		t.Errorf("%d bytes on loopback", got)
	}
}
