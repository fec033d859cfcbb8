package packet

import (
	"encoding/binary"
	"math/bits"
)

// ClampMSS lowers the MSS option of a TCP SYN to at most limit, so that neither
// end sends segments bigger than the path takes. Anything else, a SYN without
// the option included, is left alone: its sender's peer assumes the small
// default already (RFC 9293 §3.7.1).
func (p *Packet) ClampMSS(limit uint16) {
	if p.Tuple.Proto != ProtoTCP || p.TCPFlags&TCPSyn == 0 {
		return
	}
	h := p.Buf[VNetLen+p.L4 : VNetLen+p.Payload]
	for i := tcpLen; i < len(h); {
		switch h[i] {
		case 0: // end of options
			return
		case 1: // no operation
			i++
			continue
		}
		if i+1 >= len(h) || h[i+1] < 2 || i+int(h[i+1]) > len(h) {
			return
		}
		if h[i] == 2 && h[i+1] == 4 {
			p.putMSS(h, i+2, limit)
			return
		}
		i += int(h[i+1])
	}
}

func (p *Packet) putMSS(h []byte, i int, limit uint16) {
	if binary.BigEndian.Uint16(h[i:]) <= limit {
		return
	}
	old := binary.LittleEndian.Uint16(h[i:])
	binary.BigEndian.PutUint16(h[i:], limit)
	now := binary.LittleEndian.Uint16(h[i:])
	if p.Partial {
		return // the data is not summed yet
	}
	if i%2 == 1 { // an odd place: the bytes count in the other halves
		old, now = bits.ReverseBytes16(old), bits.ReverseBytes16(now)
	}
	update(h[tcpChecksum:], uint64(now)+uint64(^old))
}
