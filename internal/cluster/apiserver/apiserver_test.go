package apiserver_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/netctl/netctl/internal/cluster/apiserver"
)

// authority signs the servers of a test.
type authority struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := x509.Certificate{SerialNumber: big.NewInt(1), IsCA: true, BasicConstraintsValid: true, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, &template, &template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{key, cert}
}

func (a *authority) pem() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})
}

// server is an API server that answers with its name.
type server struct {
	*httptest.Server
	asked  atomic.Int32
	bodies atomic.Value
}

// serve starts a server whose certificate has these names and its address, if
// that is wanted.
func (a *authority) serve(t *testing.T, answer string, ip net.IP, names ...string) *server {
	t.Helper()
	template := x509.Certificate{SerialNumber: big.NewInt(2), NotAfter: time.Now().Add(time.Hour), DNSNames: names, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	if ip != nil {
		template.IPAddresses = []net.IP{ip}
	}
	der, err := x509.CreateCertificate(rand.Reader, &template, a.cert, &a.key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	s := &server{}
	s.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.asked.Add(1)
		body, _ := io.ReadAll(r.Body)
		s.bodies.Store(string(body))
		if answer == "" {
			panic(http.ErrAbortHandler)
		}
		_, _ = io.WriteString(w, answer)
	}))
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	s.TLS = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: a.key}}}
	s.EnableHTTP2 = true
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

func (s *server) addr(t *testing.T) netip.AddrPort {
	t.Helper()
	a, err := netip.ParseAddrPort(s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// shut refuses connections from now on.
func (s *server) shut() {
	_ = s.Listener.Close()
	s.CloseClientConnections()
}

func transport(t *testing.T, a *authority, server string) *apiserver.Transport {
	t.Helper()
	u, err := url.Parse(server)
	if err != nil {
		t.Fatal(err)
	}
	tr, err := apiserver.New(apiserver.Config{URL: u, CA: a.pem()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(tr.CloseIdleConnections)
	return tr
}

// ask sends a request by the transport and returns who answered.
func ask(t *testing.T, tr *apiserver.Transport, method, server, body string) (string, error) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, server+"/path", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := tr.RoundTrip(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	return string(answer), err
}

var (
	loopback = net.IPv4(127, 0, 0, 1)
	service  = []string{"kubernetes", "kubernetes.default.svc"}
)

func TestAnotherServerAnswers(t *testing.T) {
	t.Parallel()
	for _, method := range []string{http.MethodGet, http.MethodPost, http.MethodDelete} {
		t.Run(method, func(t *testing.T) {
			t.Parallel()
			a := newAuthority(t)
			first, other := a.serve(t, "first", loopback), a.serve(t, "other", nil, service...)
			tr := transport(t, a, first.URL)
			tr.Use([]netip.AddrPort{first.addr(t), other.addr(t)})
			check := func(want string) {
				t.Helper()
				if got, err := ask(t, tr, method, first.URL, "body"); err != nil || got != want {
					t.Errorf("answer %q, %v; want %q", got, err, want)
				}
			}
			check("first")
			tr.CloseIdleConnections() // or the fate of a write on one that breaks is unknown
			first.shut()
			check("other")
			if got := other.bodies.Load(); got != "body" {
				t.Errorf("the other server got %q", got)
			}
			check("other")
			if want := []netip.AddrPort{first.addr(t), other.addr(t)}; !slices.Equal(tr.Addrs(), want) {
				t.Errorf("Addrs: %v, want %v", tr.Addrs(), want)
			}
			tr.Use(nil)
			if _, err := ask(t, tr, method, first.URL, "body"); err == nil {
				t.Error("a server that the cluster no longer names was used")
			}
		})
	}
}

// TestWritesAreNotRepeated: a write whose fate is unknown fails; a read goes on.
func TestWritesAreNotRepeated(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	first, other := a.serve(t, "", loopback), a.serve(t, "other", nil, service...)
	tr := transport(t, a, first.URL)
	tr.Use([]netip.AddrPort{other.addr(t)})
	if got, err := ask(t, tr, http.MethodPost, first.URL, "body"); err == nil {
		t.Errorf("a write that broke off was answered: %q", got)
	}
	if first.asked.Load() != 1 || other.asked.Load() != 0 {
		t.Errorf("asked %d and %d times, want 1 and 0", first.asked.Load(), other.asked.Load())
	}
	if got, err := ask(t, tr, http.MethodGet, first.URL, ""); err != nil || got != "other" {
		t.Errorf("a read that broke off: %q, %v; want the other's answer", got, err)
	}
}

// TestOnlyAPIServersAreTrusted: a certificate of the cluster that is not an API
// server's, such as a kubelet's, is not enough.
func TestOnlyAPIServersAreTrusted(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	first, kubelet, stranger := a.serve(t, "first", loopback), a.serve(t, "kubelet", loopback, "node-1"), newAuthority(t).serve(t, "stranger", loopback, service...)
	tr := transport(t, a, first.URL)
	tr.Use([]netip.AddrPort{kubelet.addr(t), stranger.addr(t)})
	first.shut()
	if got, err := ask(t, tr, http.MethodGet, first.URL, ""); err == nil {
		t.Errorf("%q was trusted", got)
	}
	if kubelet.asked.Load()+stranger.asked.Load() != 0 {
		t.Error("a request, with its credentials, was sent to who is not an API server")
	}
}

// TestPathBindsToItsServer: an URL with a path is a proxy's; the servers behind
// it do not know the path.
func TestPathBindsToItsServer(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	first, other := a.serve(t, "first", loopback), a.serve(t, "other", nil, service...)
	tr := transport(t, a, first.URL+"/clusters/c1")
	tr.Use([]netip.AddrPort{other.addr(t)})
	first.shut()
	if got, err := ask(t, tr, http.MethodGet, first.URL, ""); err == nil {
		t.Errorf("%q answered", got)
	}
}

func TestNew(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t).pem()
	for name, test := range map[string]struct {
		url *url.URL
		ca  []byte
		ok  bool
	}{
		"good":         {&url.URL{Scheme: "https", Host: "example.org"}, ca, true},
		"no URL":       {nil, ca, false},
		"no TLS":       {&url.URL{Scheme: "http", Host: "example.org"}, ca, false},
		"no host":      {&url.URL{Scheme: "https", Host: ":6443"}, ca, false},
		"no authority": {&url.URL{Scheme: "https", Host: "example.org"}, []byte("\n"), false},
	} {
		if _, err := apiserver.New(apiserver.Config{URL: test.url, CA: test.ca}); (err == nil) != test.ok {
			t.Errorf("%s: error %v", name, err)
		}
	}
}
