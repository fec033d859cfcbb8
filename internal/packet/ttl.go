package packet

import "encoding/binary"

// DecrementTTL takes one off the TTL or hop limit. It returns false when the
// packet has expired here; the packet is then unchanged, ready to be quoted by
// TimeExceeded. No allocation.
func (p *Packet) DecrementTTL() bool {
	ip := p.Buf[VNetLen:]
	if ip[0]>>4 == 6 {
		if ip[7] <= 1 {
			return false
		}
		ip[7]--
		return true
	}
	old := binary.LittleEndian.Uint16(ip[8:]) // low byte: TTL
	if old&0xff <= 1 {
		return false
	}
	ip[8]--
	update(ip[10:], uint64(old-1)+uint64(^old))
	return true
}
