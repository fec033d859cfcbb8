package overlay

import (
	"errors"
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

// UDPConfig switches the offloads of the UDP sockets. What is left open is tried at
// the start, over loopback.
//
// GSO hands the kernel up to 64 datagrams of one size in one piece. It makes
// sending some 25 times cheaper, and several kernels corrupt it: Linux 7.0 to
// 7.1.4 when all datagrams of a piece are equal, which ours are. A network
// card without checksum offload refuses it (EIO); then it ends by itself and
// Counters.GSODisabled counts.
//
// GRO has the kernel join what came in, where it can (5.0 on).
type UDPConfig struct {
	GSO, GRO Offload
}

// UDPOffloads says of each offload "on", or "off: " and why.
type UDPOffloads struct{ GSO, GRO string }

const (
	offloadOn  = "on"
	offloadOff = "off: "
)

// releaseFile names the running kernel's release.
const releaseFile = "/proc/sys/kernel/osrelease"

// decide chooses the sockets' options, and says why.
func (c UDPConfig) decide(log *slog.Logger) (udp.Options, UDPOffloads) {
	var gso, gro error
	if c.GSO == OffloadAuto || c.GRO == OffloadAuto {
		gso, gro = udp.SelfTest()
	}
	release, err := os.ReadFile(releaseFile)
	if name := strings.TrimSpace(string(release)); err == nil && breaksGSO(name) {
		gso = fmt.Errorf("Linux %s corrupts it", name)
	}
	why := UDPOffloads{GSO: c.GSO.judge(gso), GRO: c.GRO.judge(gro)}
	log.Debug("udp sockets", "gso", why.GSO, "gro", why.GRO)
	for name, what := range map[string]string{"gso": why.GSO, "gro": why.GRO} {
		if what != offloadOn && what != offloadOff+bySettings {
			log.Warn("udp offload is off, which makes the tunnel slower", "offload", name, "reason", strings.TrimPrefix(what, offloadOff))
		}
	}
	return udp.Options{GSO: why.GSO == offloadOn, GRO: why.GRO == offloadOn}, why
}

const bySettings = "by the settings"

// judge says whether an offload is on, when that is wrong with it.
func (o Offload) judge(fault error) string {
	switch {
	case o == OffloadOff:
		return offloadOff + bySettings
	case o == OffloadOn, fault == nil, errors.Is(fault, udp.ErrUntested):
		return offloadOn
	default:
		return offloadOff + fault.Error()
	}
}

// UDPOffloads says what the sockets' offloads are now. They are "" where there are
// no sockets.
func (w *WireGuard) UDPOffloads() UDPOffloads {
	out := w.offloads
	if w.sockets != nil && out.GSO == offloadOn && !w.sockets.GSO() {
		out.GSO = offloadOff + "the kernel refused it while sending, as for a network card without checksum offload"
	}
	return out
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

	options udp.Options
	log     *slog.Logger
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
		if u.Sockets, err = udp.Listen(port, u.options); err != nil {
			return 0, 0, err
		}
	}
	return u.Queues(), u.Port(), nil
}
