package handshake

import (
	"bytes"
	"crypto/rand"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/crypto/chacha20poly1305"
)

func identity(t testing.TB, psk [32]byte) *Identity {
	t.Helper()
	var k [32]byte
	if _, err := rand.Read(k[:]); err != nil {
		t.Fatal(err)
	}
	id, err := NewIdentity(k, psk)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// shake runs a handshake and returns both ends' keys.
func shake(t testing.TB, a, b *Identity) (Keys, Keys) {
	t.Helper()
	var msg [InitiationSize]byte
	i, err := a.Initiate(&msg, b.Public(), 7)
	if err != nil {
		t.Fatal(err)
	}
	r, err := b.Accept(msg[:])
	if err != nil {
		t.Fatal(err)
	}
	if r.Peer != a.Public() || KindOf(msg[:]) != KindInitiation || Sender(msg[:]) != 7 {
		t.Errorf("accepted %x", r.Peer)
	}
	var answer [ResponseSize]byte
	remote, kb, err := r.Respond(&answer, 8)
	if err != nil || remote != 7 || Receiver(answer[:]) != 7 || Sender(answer[:]) != 8 {
		t.Fatal(remote, err)
	}
	// Forged ones do not end the handshake.
	for _, forge := range []func(b []byte){
		func(b []byte) { b[20]++ },
		func(b []byte) { b[responseNoise+40]++ },
		func(b []byte) { clear(b[responseNoise : responseNoise+32]) }, // a point of low order
	} {
		bad := answer
		forge(bad[:])
		if _, _, err := i.Finish(bad[:]); err == nil {
			t.Error("a forged response was taken")
		}
	}
	remote, ka, err := i.Finish(answer[:])
	if err != nil || remote != 8 {
		t.Fatal(remote, err)
	}
	return ka, kb
}

func TestHandshake(t *testing.T) {
	t.Parallel()
	psk := [32]byte{1, 2, 3}
	a, b := identity(t, psk), identity(t, psk)
	ka, kb := shake(t, a, b)
	if ka.Send != kb.Receive || ka.Receive != kb.Send || ka.Send == ka.Receive {
		t.Error("the ends have different keys")
	}
	again, _ := shake(t, a, b)
	if again.Send == ka.Send {
		t.Error("the same key twice")
	}
	// With another PSK the response does not open.
	var msg [InitiationSize]byte
	i, err := a.Initiate(&msg, b.Public(), 1)
	if err != nil {
		t.Fatal(err)
	}
	stranger := *b
	stranger.psk = [32]byte{}
	r, err := stranger.Accept(msg[:])
	if err != nil {
		t.Fatal(err)
	}
	var answer [ResponseSize]byte
	if _, _, err := r.Respond(&answer, 1); err != nil {
		t.Fatal(err)
	}
	if _, _, err := i.Finish(answer[:]); err == nil {
		t.Error("a response with another preshared key was taken")
	}
	// An initiation for somebody else cannot be read.
	if _, err := identity(t, psk).Accept(msg[:]); err == nil {
		t.Error("a stranger's initiation was accepted")
	}
}

func TestMACsAndCookies(t *testing.T) {
	t.Parallel()
	now := time.Unix(1_700_000_000, 0)
	here, there := netip.MustParseAddrPort("192.0.2.1:51820"), netip.MustParseAddrPort("192.0.2.2:51820")
	id := identity(t, [32]byte{})
	guard, signer := NewGuard(id.Public()), NewSigner(id.Public())
	msg := make([]byte, InitiationSize)
	msg[0] = byte(KindInitiation)
	if guard.Knows(msg) {
		t.Error("a message without MAC is from one who knows us")
	}
	signer.Sign(msg, now)
	if !guard.Knows(msg) || guard.Proves(msg, here, now) {
		t.Error("mac1 must be right, mac2 not there")
	}
	var cookie [CookieSize]byte
	if err := guard.Reply(&cookie, msg, here, now); err != nil {
		t.Fatal(err)
	}
	forged := cookie
	forged[40]++
	other := NewSigner(identity(t, [32]byte{}).Public())
	other.Sign(bytes.Clone(msg), now)
	if signer.Learn(forged[:], now) || other.Learn(cookie[:], now) {
		t.Error("a cookie was taken that is not for it")
	}
	if !signer.Learn(cookie[:], now) {
		t.Fatal("the cookie was refused")
	}
	signer.Sign(msg, now)
	if !guard.Proves(msg, here, now) || guard.Proves(msg, there, now) {
		t.Error("the cookie proves its address, and no other")
	}
	if guard.Proves(msg, here, now.Add(cookieLife+1)) {
		t.Error("an old cookie proves")
	}
	clear(msg[InitiationSize-macSize:])
	if signer.Sign(msg, now.Add(cookieLife+1)); [macSize]byte(msg[InitiationSize-macSize:]) != [macSize]byte{} {
		t.Error("an old cookie is used")
	}
}

func TestLimiter(t *testing.T) {
	t.Parallel()
	now := time.Unix(1_700_000_000, 0)
	l := NewLimiter()
	a := netip.MustParseAddr("192.0.2.1")
	allowed := func(a netip.Addr, now time.Time) (n int) {
		for range 100 {
			if l.Allow(a, now) {
				n++
			}
		}
		return n
	}
	if n := allowed(a, now); n != limitBurst {
		t.Errorf("%d at once, want %d", n, limitBurst)
	}
	if n := allowed(a, now.Add(time.Second/limitRate)); n != 1 {
		t.Errorf("%d a moment later, want 1", n)
	}
	x, y := netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2")
	if n := allowed(x, now) + allowed(y, now); n > limitBurst {
		t.Errorf("%d of one network, want %d", n, limitBurst)
	}
}

func TestBucket(t *testing.T) {
	t.Parallel()
	now := time.Unix(1_700_000_000, 0)
	b := NewBucket(1000, 20)
	take := func(now time.Time) (n int) {
		for range 100 {
			if b.Take(now) {
				n++
			}
		}
		return n
	}
	if n := take(now); n != 20 {
		t.Errorf("%d at once, want 20", n)
	}
	if n := take(now.Add(5 * time.Millisecond)); n != 5 {
		t.Errorf("%d after 5 ms, want 5", n)
	}
}

func TestKindOf(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		first byte
		size  int
		want  Kind
	}{
		{1, 148, KindInitiation},
		{1, 147, 0},
		{2, 92, KindResponse},
		{2, 148, 0},
		{3, 64, KindCookie},
		{3, 92, 0},
		{4, 32, KindTransport},
		{4, 31, 0},
		{4, 65000, KindTransport},
		{0, 148, 0},
		{5, 148, 0},
		{1, 0, 0},
	} {
		b := make([]byte, tt.size)
		if tt.size > 0 {
			b[0] = tt.first
		}
		if got := KindOf(b); got != tt.want {
			t.Errorf("type %d of %d bytes: got %d, want %d", tt.first, tt.size, got, tt.want)
		}
		if tt.size > 3 {
			b[3] = 1
			if got := KindOf(b); got != 0 {
				t.Errorf("reserved byte set: got %d", got)
			}
		}
	}
}

// FuzzMessages gives every function of the package any bytes. Nothing but what
// the right peer wrote is taken.
func FuzzMessages(f *testing.F) {
	a, b := identity(f, [32]byte{}), identity(f, [32]byte{})
	var first [InitiationSize]byte
	i, err := a.Initiate(&first, b.Public(), 1)
	if err != nil {
		f.Fatal(err)
	}
	r, err := b.Accept(first[:])
	if err != nil {
		f.Fatal(err)
	}
	var answer [ResponseSize]byte
	if _, _, err := r.Respond(&answer, 2); err != nil {
		f.Fatal(err)
	}
	guard, signer := NewGuard(b.Public()), NewSigner(b.Public())
	signer.Sign(first[:], time.Now())
	from := netip.MustParseAddrPort("192.0.2.1:1")
	var cookie [CookieSize]byte
	if err := guard.Reply(&cookie, first[:], from, time.Now()); err != nil {
		f.Fatal(err)
	}
	f.Add(first[:])
	f.Add(answer[:])
	f.Add(cookie[:])
	f.Add(make([]byte, chacha20poly1305.Overhead+TransportHeader))
	f.Fuzz(func(t *testing.T, msg []byte) {
		kind := KindOf(msg)
		if kind == 0 {
			return
		}
		_ = Receiver(msg)
		switch kind {
		case KindInitiation:
			if r, err := b.Accept(msg); err == nil && r.Peer != a.Public() {
				t.Error("an initiation of nobody was accepted")
			}
			_ = guard.Knows(msg)
			_ = guard.Proves(msg, from, time.Now())
		case KindResponse:
			if !bytes.Equal(msg[4:60], answer[4:60]) {
				if _, _, err := i.Finish(msg); err == nil && !bytes.Equal(msg[responseNoise:60], answer[responseNoise:60]) {
					t.Error("a response of nobody was taken")
				}
			}
		case KindCookie:
			s := signer
			if s.Learn(msg, time.Now()) && !bytes.Equal(msg[8:], cookie[8:]) {
				t.Error("a cookie of nobody was taken")
			}
		case KindTransport:
			_ = Counter(msg)
		}
	})
}

func BenchmarkHandshake(b *testing.B) {
	x, y := identity(b, [32]byte{}), identity(b, [32]byte{})
	for b.Loop() {
		var first [InitiationSize]byte
		i, err := x.Initiate(&first, y.Public(), 1)
		if err != nil {
			b.Fatal(err)
		}
		r, err := y.Accept(first[:])
		if err != nil {
			b.Fatal(err)
		}
		var answer [ResponseSize]byte
		if _, _, err := r.Respond(&answer, 2); err != nil {
			b.Fatal(err)
		}
		if _, _, err := i.Finish(answer[:]); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkGuard(b *testing.B) {
	g := NewGuard(identity(b, [32]byte{}).Public())
	msg := make([]byte, InitiationSize)
	for b.Loop() {
		if g.Knows(msg) {
			b.Fatal("known")
		}
	}
}
