package handshake

import (
	"crypto/rand"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/crypto/blake2s"
	"golang.org/x/crypto/chacha20poly1305"
)

const (
	labelMAC1   = "mac1----"
	labelCookie = "cookie--"
	// cookieLife is how long a cookie, and the secret it is made of, is good.
	cookieLife = 120 * time.Second
)

// hash is BLAKE2s of a label and a public key.
func hash(label string, public [keySize]byte) [blake2s.Size]byte {
	return blake2s.Sum256(append([]byte(label), public[:]...))
}

// mac is keyed BLAKE2s-128 of b.
func mac(key, b []byte) (out [macSize]byte) {
	h, err := blake2s.New128(key)
	if err != nil {
		panic("handshake: a MAC key of 1 to 32 bytes is always good")
	}
	h.Write(b) // a hash never fails
	h.Sum(out[:0])
	return out
}

// Guard is the responder's side of the MACs: it tells who knows our public key
// (mac1), and, by a cookie, who receives at the address that it sends from
// (mac2). It is safe for concurrent use.
type Guard struct {
	mac1, seal [blake2s.Size]byte

	mu     sync.Mutex
	secret [blake2s.Size]byte // guarded by mu
	made   time.Time          // guarded by mu
}

// NewGuard guards the identity of that public key.
func NewGuard(public [keySize]byte) *Guard {
	return &Guard{mac1: hash(labelMAC1, public), seal: hash(labelCookie, public)}
}

// Knows reports whether the sender of an initiation or response knows our
// public key.
func (g *Guard) Knows(msg []byte) bool {
	at := len(msg) - 2*macSize
	want := mac(g.mac1[:], msg[:at])
	return subtle.ConstantTimeCompare(want[:], msg[at:at+macSize]) == 1
}

// Proves reports whether msg carries the cookie that its address was given.
func (g *Guard) Proves(msg []byte, from netip.AddrPort, now time.Time) bool {
	cookie, ok := g.cookie(from, now, false)
	if !ok {
		return false
	}
	at := len(msg) - macSize
	want := mac(cookie[:], msg[:at])
	return subtle.ConstantTimeCompare(want[:], msg[at:]) == 1
}

// cookie is what an address must know. Without fresh it is not ok when the
// secret is over.
func (g *Guard) cookie(from netip.AddrPort, now time.Time, fresh bool) (c [macSize]byte, ok bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.made.IsZero() || now.Sub(g.made) > cookieLife {
		if !fresh {
			return c, false
		}
		if _, err := rand.Read(g.secret[:]); err != nil {
			return c, false
		}
		g.made = now
	}
	a := from.Addr().As16()
	return mac(g.secret[:], binary.BigEndian.AppendUint16(a[:], from.Port())), true
}

// Reply writes a cookie for the sender of an initiation or response.
func (g *Guard) Reply(dst *[CookieSize]byte, msg []byte, from netip.AddrPort, now time.Time) error {
	cookie, ok := g.cookie(from, now, true)
	if !ok {
		return errors.New("handshake: no randomness for a cookie")
	}
	clear(dst[:])
	binary.LittleEndian.PutUint32(dst[:], uint32(KindCookie))
	binary.LittleEndian.PutUint32(dst[transportReceiver:], Sender(msg))
	if _, err := rand.Read(dst[nonceAt:cookieAt]); err != nil {
		return err
	}
	aead, err := chacha20poly1305.NewX(g.seal[:])
	if err != nil {
		return err
	}
	at := len(msg) - 2*macSize
	aead.Seal(dst[cookieAt:cookieAt], dst[nonceAt:cookieAt], cookie[:], msg[at:at+macSize])
	return nil
}

// Signer is the sender's side of the MACs towards one peer. It is not safe for
// concurrent use.
type Signer struct {
	mac1, seal [blake2s.Size]byte
	last       [macSize]byte // mac1 of the last message
	signed     bool
	cookie     [macSize]byte
	learned    time.Time
}

// NewSigner signs for the peer of that public key.
func NewSigner(public [keySize]byte) Signer {
	return Signer{mac1: hash(labelMAC1, public), seal: hash(labelCookie, public)}
}

// Sign writes the MACs of an initiation or response.
func (s *Signer) Sign(msg []byte, now time.Time) {
	at := len(msg) - 2*macSize
	s.last = mac(s.mac1[:], msg[:at])
	s.signed = true
	copy(msg[at:], s.last[:])
	if s.learned.IsZero() || now.Sub(s.learned) > cookieLife {
		return
	}
	proof := mac(s.cookie[:], msg[:at+macSize])
	copy(msg[at+macSize:], proof[:])
}

// Learn takes a cookie that answers the last signed message.
func (s *Signer) Learn(msg []byte, now time.Time) bool {
	if KindOf(msg) != KindCookie || !s.signed {
		return false
	}
	aead, err := chacha20poly1305.NewX(s.seal[:])
	if err != nil {
		return false
	}
	cookie, err := aead.Open(nil, msg[nonceAt:cookieAt], msg[cookieAt:], s.last[:])
	if err != nil || len(cookie) != macSize {
		return false
	}
	s.cookie, s.learned = [macSize]byte(cookie), now
	return true
}
