package packet

import (
	"encoding/binary"
	"hash/crc32"
)

// castagnoli is the polynomial of SCTP's checksum (RFC 9260 appendix A).
//
//nolint:gochecknoglobals // a table known at compile time
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// applySCTP writes new ports into the SCTP packet h and moves its CRC along.
// The CRC has no pseudo-header, so addresses do not matter. A CRC that was
// wrong stays wrong by the same bits, and one of zero (RFC 9653) stays zero.
func (p *Packet) applySCTP(h []byte, rw *Rewrite) {
	if p.Tuple.SrcPort == rw.SrcPort && p.Tuple.DstPort == rw.DstPort {
		return
	}
	have := binary.LittleEndian.Uint32(h[sctpChecksum:])
	before := crcSCTP(h)
	p.putPorts(h, rw)
	if have == 0 && before != 0 {
		return
	}
	binary.LittleEndian.PutUint32(h[sctpChecksum:], crcSCTP(h)^before^have)
}

// crcSCTP computes the CRC of an SCTP packet as if its checksum field were 0.
func crcSCTP(h []byte) uint32 {
	var zero [4]byte
	c := crc32.Update(0, castagnoli, h[:sctpChecksum])
	c = crc32.Update(c, castagnoli, zero[:])
	return crc32.Update(c, castagnoli, h[sctpLen:])
}
