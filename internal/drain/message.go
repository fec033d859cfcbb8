package drain

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/netctl/netctl/internal/netstack"
	"github.com/netctl/netctl/internal/nodeport"
	"github.com/netctl/netctl/internal/packet"
)

// kind says what a message is. Those of an unknown kind are skipped.
type kind byte

// From the retired process to its successor, in the order in which they come:
// hello, began and udpFlow, ready; then packets, began and ended, and after gone
// the others; done.
const (
	kindHello kind = iota + 1
	kindBegan
	kindUDPFlow // with a descriptor, if the backend is a host's
	kindReady
	kindEnded
	kindPacket
	kindPacketInbound
	kindReturn
	kindReturnInbound
	kindFlow // with a descriptor
	kindGone // answers serving
	kindDone
)

// From the successor; packets are of the kinds above.
const (
	kindServing kind = iota + 64
	kindAdopted
	kindForget
)

// Version is that of the messages. Two processes speak to each other only if
// they have the same.
const Version = 1

const magic = "netctl drain"

// errMessage: a message is not what its kind says.
var errMessage = errors.New("message of the drain socket makes no sense")

// A tuple is | src 16 | dst 16 | src port 2 | dst port 2 | proto 1 | inbound 1 |,
// and a list of them a message; addresses of IPv4 are mapped ones.
const (
	tupleLen  = 38
	maxTuples = 1024 // of one message
)

func appendTuple(b []byte, t *packet.Tuple, inbound bool) []byte {
	b = append(append(b, t.Src[:]...), t.Dst[:]...)
	b = binary.BigEndian.AppendUint16(b, t.SrcPort)
	b = binary.BigEndian.AppendUint16(b, t.DstPort)
	return append(b, t.Proto, flag(inbound))
}

func flag(yes bool) byte {
	if yes {
		return 1
	}
	return 0
}

// parseTuples calls f for each tuple of a list.
func parseTuples(b []byte, f func(t packet.Tuple, inbound bool)) error {
	if len(b)%tupleLen != 0 {
		return fmt.Errorf("%w: %d bytes are no list of tuples", errMessage, len(b))
	}
	for ; len(b) > 0; b = b[tupleLen:] {
		t, err := parseTuple(b)
		if err != nil {
			return err
		}
		f(t, b[tupleLen-1] != 0)
	}
	return nil
}

func parseTuple(b []byte) (packet.Tuple, error) {
	t := packet.Tuple{
		Src: packet.Addr(b[:16]), Dst: packet.Addr(b[16:32]),
		SrcPort: binary.BigEndian.Uint16(b[32:]), DstPort: binary.BigEndian.Uint16(b[34:]), Proto: b[36],
	}
	if t.Src.Is4() != t.Dst.Is4() || t.Proto != packet.ProtoTCP && t.Proto != packet.ProtoUDP || b[37] > 1 {
		return t, fmt.Errorf("%w: no connection has the tuple %s", errMessage, t)
	}
	return t, nil
}

func hello() []byte { return append([]byte(magic), Version) }

func checkHello(b []byte) error {
	if len(b) != len(magic)+1 || string(b[:len(magic)]) != magic {
		return fmt.Errorf("%w: it does not begin with a greeting", errMessage)
	}
	if v := b[len(magic)]; v != Version {
		return fmt.Errorf("the predecessor drains in version %d, this one in %d: its connections to sockets cannot go on", v, Version)
	}
	return nil
}

// record writes and reads what is more than a tuple: fields one after the other,
// addresses with their length before them.
type record struct {
	b   []byte
	bad bool
}

func (r *record) putAddr(a netip.AddrPort) {
	b, err := a.MarshalBinary()
	if err != nil || len(b) > 255 {
		b = nil // read as no address
	}
	r.b = append(append(r.b, byte(len(b))), b...)
}

func (r *record) putFlag(yes bool) { r.b = append(r.b, flag(yes)) }

func (r *record) putTime(d time.Duration) {
	r.b = binary.BigEndian.AppendUint64(r.b, uint64(max(d, 0)))
}

func (r *record) take(n int) []byte {
	if r.bad || len(r.b) < n {
		r.bad = true
		return make([]byte, n)
	}
	out := r.b[:n]
	r.b = r.b[n:]
	return out
}

// addr reads an address; no address is one too.
func (r *record) addr() (a netip.AddrPort) {
	n := int(r.take(1)[0])
	if n == 0 {
		return a
	}
	if a.UnmarshalBinary(r.take(n)) != nil || a.Addr().Is4In6() {
		r.bad = true
		return netip.AddrPort{}
	}
	return a
}

func (r *record) flag() bool { return r.take(1)[0] == 1 }

func (r *record) time() time.Duration {
	return time.Duration(min(binary.BigEndian.Uint64(r.take(8)), uint64(24*time.Hour)))
}

// A record may be longer than is known here: the rest is a later version's.
func (r *record) err() error {
	if r.bad {
		return fmt.Errorf("%w: a record is cut short or has no addresses", errMessage)
	}
	return nil
}

func flowRecord(f *netstack.Flow) []byte {
	r := record{b: appendTuple(nil, &f.Tuple, false)}
	r.putAddr(f.Backend)
	r.putFlag(f.Replied)
	r.putTime(f.Idle)
	return r.b
}

func parseFlow(b []byte) (f netstack.Flow, err error) {
	if len(b) < tupleLen {
		return f, fmt.Errorf("%w: a flow has no tuple", errMessage)
	}
	if f.Tuple, err = parseTuple(b); err != nil {
		return f, err
	}
	r := record{b: b[tupleLen:]}
	f.Backend, f.Replied, f.Idle = r.addr(), r.flag(), r.time()
	r.bad = r.bad || !f.Backend.IsValid()
	return f, r.err()
}

func appendUDPFlow(b []byte, f *nodeport.UDPFlow) []byte {
	r := record{b: b}
	r.putAddr(f.Listener)
	r.putAddr(f.Client)
	r.putAddr(netip.AddrPortFrom(f.Asked, 0))
	r.putAddr(f.Backend)
	r.putAddr(f.Source)
	r.putFlag(f.Replied)
	r.putTime(f.Idle)
	return r.b
}

func parseUDPFlow(b []byte) (nodeport.UDPFlow, error) {
	r := record{b: b}
	f := nodeport.UDPFlow{Listener: r.addr(), Client: r.addr(), Asked: r.addr().Addr(), Backend: r.addr(), Source: r.addr(), FD: -1}
	f.Replied, f.Idle = r.flag(), r.time()
	r.bad = r.bad || !f.Listener.IsValid() || !f.Client.IsValid() || !f.Asked.IsValid() || !f.Backend.IsValid()
	return f, r.err()
}
