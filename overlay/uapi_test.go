package overlay

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func TestParseStatus(t *testing.T) {
	t.Parallel()
	key := Key{0: 1, 31: 0xff}
	// Written as wireguard-go's IpcGet writes it.
	text := "private_key=" + strings.Repeat("00", 32) + "\nlisten_port=51820\nfwmark=1\n" +
		"public_key=" + key.hex() + "\npreshared_key=" + strings.Repeat("00", 32) + "\nprotocol_version=1\n" +
		"endpoint=[2001:db8::2]:51820\nlast_handshake_time_sec=7\nlast_handshake_time_nsec=9\n" +
		"tx_bytes=11\nrx_bytes=12\npersistent_keepalive_interval=0\nallowed_ip=10.0.2.0/24\nallowed_ip=fd00::/64\n"
	peers, port, err := parseStatus(text)
	if err != nil || port != 51820 {
		t.Fatal(port, err)
	}
	want := map[Key]PeerStatus{key: {
		Peer: Peer{
			PublicKey: key, Endpoint: netip.MustParseAddrPort("[2001:db8::2]:51820"),
			AllowedIPs: []netip.Prefix{netip.MustParsePrefix("10.0.2.0/24"), netip.MustParsePrefix("fd00::/64")},
		},
		LastHandshake: time.Unix(7, 9), TxBytes: 11, RxBytes: 12,
	}}
	if d := cmp.Diff(want, peers, cmpopts.EquateComparable(Key{}, netip.AddrPort{}, netip.Prefix{})); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	if _, _, err := parseStatus("private_key=00\nsecret without sign"); err == nil || strings.Contains(err.Error(), "secret") {
		t.Errorf("got %v, want an error that quotes nothing", err)
	}
}

func FuzzParseStatus(f *testing.F) {
	f.Add("public_key=" + strings.Repeat("ab", 32) + "\nendpoint=1.2.3.4:5\nallowed_ip=10.0.0.0/8\ntx_bytes=1\n")
	f.Add("listen_port=1\n=\npublic_key=")
	f.Fuzz(func(t *testing.T, text string) {
		peers, _, err := parseStatus(text)
		if err == nil && len(peers) > strings.Count(text, "public_key=") {
			t.Errorf("%d peers of %q", len(peers), text)
		}
	})
}

func TestDiff(t *testing.T) {
	t.Parallel()
	a, b, c := Key{1}, Key{2}, Key{3}
	at := netip.MustParseAddrPort("192.0.2.1:1")
	p := netip.MustParsePrefix
	have := map[Key]PeerStatus{
		a: {Peer: Peer{PublicKey: a, Endpoint: at, AllowedIPs: []netip.Prefix{p("10.0.1.0/24"), p("10.0.9.0/24")}}},
		b: {Peer: Peer{PublicKey: b, Endpoint: at, AllowedIPs: []netip.Prefix{p("10.0.2.0/24")}}},
	}
	want := []Peer{
		{PublicKey: a, Endpoint: at, AllowedIPs: []netip.Prefix{p("10.0.2.0/24"), p("10.0.9.0/24")}},
		{PublicKey: c, Endpoint: at, AllowedIPs: nil},
	}
	got := diff(have, want)
	text := "public_key=" + a.hex() + "\nupdate_only=true\nallowed_ip=10.0.2.0/24\n" +
		"public_key=" + c.hex() + "\nendpoint=192.0.2.1:1|" + c.hex() + "\n" +
		"public_key=" + a.hex() + "\nupdate_only=true\nallowed_ip=-10.0.1.0/24\n" +
		"public_key=" + b.hex() + "\nremove=true\n"
	if d := cmp.Diff(text, got.text); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	if len(got.added) != 1 || len(got.greet) != 1 || len(got.gone) != 1 || got.gone[0] != b {
		t.Errorf("got %+v", got)
	}
	same := []Peer{have[a].Peer, have[b].Peer}
	if got := diff(have, same); got.text != "" || len(got.greet) != 0 {
		t.Errorf("nothing to do, but %+v", got)
	}
}
