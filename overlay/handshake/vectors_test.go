package handshake

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"os"
	"testing"
	"time"

	"golang.org/x/crypto/chacha20poly1305"
)

// hexBytes are bytes in hexadecimal.
type hexBytes []byte

func (h *hexBytes) UnmarshalText(text []byte) (err error) {
	*h, err = hex.DecodeString(string(text))
	return err
}

// vector is a handshake and the first message after it, as a program computes them
// that follows the whitepaper line by line and shares nothing with this one.
type vector struct {
	Initiator, Responder                   hexBytes // private keys
	InitiatorEphemeral, ResponderEphemeral hexBytes
	PSK, Timestamp                         hexBytes
	Initiation, Response                   hexBytes // with mac1
	InitiatorSends, ResponderSends         hexBytes // keys
	Data                                   hexBytes // message 7 of the initiator, "sixteen octets!!"
}

func TestVectors(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("testdata/vectors.json")
	if err != nil {
		t.Fatal(err)
	}
	var vectors []vector
	if err := json.Unmarshal(text, &vectors); err != nil || len(vectors) != 2 {
		t.Fatal(len(vectors), err)
	}
	for _, v := range vectors {
		v.test(t)
	}
}

func (v *vector) test(t *testing.T) {
	t.Helper()
	end := func(private, ephemeral hexBytes) *Identity {
		id, err := NewIdentity([keySize]byte(private), [keySize]byte(v.PSK))
		if err != nil {
			t.Fatal(err)
		}
		id.random = bytes.NewReader(ephemeral)
		return id
	}
	a, b := end(v.Initiator, v.InitiatorEphemeral), end(v.Responder, v.ResponderEphemeral)
	var first [InitiationSize]byte
	i, err := a.initiate(&first, b.Public(), 0x01020304, Timestamp(v.Timestamp))
	if err != nil {
		t.Fatal(err)
	}
	sign(first[:], b.Public())
	if !bytes.Equal(first[:], v.Initiation) {
		t.Errorf("initiation\n%x, want\n%x", first, []byte(v.Initiation))
	}
	if !NewGuard(b.Public()).Knows(v.Initiation) {
		t.Error("mac1 of the initiation is refused")
	}
	r, err := b.Accept(v.Initiation)
	if err != nil || r.Peer != a.Public() || r.Timestamp != Timestamp(v.Timestamp) {
		t.Fatalf("initiation not accepted: %v", err)
	}
	var answer [ResponseSize]byte
	remote, theirs, err := r.Respond(&answer, 0x05060708)
	if err != nil || remote != 0x01020304 {
		t.Fatal(remote, err)
	}
	sign(answer[:], a.Public())
	if !bytes.Equal(answer[:], v.Response) {
		t.Errorf("response\n%x, want\n%x", answer, []byte(v.Response))
	}
	remote, ours, err := i.Finish(v.Response)
	if err != nil || remote != 0x05060708 {
		t.Fatal(remote, err)
	}
	want := Keys{Send: [keySize]byte(v.InitiatorSends), Receive: [keySize]byte(v.ResponderSends)}
	if ours != want || theirs != (Keys{Send: want.Receive, Receive: want.Send}) {
		t.Error("other keys")
	}
	seal, err := chacha20poly1305.New(ours.Send[:])
	if err != nil {
		t.Fatal(err)
	}
	data := make([]byte, TransportHeader, len(v.Data))
	PutTransport(data, remote, 7)
	var nonce [chacha20poly1305.NonceSize]byte
	binary.LittleEndian.PutUint64(nonce[4:], 7)
	if data = seal.Seal(data, nonce[:], []byte("sixteen octets!!"), nil); !bytes.Equal(data, v.Data) {
		t.Errorf("message\n%x, want\n%x", data, []byte(v.Data))
	}
}

// sign writes mac1, and no cookie.
func sign(msg []byte, to [keySize]byte) {
	signer := NewSigner(to)
	signer.Sign(msg, time.Now())
}
