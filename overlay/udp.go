package overlay

import (
	"fmt"
	"log/slog"
	"os"
	"strings"

	"github.com/netctl/netctl/overlay/udp"
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
// Receiving in one piece (GRO) has no switch: the kernel does it where it can
// (5.12 on).
type UDPConfig struct {
	GSO Offload
}

// releaseFile names the running kernel's release.
const releaseFile = "/proc/sys/kernel/osrelease"

// gso decides.
func (c UDPConfig) gso(log *slog.Logger) bool {
	on := c.GSO != OffloadOff
	if c.GSO == OffloadAuto {
		release, err := os.ReadFile(releaseFile)
		if err == nil && breaksGSO(strings.TrimSpace(string(release))) {
			on = false
			log.Warn("udp gso off: this kernel corrupts it", "kernel", strings.TrimSpace(string(release)))
		}
	}
	log.Debug("udp sockets", "gso", on)
	return on
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

// udpWire is the Wire that is real.
type udpWire struct {
	*udp.Sockets // nil until Listen, unless adopted

	gso bool
	log *slog.Logger
}

// Listen implements Wire. Sockets on another port than is asked for, because it
// was changed meanwhile, are no use: nobody would find us there.
func (u *udpWire) Listen(port uint16) (queues int, actual uint16, err error) {
	if u.Sockets != nil && port != 0 && u.Port() != port {
		u.log.Warn("overlay sockets opened anew: the port has changed", "was", u.Port(), "port", port)
		old := u.Sockets
		u.Sockets = nil
		if err := old.Close(); err != nil {
			return 0, 0, err
		}
	}
	if u.Sockets == nil {
		if u.Sockets, err = udp.Listen(port, u.gso); err != nil {
			return 0, 0, err
		}
	}
	return u.Queues(), u.Port(), nil
}
