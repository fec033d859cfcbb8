package packet

import "encoding/binary"

// Flags of a virtio-net header.
const (
	// VNetNeedsCsum: the transport checksum holds the pseudo-header's sum and
	// whoever puts the packet on a real wire completes it.
	VNetNeedsCsum = 1
	// VNetDataValid: the checksum was already verified by the sender's side.
	VNetDataValid = 2
)

// Segmentation types of a virtio-net header.
const (
	GSONone  = 0
	GSOTCPv4 = 1
	GSOTCPv6 = 4
	GSOUDPL4 = 5
	GSOECN   = 0x80 // flag beside a TCP type: CWR is set on the first segment
)

// VNet is a decoded virtio-net header (struct virtio_net_hdr, little endian):
//
//	 0      1         2        4         6           8            10
//	+------+---------+--------+---------+-----------+------------+
//	|flags |gso_type |hdr_len |gso_size |csum_start |csum_offset | IP ...
//	+------+---------+--------+---------+-----------+------------+
//
// The zero value says: one ordinary packet with a complete checksum.
type VNet struct {
	Flags, GSOType               uint8
	HdrLen, GSOSize              uint16
	ChecksumStart, ChecksumField uint16 // ChecksumField counts from ChecksumStart
}

// VNetFrom decodes the header at the start of b, which must hold VNetLen bytes.
func VNetFrom(b []byte) VNet {
	_ = b[VNetLen-1]
	return VNet{
		Flags: b[0], GSOType: b[1],
		HdrLen:        binary.LittleEndian.Uint16(b[2:]),
		GSOSize:       binary.LittleEndian.Uint16(b[4:]),
		ChecksumStart: binary.LittleEndian.Uint16(b[6:]),
		ChecksumField: binary.LittleEndian.Uint16(b[8:]),
	}
}

// Put encodes the header at the start of b, which must hold VNetLen bytes.
func (v VNet) Put(b []byte) {
	_ = b[VNetLen-1]
	b[0], b[1] = v.Flags, v.GSOType
	binary.LittleEndian.PutUint16(b[2:], v.HdrLen)
	binary.LittleEndian.PutUint16(b[4:], v.GSOSize)
	binary.LittleEndian.PutUint16(b[6:], v.ChecksumStart)
	binary.LittleEndian.PutUint16(b[8:], v.ChecksumField)
}
