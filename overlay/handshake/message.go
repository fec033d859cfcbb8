// Package handshake is what two WireGuard ends say before they share a session:
// the messages' layouts, the Noise handshake, the MACs and cookies that keep a
// flood of handshakes cheap, and a bound per sender.
//
// It has no sockets and no goroutines. The cryptography is github.com/flynn/noise and golang.org/x/crypto; nothing here
// is home-made but the order of bytes, which is the WireGuard whitepaper's:
//
//	initiation  type 1 | sender   | Noise 108 | mac1 16 | mac2 16      148 bytes
//	response    type 2 | sender   | receiver  | Noise 48 | mac1 | mac2  92 bytes
//	cookie      type 3 | receiver | nonce 24  | cookie 32               64 bytes
//	transport   type 4 | receiver | counter 8 | sealed packet, padded   32 or more
//
// Every message comes from the network, so every function takes any bytes. Test
// it with the fuzz targets, and against wireguard-go in package overlay.
package handshake

import "encoding/binary"

// Kind is the type of a message.
type Kind uint8

// The kinds. Zero is no message.
const (
	KindInitiation Kind = 1
	KindResponse   Kind = 2
	KindCookie     Kind = 3
	KindTransport  Kind = 4
)

// Sizes of the messages.
const (
	InitiationSize  = 148
	ResponseSize    = 92
	CookieSize      = 64
	TransportHeader = 16
	TagSize         = 16
	KeepaliveSize   = TransportHeader + TagSize // a transport message without a packet
	// Overhead is what a transport message adds to a packet.
	Overhead = TransportHeader + TagSize
)

// Offsets of fields.
const (
	senderAt          = 4 // of initiations and responses
	initiationNoise   = 8
	responseReceiver  = 8
	responseNoise     = 12
	transportReceiver = 4 // and of cookies
	counterAt         = 8
	nonceAt           = 8
	cookieAt          = 32
	macSize           = 16
)

// KindOf returns what b is by its type and size, or zero.
func KindOf(b []byte) Kind {
	if len(b) < KeepaliveSize || b[1]|b[2]|b[3] != 0 {
		return 0
	}
	switch k := Kind(b[0]); k {
	case KindTransport:
		return k
	case KindInitiation:
		if len(b) == InitiationSize {
			return k
		}
	case KindResponse:
		if len(b) == ResponseSize {
			return k
		}
	case KindCookie:
		if len(b) == CookieSize {
			return k
		}
	}
	return 0
}

// Sender returns the index that the sender of an initiation or a response gave
// itself.
func Sender(b []byte) uint32 { return binary.LittleEndian.Uint32(b[senderAt:]) }

// Receiver returns the index that a response, cookie or transport message is for.
func Receiver(b []byte) uint32 {
	if Kind(b[0]) == KindResponse {
		return binary.LittleEndian.Uint32(b[responseReceiver:])
	}
	return binary.LittleEndian.Uint32(b[transportReceiver:])
}

// Counter returns the counter of a transport message.
func Counter(b []byte) uint64 { return binary.LittleEndian.Uint64(b[counterAt:]) }

// PutTransport writes the header of a transport message.
func PutTransport(b []byte, receiver uint32, counter uint64) {
	binary.LittleEndian.PutUint32(b, uint32(KindTransport))
	binary.LittleEndian.PutUint32(b[transportReceiver:], receiver)
	binary.LittleEndian.PutUint64(b[counterAt:], counter)
}
