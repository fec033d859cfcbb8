package packet

import "net/netip"

// Parse reads the headers of p.Buf and fills the other fields. It never
// trusts a length and does not allocate. On a fault the fields are undefined.
func Parse(p *Packet) Fault { return FaultShort }

// Rewrite is the tuple a packet shall leave with. Its family is the packet's.
type Rewrite struct {
	Src, Dst         Addr
	SrcPort, DstPort uint16
}

// Apply gives the packet the rewrite's addresses and ports, and p.Tuple too.
func (p *Packet) Apply(rw *Rewrite) {}

// ApplyICMPError translates an ICMP error: outer addresses and quoted packet.
func (p *Packet) ApplyICMPError(outerSrc, outerDst Addr, inner *Rewrite) {}

// DecrementTTL takes one off the TTL; false: expired, packet unchanged.
func (p *Packet) DecrementTTL() bool { return false }

// ClampMSS lowers the MSS option of a TCP SYN to at most max.
func (p *Packet) ClampMSS(max uint16) {}

// Fit says whether a packet can leave by a link.
type Fit uint8

// The fits.
const (
	FitOK       Fit = iota // as it is
	FitTooBig              // answer with TooBig
	FitFragment            // use Fragment4
)

// LimitSegment makes the packet fit mtu if it can without splitting it.
func (p *Packet) LimitSegment(mtu int) Fit { return FitTooBig }

// Fragment4 splits an IPv4 packet; each buffer is borrowed until emit returns.
func Fragment4(p *Packet, mtu int, emit func(buf []byte)) {}

// Unreach is why a destination is unreachable.
type Unreach uint8

// The reasons.
const (
	UnreachPort Unreach = iota
	UnreachHost
	UnreachNet
	UnreachAdmin
)

// TooBig builds the error for a packet bigger than mtu. Like all error
// builders: it returns dst[:0] when no answer may be sent.
func TooBig(dst []byte, orig *Packet, from Addr, mtu int) []byte { return dst[:0] }

// Unreachable builds an ICMP destination unreachable.
func Unreachable(dst []byte, orig *Packet, from Addr, code Unreach) []byte { return dst[:0] }

// TimeExceeded builds an ICMP time exceeded in transit.
func TimeExceeded(dst []byte, orig *Packet, from Addr) []byte { return dst[:0] }

// Reset builds the TCP RST that answers orig (RFC 9293 §3.10.7.1).
func Reset(dst []byte, orig *Packet) []byte { return dst[:0] }

// UDP builds a datagram.
func UDP(dst []byte, from, to netip.AddrPort, payload []byte) []byte { return dst[:0] }

// EchoHeader describes an ICMP echo message.
type EchoHeader struct {
	Src, Dst netip.Addr
	ID, Seq  uint16
	Reply    bool
}

// Echo builds an ICMP echo request or reply.
func Echo(dst []byte, h EchoHeader, payload []byte) []byte { return dst[:0] }

// EchoReply builds the answer to an echo request.
func EchoReply(dst []byte, orig *Packet) []byte { return dst[:0] }

// EchoSeq returns the sequence number of an echo message, else 0.
func (p *Packet) EchoSeq() uint16 { return 0 }

// Data returns the transport payload (borrowed, as Buf).
func (p *Packet) Data() []byte { return nil }

// AnswersError reports whether an ICMP error about orig may be sent at all.
func AnswersError(orig *Packet) bool { return false }

// Segments returns how many packets buf makes, 0 when it cannot be parsed.
func Segments(buf []byte, mtu int) int { return 0 }

// Segmenter cuts a super-packet into plain IP packets with full checksums.
type Segmenter struct{ _ int }

// Reset starts on buf (borrowed until the last Next); TCP segments are made
// to fit mtu when mtu > 0.
func (s *Segmenter) Reset(buf []byte, mtu int) Fault { return FaultShort }

// Count returns how many packets Next will give in all.
func (s *Segmenter) Count() int { return 0 }

// Size returns the length of the largest of them.
func (s *Segmenter) Size() int { return 0 }

// Next writes the next packet WITHOUT virtio-net header to dst, which must
// hold Size bytes.
func (s *Segmenter) Next(dst []byte) (n int, ok bool) { return 0, false }

// Coalescer merges segments into super-packets. The zero value is ready.
type Coalescer struct {
	NoTCP, NoUDP bool // switches: do not merge these
}

// Add takes a plain IP packet, borrowed until Flush.
func (c *Coalescer) Add(ip []byte) {}

// Flush returns what was added, merged where possible, each with a virtio-net
// header; borrowed until the next Add.
func (c *Coalescer) Flush() [][]byte { return nil }
