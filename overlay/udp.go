package overlay

import (
	"log/slog"

	"github.com/netctl/netctl/overlay/udp"
)

// Offload turns an offload of the sockets on or off.
type Offload = udp.Switch

// The positions of the switch.
const (
	OffloadAuto = udp.Auto // on, unless a test at the start shows that it does not work
	OffloadOn   = udp.On
	OffloadOff  = udp.Off
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

// UDPOffloads says what the sockets' offloads are now. They are "" where there are
// no sockets.
func (w *WireGuard) UDPOffloads() udp.Offloads {
	if w.sockets == nil {
		return udp.Offloads{}
	}
	return w.sockets.Offloads(w.offloads)
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
