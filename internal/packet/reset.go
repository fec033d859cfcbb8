package packet

import "encoding/binary"

// Reset builds the TCP reset that answers orig as a host without a listener
// would (RFC 9293 §3.10.7.1). Only headers are looked at, so orig may be a
// super-packet. It writes into dst's capacity and returns dst[:0] when there
// is nothing to send: orig is not whole TCP, is a reset itself, is not between
// two hosts, or dst is too small.
func Reset(dst []byte, orig *Packet) []byte {
	if orig.Kind != KindWhole || orig.Tuple.Proto != ProtoTCP ||
		orig.TCPFlags&TCPRst != 0 || !answersFrom(orig) {
		return dst[:0]
	}
	buf, off := start(dst, orig.Tuple.Dst, orig.Tuple.Src, ProtoTCP, tcpLen)
	if buf == nil {
		return dst[:0]
	}
	ip := orig.IP()
	in, h := ip[orig.L4:], buf[off:]
	clear(h)
	binary.BigEndian.PutUint16(h[0:], orig.Tuple.DstPort)
	binary.BigEndian.PutUint16(h[2:], orig.Tuple.SrcPort)
	h[12] = tcpLen / 4 << 4
	if orig.TCPFlags&TCPAck != 0 {
		copy(h[4:8], in[8:12]) // SEQ=SEG.ACK
		h[13] = TCPRst
	} else {
		n := uint32(len(ip) - orig.Payload) // SEG.LEN counts SYN and FIN
		if orig.TCPFlags&TCPSyn != 0 {
			n++
		}
		if orig.TCPFlags&TCPFin != 0 {
			n++
		}
		binary.BigEndian.PutUint32(h[8:], binary.BigEndian.Uint32(in[4:])+n)
		h[13] = TCPRst | TCPAck
	}
	seal(h, tcpChecksum, pseudo(buf[VNetLen:], ProtoTCP, tcpLen))
	return buf
}
