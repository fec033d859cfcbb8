package cluster_test

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/netctl/netctl/internal/cluster"
)

// fakeAPI is an API server in the test's process, as little of one as a source
// needs: it streams lists and changes as JSON. What it has is set before it is
// asked; it can misbehave.
type fakeAPI struct {
	ca   *authority
	http *httptest.Server
	dir  string // a ServiceAccount's

	mu       sync.Mutex
	objects  map[string][]string                               // by resource: objects as JSON, in the order of the list; guarded by mu
	watchers map[string]map[chan string]bool                   // by resource; guarded by mu
	wrong    func(w http.ResponseWriter, r *http.Request) bool // answers instead, if it likes; guarded by mu
	asked    int                                               // guarded by mu
	noStream bool                                              // lists are not streamed, as by servers of old; guarded by mu
}

func newFakeAPI(t testing.TB) *fakeAPI {
	t.Helper()
	ca, err := newAuthority()
	if err != nil {
		t.Fatal(err)
	}
	f := &fakeAPI{ca: ca, dir: t.TempDir(), objects: map[string][]string{}, watchers: map[string]map[chan string]bool{}}
	f.http = f.serve(t, []string{"localhost"}, net.IPv4(127, 0, 0, 1))
	for name, data := range map[string]string{"ca.crt": string(ca.pem), "token": token} {
		if err := os.WriteFile(filepath.Join(f.dir, name), []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return f
}

// serve starts one more server of the same cluster.
func (f *fakeAPI) serve(t testing.TB, names []string, ips ...net.IP) *httptest.Server {
	t.Helper()
	certPEM, keyPEM, err := f.ca.issue(names, ips...)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(f)
	s.TLS = &tls.Config{Certificates: []tls.Certificate{cert}}
	s.EnableHTTP2 = true
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	s.StartTLS()
	t.Cleanup(func() {
		s.CloseClientConnections()
		s.Close()
	})
	return s
}

func (f *fakeAPI) config() cluster.KubernetesConfig {
	return cluster.KubernetesConfig{Node: "n1", Server: f.http.URL, ServiceAccount: f.dir, KubeletConf: filepath.Join(f.dir, "none")}
}

// misbehave makes wrong answer requests first; nil ends that.
func (f *fakeAPI) misbehave(wrong func(w http.ResponseWriter, r *http.Request) bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.wrong = wrong
}

// send tells everybody who watches a resource of a change.
func (f *fakeAPI) send(resource, event, object string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for c := range f.watchers[resource] {
		c <- fmt.Sprintf(`{"type":%q,"object":%s}`, event, object)
	}
}

// watching reports how many watch a resource.
func (f *fakeAPI) watching(resource string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.watchers[resource])
}

// requests returns how often the server was asked.
func (f *fakeAPI) requests() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.asked
}

// kinds are the resources' kinds and versions.
var kinds = map[string][2]string{
	"nodes": {"Node", "v1"}, "namespaces": {"Namespace", "v1"}, "pods": {"Pod", "v1"}, "services": {"Service", "v1"},
	"endpointslices": {"EndpointSlice", "discovery.k8s.io/v1"}, "networkpolicies": {"NetworkPolicy", "networking.k8s.io/v1"},
	"servicecidrs": {"ServiceCIDR", "networking.k8s.io/v1"}, "blocks": {"Block", "netctl.io/v1alpha1"}, "blockpools": {"BlockPool", "netctl.io/v1alpha1"},
}

func (f *fakeAPI) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	f.asked++
	wrong, noStream := f.wrong, f.noStream
	f.mu.Unlock()
	if wrong != nil && wrong(w, r) {
		return
	}
	if r.Header.Get("Authorization") != "Bearer "+token {
		status(w, http.StatusUnauthorized, "Unauthorized")
		return
	}
	resource := r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:]
	kind, ok := kinds[resource]
	q := r.URL.Query()
	switch {
	case !ok:
		status(w, http.StatusNotFound, "NotFound")
	case q.Get("watch") == "true" && q.Get("sendInitialEvents") == "true" && noStream:
		status(w, http.StatusUnprocessableEntity, "Invalid")
	case q.Get("watch") == "true":
		f.watch(w, r, resource, kind, q.Get("sendInitialEvents") == "true")
	default:
		f.mu.Lock()
		list := fmt.Sprintf(`{"kind":"%sList","apiVersion":%q,"metadata":{"resourceVersion":"1"},"items":[%s]}`,
			kind[0], kind[1], strings.Join(f.objects[resource], ","))
		f.mu.Unlock()
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write([]byte(list))
	}
}

func (f *fakeAPI) watch(w http.ResponseWriter, r *http.Request, resource string, kind [2]string, initial bool) {
	c := make(chan string, 100)
	f.mu.Lock()
	if f.watchers[resource] == nil {
		f.watchers[resource] = map[chan string]bool{}
	}
	f.watchers[resource][c] = true
	objects := f.objects[resource]
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		delete(f.watchers[resource], c)
		f.mu.Unlock()
	}()
	w.Header().Set("Content-Type", "application/json")
	if initial {
		for _, o := range objects {
			_, _ = fmt.Fprintf(w, `{"type":"ADDED","object":%s}`, o)
		}
		_, _ = fmt.Fprintf(w, `{"type":"BOOKMARK","object":{"kind":%q,"apiVersion":%q,"metadata":{"resourceVersion":"1","annotations":{"k8s.io/initial-events-end":"true"}}}}`, kind[0], kind[1])
	}
	flush := http.NewResponseController(w)
	_ = flush.Flush()
	for {
		select {
		case <-r.Context().Done():
			return
		case text := <-c:
			_, _ = w.Write([]byte(text))
			_ = flush.Flush()
		}
	}
}

// status answers with an error as an API server does.
func status(w http.ResponseWriter, code int, reason string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(map[string]any{
		"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "code": code, "message": "the test says so",
	})
}
