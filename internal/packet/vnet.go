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

// MaxSegments is how many segments a super-packet may stand for. A 64 KiB one
// with the smallest sensible segments (64 bytes) stays below; without a bound
// a hostile pod could have 64 KiB cut, sealed and sent as 65 535 packets.
const MaxSegments = 1024

// parseVNet judges the virtio-net header against the parsed packet. Only TCP
// and UDP can leave here with Partial or GSOSize set.
func (p *Packet) parseVNet() Fault {
	p.GSOSize, p.Partial = 0, false
	b := p.Buf[:VNetLen]
	flags, typ := b[0], b[1]
	if flags&^(VNetNeedsCsum|VNetDataValid) != 0 {
		return FaultVNet
	}
	if typ == GSONone && flags&VNetNeedsCsum == 0 {
		binary.LittleEndian.PutUint64(b[2:], 0)
		return FaultNone
	}
	v := VNetFrom(b)
	if int(v.HdrLen) > len(p.Buf)-VNetLen {
		return FaultVNet
	}
	if typ == GSONone {
		return p.parseOffload(&v)
	}
	return p.parseGSO(&v)
}

// parseOffload handles NEEDS_CSUM of an ordinary packet.
func (p *Packet) parseOffload(v *VNet) Fault {
	ip := p.Buf[VNetLen:]
	start, field := int(v.ChecksumStart), int(v.ChecksumStart)+int(v.ChecksumField)
	if p.Kind != KindWhole || start < p.L4 || field+2 > len(ip) {
		return FaultOffload
	}
	if p.ownChecksum(v) {
		p.Partial = true
		binary.LittleEndian.PutUint32(p.Buf[2:], 0) // no hdr_len, no gso_size
		return FaultNone
	}
	// Somebody else's checksum (ICMPv6, a tunnel's payload): finish it here, so
	// that nobody behind has to know. It must not lie on what was just parsed.
	icmp := p.Tuple.Proto == ProtoICMPv6 && start == p.L4 && v.ChecksumField == icmpChecksum
	if !icmp && field < p.Payload {
		return FaultOffload
	}
	finish(ip[start:], int(v.ChecksumField), 0)
	VNet{Flags: v.Flags &^ VNetNeedsCsum}.Put(p.Buf)
	return FaultNone
}

// parseGSO handles a super-packet.
func (p *Packet) parseGSO(v *VNet) Fault {
	proto, is4 := uint8(ProtoTCP), p.Is4()
	switch v.GSOType {
	case GSOTCPv4, GSOTCPv4 | GSOECN:
		if !is4 {
			return FaultGSO
		}
	case GSOTCPv6, GSOTCPv6 | GSOECN:
		if is4 {
			return FaultGSO
		}
	case GSOUDPL4:
		proto = ProtoUDP
	default:
		return FaultVNet
	}
	if p.Kind != KindWhole || p.Tuple.Proto != proto || p.FragID != 0 || v.GSOSize == 0 {
		return FaultGSO
	}
	if v.Flags&VNetNeedsCsum == 0 || !p.ownChecksum(v) {
		return FaultOffload
	}
	if proto == ProtoTCP && p.TCPFlags&(TCPSyn|TCPRst) != 0 {
		return FaultGSO
	}
	n, size := len(p.Buf)-VNetLen-p.Payload, int(v.GSOSize)
	if n == 0 || n > size*MaxSegments {
		return FaultGSO
	}
	p.Partial = true
	if n <= size { // the kernel does not take this for a super-packet either
		p.Buf[1] = GSONone
		binary.LittleEndian.PutUint32(p.Buf[2:], 0)
		return FaultNone
	}
	p.GSOSize = size
	binary.LittleEndian.PutUint16(p.Buf[2:], uint16(p.Payload))
	return FaultNone
}

// ownChecksum reports whether NEEDS_CSUM means the checksum of the TCP or UDP
// header that was parsed, and nothing but the packet's own bytes are summed.
func (p *Packet) ownChecksum(v *VNet) bool {
	if int(v.ChecksumStart) != p.L4 {
		return false
	}
	switch p.Tuple.Proto {
	case ProtoTCP:
		return v.ChecksumField == tcpChecksum
	case ProtoUDP:
		h := p.Buf[VNetLen+p.L4:]
		return v.ChecksumField == udpChecksum && int(binary.BigEndian.Uint16(h[4:])) == len(h)
	}
	return false
}
