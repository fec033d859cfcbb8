package vnet

import (
	"encoding/binary"

	"github.com/netctl/netctl/internal/packet"
	"github.com/netctl/netctl/internal/packet/packettest"
)

// Split cuts a packet into fragments whose data is size bytes each, a multiple
// of eight, as a sender with that MTU would; the plainest way, for both
// families. id tells datagrams apart.
func Split(buf []byte, size int, id uint16) [][]byte {
	ip := buf[packet.VNetLen:]
	hl := 20
	if ip[0]>>4 == 6 {
		hl = 40
	}
	var out [][]byte
	data := ip[hl:]
	for off := 0; off < len(data); off += size {
		part := data[off:min(off+size, len(data))]
		field := uint16(off) // less than 64 KiB
		more := off+size < len(data)
		out = append(out, fragment(ip[:hl], part, field, more, id))
	}
	return out
}

func fragment(head, part []byte, off uint16, more bool, id uint16) []byte {
	buf := append(make([]byte, packet.VNetLen), head...)
	ip := buf[packet.VNetLen:]
	if ip[0]>>4 == 6 {
		ext := []byte{ip[6], 0, 0, 0, 0, 0, byte(id >> 8), byte(id)}
		if more {
			off |= 1
		}
		binary.BigEndian.PutUint16(ext[2:], off)
		binary.BigEndian.PutUint16(ip[4:], uint16(len(ext)+len(part))) // less than 64 KiB
		ip[6] = 44
		return append(append(buf, ext...), part...)
	}
	field := off / 8
	if more {
		field |= 0x2000
	}
	binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)+len(part))) // less than 64 KiB
	binary.BigEndian.PutUint16(ip[4:], id)
	binary.BigEndian.PutUint16(ip[6:], field)
	ip[10], ip[11] = 0, 0
	binary.BigEndian.PutUint16(ip[10:], ^packettest.Sum(ip, 0))
	return append(buf, part...)
}

// CheckJoined puts fragments, given in order, together and reports what is
// wrong with the datagram.
func CheckJoined(parts []*packet.Packet) error {
	first := parts[0].IP()
	hl, start := 20, 20
	if first[0]>>4 == 6 {
		hl, start = 40, 48
	}
	ip := append([]byte(nil), first[:hl]...)
	for _, p := range parts {
		ip = append(ip, p.IP()[start:]...)
	}
	if hl == 40 {
		ip[6] = first[40]
		binary.BigEndian.PutUint16(ip[4:], uint16(len(ip)-hl)) // less than 64 KiB
	} else {
		binary.BigEndian.PutUint16(ip[2:], uint16(len(ip))) // less than 64 KiB
		binary.BigEndian.PutUint16(ip[6:], 0)
		ip[10], ip[11] = 0, 0
		binary.BigEndian.PutUint16(ip[10:], ^packettest.Sum(ip[:hl], 0))
	}
	return packettest.Check(append(make([]byte, packet.VNetLen), ip...))
}
