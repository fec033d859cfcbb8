package overlay

import (
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"golang.zx2c4.com/wireguard/conn"
)

type fakeEndpoint struct {
	conn.Endpoint
	at string
}

func (e fakeEndpoint) DstToString() string { return e.at }

func TestTies(t *testing.T) {
	t.Parallel()
	synctest.Test(t, testTies)
}

func testTies(t *testing.T) {
	const at = "192.0.2.9:51820"
	peer, msg, now := fakeEndpoint{at: at}, []byte{1, 2, 3}, time.Now()
	setup := func(self, other byte) (*ties, chan []byte) {
		held := make(chan []byte, 1)
		ts := newTies(Key{self}, func(m []byte, _ conn.Endpoint) { held <- m })
		ts.setPeers([]Peer{{PublicKey: Key{other}, Endpoint: netip.MustParseAddrPort(at)}})
		return ts, held
	}
	refused := func(ts *ties, now time.Time) bool {
		again, to, refuse := ts.refuse(peer, now)
		if refuse != (string(again) == string(msg)) || refuse != (to == peer) {
			t.Errorf("refuse %v, repeats %v to %v", refuse, again, to)
		}
		return refuse
	}

	ts, _ := setup(1, 2)
	if refused(ts, now) {
		t.Error("refused without one of our own")
	}
	ts, _ = setup(1, 2)
	if !ts.begin(msg, peer, now) || !refused(ts, now) {
		t.Error("the lower key must win a tie")
	}
	if !refused(ts, now) || refused(ts, now) || refused(ts, now.Add(tieWindow+1)) {
		t.Error("two are refused, then one must pass, and late ones pass")
	}
	ts.answered(peer)
	if refused(ts, now) {
		t.Error("refused after ours was answered")
	}

	ts, _ = setup(2, 1)
	if !ts.begin(msg, peer, now) || refused(ts, now) {
		t.Error("the higher key must give way")
	}

	ts, held := setup(1, 2) // theirs comes first, ours is held
	if refused(ts, now) || ts.begin(msg, peer, now) || len(held) > 0 {
		t.Error("ours must wait for the answer to theirs")
	}
	if name := (asker{peer, ts}).DstToString(); name != at || len(held) != 1 {
		t.Error("ours must go when theirs is rejected")
	}

	ts, held = setup(1, 2)
	refused(ts, now)
	ts.begin(msg, peer, now)
	if got := <-held; string(got) != string(msg) {
		t.Errorf("sent %v later, want ours", got)
	}

	ts, held = setup(1, 2)
	refused(ts, now)
	ts.begin(msg, peer, now)
	ts.respond(peer) // theirs is answered: ours is not needed
	time.Sleep(answerTime + answerTime/4)
	if len(held) != 0 {
		t.Error("ours was sent although theirs was answered")
	}

	ts = newTies(Key{1}, func([]byte, conn.Endpoint) {}) // theirs comes before we know them
	refused(ts, now)
	ts.setPeers([]Peer{{PublicKey: Key{2}, Endpoint: netip.MustParseAddrPort(at)}})
	if ts.begin(msg, peer, now) {
		t.Error("an initiation just before the peer became one is forgotten")
	}
	ts.close()
}
