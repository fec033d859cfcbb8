package overlay

import (
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"

	"golang.zx2c4.com/wireguard/conn"
)

// Offload switches a capability of the kernel.
type Offload uint8

// The positions of the switch.
const (
	OffloadAuto Offload = iota // on, unless this kernel is known to break it
	OffloadOn
	OffloadOff
)

// UDPConfig switches the offloads of the UDP sockets.
//
// GSO hands the kernel up to 64 datagrams of one size in one piece. It makes
// sending some 25 times cheaper, and several kernels corrupt it: Linux 7.0 to
// 7.1.4 when all datagrams of a piece are equal, which ours are. A network
// card without checksum offload refuses it (EIO); then it ends by itself and
// Counters.GSODisabled counts.
//
// Receiving in one piece (GRO) has no switch here: the sockets are inside
// wireguard-go, which uses it where the kernel (5.12 on) offers it.
type UDPConfig struct {
	GSO Offload
}

// releaseFile names the running kernel's release.
const releaseFile = "/proc/sys/kernel/osrelease"

// udpBind is wireguard-go's bind on UDP sockets, with a switch for GSO.
type udpBind struct {
	conn.Bind
	gso bool
}

func newUDPBind(cfg UDPConfig, log *slog.Logger) conn.Bind {
	b := &udpBind{Bind: conn.NewDefaultBind(), gso: cfg.GSO != OffloadOff}
	if cfg.GSO == OffloadAuto {
		release, err := os.ReadFile(releaseFile)
		if err == nil && breaksGSO(strings.TrimSpace(string(release))) {
			b.gso = false
			log.Warn("udp gso off: this kernel corrupts it", "kernel", strings.TrimSpace(string(release)))
		}
	}
	log.Debug("udp socket", "gso", b.gso)
	return b
}

// Send passes the datagrams on. Without GSO each is cut off from the capacity
// behind it: the inner bind makes pieces by appending to the first datagram,
// and sends what has no room as it is, still in one system call.
func (b *udpBind) Send(bufs [][]byte, ep conn.Endpoint) error {
	if !b.gso {
		for i := range bufs {
			bufs[i] = slices.Clip(bufs[i])
		}
	}
	return b.Bind.Send(bufs, ep)
}

// breaksGSO reports whether a kernel release is one of 7.0 to 7.1.4, which
// mangle the headers of equal datagrams.
func breaksGSO(release string) bool {
	var major, minor, patch int
	if n, _ := fmt.Sscanf(release, "%d.%d.%d", &major, &minor, &patch); n < 2 {
		return false
	}
	return major == 7 && (minor == 0 || minor == 1 && patch <= 4)
}
