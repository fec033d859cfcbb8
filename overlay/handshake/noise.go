package handshake

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/flynn/noise"
	"golang.org/x/crypto/curve25519"
	"golang.zx2c4.com/wireguard/tai64n"
)

// prologue is the whitepaper's identifier.
const prologue = "WireGuard v1 zx2c4 Jason@zx2c4.com"

const (
	keySize      = 32
	pskPlacement = 2 // Noise_IKpsk2

	timestampSize = tai64n.TimestampSize
)

// Timestamp is a TAI64N time. Its order is that of its bytes.
type Timestamp [timestampSize]byte

// Keys are a session's, in our direction and in the peer's.
type Keys struct{ Send, Receive [keySize]byte }

// Identity is this end of all handshakes.
type Identity struct {
	static noise.DHKey
	psk    [keySize]byte
	suite  noise.CipherSuite
	random io.Reader
}

// NewIdentity returns the end that has the private key. psk is mixed into every
// handshake; all zero is WireGuard's way to say none.
func NewIdentity(private, psk [keySize]byte) (*Identity, error) {
	public, err := curve25519.X25519(private[:], curve25519.Basepoint)
	if err != nil {
		return nil, fmt.Errorf("handshake: private key: %w", err)
	}
	return &Identity{
		static: noise.DHKey{Private: private[:], Public: public}, psk: psk,
		suite:  noise.NewCipherSuite(noise.DH25519, noise.CipherChaChaPoly, noise.HashBLAKE2s),
		random: rand.Reader,
	}, nil
}

// Public returns the public key.
func (id *Identity) Public() [keySize]byte { return [keySize]byte(id.static.Public) }

// state begins one handshake. peer is nil at the responder, who learns it.
func (id *Identity) state(peer []byte) (*noise.HandshakeState, error) {
	return noise.NewHandshakeState(noise.Config{
		CipherSuite: id.suite, Random: id.random, Pattern: noise.HandshakeIK, Initiator: peer != nil,
		Prologue: []byte(prologue), PresharedKey: id.psk[:], PresharedKeyPlacement: pskPlacement,
		StaticKeypair: id.static, PeerStatic: peer,
	})
}

// Initiator is a handshake that we began.
type Initiator struct{ hs *noise.HandshakeState }

// Initiate writes an initiation to peer into dst, all but its MACs. index is
// what the peer shall answer to.
func (id *Identity) Initiate(dst *[InitiationSize]byte, peer [keySize]byte, index uint32) (*Initiator, error) {
	return id.initiate(dst, peer, index, Timestamp(tai64n.Now())) // rounded to 16 ms
}

func (id *Identity) initiate(dst *[InitiationSize]byte, peer [keySize]byte, index uint32, stamp Timestamp) (*Initiator, error) {
	hs, err := id.state(peer[:])
	if err != nil {
		return nil, fmt.Errorf("handshake: begin: %w", err)
	}
	clear(dst[:])
	binary.LittleEndian.PutUint32(dst[:], uint32(KindInitiation))
	binary.LittleEndian.PutUint32(dst[senderAt:], index)
	if _, _, _, err := hs.WriteMessage(dst[initiationNoise:initiationNoise], stamp[:]); err != nil {
		return nil, fmt.Errorf("handshake: initiation: %w", err)
	}
	return &Initiator{hs: hs}, nil
}

// Finish takes a response. After an error the right one may still follow: a
// forged response ends nothing.
func (i *Initiator) Finish(msg []byte) (remote uint32, keys Keys, err error) {
	if KindOf(msg) != KindResponse {
		return 0, Keys{}, errors.New("handshake: not a response")
	}
	body := msg[responseNoise : len(msg)-2*macSize]
	// A point of low order would make the library stop halfway, with its state
	// changed. Any scalar shows it.
	if _, err := curve25519.X25519(i.hs.LocalEphemeral().Private, body[:keySize]); err != nil {
		return 0, Keys{}, fmt.Errorf("handshake: response: %w", err)
	}
	_, send, receive, err := i.hs.ReadMessage(nil, body)
	if err != nil {
		return 0, Keys{}, fmt.Errorf("handshake: response: %w", err)
	}
	return Sender(msg), Keys{Send: send.UnsafeKey(), Receive: receive.UnsafeKey()}, nil
}

// Responder is a handshake that a peer began.
type Responder struct {
	Peer      [keySize]byte // proven
	Timestamp Timestamp     // must be greater than every earlier one of that peer
	remote    uint32
	hs        *noise.HandshakeState
}

// Accept reads an initiation. Who it is from must still be found to be a peer.
func (id *Identity) Accept(msg []byte) (*Responder, error) {
	if KindOf(msg) != KindInitiation {
		return nil, errors.New("handshake: not an initiation")
	}
	hs, err := id.state(nil)
	if err != nil {
		return nil, fmt.Errorf("handshake: accept: %w", err)
	}
	r := &Responder{remote: Sender(msg), hs: hs}
	stamp, _, _, err := hs.ReadMessage(r.Timestamp[:0], msg[initiationNoise:len(msg)-2*macSize])
	if err != nil {
		return nil, fmt.Errorf("handshake: initiation: %w", err)
	}
	if len(stamp) != len(r.Timestamp) || len(hs.PeerStatic()) != keySize {
		return nil, errors.New("handshake: initiation: wrong length inside")
	}
	r.Peer = [keySize]byte(hs.PeerStatic())
	return r, nil
}

// Respond writes the response into dst, all but its MACs, and ends the
// handshake. index is what the peer shall send to.
func (r *Responder) Respond(dst *[ResponseSize]byte, index uint32) (remote uint32, keys Keys, err error) {
	clear(dst[:])
	binary.LittleEndian.PutUint32(dst[:], uint32(KindResponse))
	binary.LittleEndian.PutUint32(dst[senderAt:], index)
	binary.LittleEndian.PutUint32(dst[responseReceiver:], r.remote)
	_, receive, send, err := r.hs.WriteMessage(dst[responseNoise:responseNoise], nil)
	if err != nil {
		return 0, Keys{}, fmt.Errorf("handshake: response: %w", err)
	}
	return r.remote, Keys{Send: send.UnsafeKey(), Receive: receive.UnsafeKey()}, nil
}

// After reports whether t is later than o.
func (t Timestamp) After(o Timestamp) bool { return tai64n.Timestamp(t).After(tai64n.Timestamp(o)) }
