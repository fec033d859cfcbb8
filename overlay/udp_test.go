package overlay

import (
	"log/slog"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestGSOSwitch looks at what one batch is for a receiver that takes
// datagrams in one piece: with GSO, loopback hands it over in one.
func TestGSOSwitch(t *testing.T) {
	t.Parallel()
	const size, count = 200, 10
	for _, tt := range []struct {
		name string
		gso  Offload
		want int
	}{
		{"on", OffloadOn, size * count},
		{"off", OffloadOff, size},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			to, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
			if err != nil {
				t.Fatal(err)
			}
			defer to.Close()
			raw, err := to.SyscallConn()
			if err != nil {
				t.Fatal(err)
			}
			var gro error
			if err := raw.Control(func(fd uintptr) { gro = unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_GRO, 1) }); err != nil {
				t.Fatal(err)
			}
			if gro != nil {
				t.Skipf("no UDP GRO in this kernel: %v", gro)
			}
			b := newUDPBind(UDPConfig{GSO: tt.gso}, slog.New(slog.DiscardHandler))
			if _, _, err := b.Open(0); err != nil {
				t.Fatal(err)
			}
			defer b.Close()
			ep, err := b.ParseEndpoint(to.LocalAddr().String())
			if err != nil {
				t.Fatal(err)
			}
			bufs := make([][]byte, count)
			for i := range bufs {
				bufs[i] = make([]byte, size, 1<<16)
			}
			if err := b.Send(bufs, ep); err != nil {
				t.Fatal(err)
			}
			if err := to.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
				t.Fatal(err)
			}
			total := 0
			for total < size*count {
				n, _, err := to.ReadFromUDP(make([]byte, 1<<16))
				if err != nil {
					t.Fatalf("after %d bytes: %v", total, err)
				}
				if n != tt.want {
					t.Fatalf("received a piece of %d bytes, want %d", n, tt.want)
				}
				total += n
			}
		})
	}
}

func TestBreaksGSO(t *testing.T) {
	t.Parallel()
	for release, want := range map[string]bool{
		"6.18.44-fc": false, "7.0.0-rc1": true, "7.0.12-generic": true, "7.1.0": true, "7.1.4": true, "7.1.5": false,
		"7.2.0": false, "8.0.1": false, "5.4": false, "7.0": true, "": false, "x": false, "7": false,
	} {
		if got := breaksGSO(release); got != want {
			t.Errorf("%q: got %v, want %v", release, got, want)
		}
	}
}
