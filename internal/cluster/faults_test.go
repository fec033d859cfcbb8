package cluster_test

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/netctl/netctl/internal/cluster"
	"github.com/netctl/netctl/internal/model"
)

func namespace(name string, version int) string {
	return fmt.Sprintf(`{"kind":"Namespace","apiVersion":"v1","metadata":{"name":%q,"resourceVersion":"%d"}}`, name, version)
}

func hasNamespace(name string) func(*model.State) bool {
	return func(s *model.State) bool { return s.Namespace(name) != nil }
}

// TestKubernetesOutlastsFaults: whatever the server does, the source comes to
// the truth when the server comes to its senses, and says nothing before.
func TestKubernetesOutlastsFaults(t *testing.T) {
	t.Parallel()
	type wrong = func(w http.ResponseWriter, r *http.Request) bool
	for name, fault := range map[string]wrong{
		"unavailable": func(w http.ResponseWriter, _ *http.Request) bool {
			status(w, http.StatusServiceUnavailable, "ServiceUnavailable")
			return true
		},
		"too many requests": func(w http.ResponseWriter, _ *http.Request) bool {
			w.Header().Set("Retry-After", "1")
			status(w, http.StatusTooManyRequests, "TooManyRequests")
			return true
		},
		"one kind forbidden": func(w http.ResponseWriter, r *http.Request) bool {
			if strings.HasSuffix(r.URL.Path, "/pods") {
				status(w, http.StatusForbidden, "Forbidden")
				return true
			}
			return false
		},
		"an ordinary kind is missing": func(w http.ResponseWriter, r *http.Request) bool {
			if strings.HasSuffix(r.URL.Path, "/pods") {
				status(w, http.StatusNotFound, "NotFound")
				return true
			}
			return false
		},
		"not an API": func(w http.ResponseWriter, _ *http.Request) bool {
			w.Header().Set("Content-Type", "text/html")
			_, _ = w.Write([]byte("<html>welcome</html>"))
			return true
		},
		"garbage": func(w http.ResponseWriter, _ *http.Request) bool {
			w.Header().Set("Content-Type", "application/json")
			_, _ = w.Write([]byte(`{"type":"ADDED","object":{"kind":"Name`))
			return true
		},
		"garbled protobuf": func(w http.ResponseWriter, _ *http.Request) bool {
			w.Header().Set("Content-Type", "application/vnd.kubernetes.protobuf;stream=watch")
			_, _ = w.Write([]byte("\x00\x00\x00\x05k8s\x00\xff\xff\xff\xff\xff"))
			return true
		},
		"connections are cut": func(http.ResponseWriter, *http.Request) bool { panic(http.ErrAbortHandler) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			api := newFakeAPI(t)
			api.objects["namespaces"] = []string{namespace("a", 1)}
			api.misbehave(fault)
			f := follow(t, newKubernetes(t, api.config()))
			eventually(t, func() error {
				if n := api.requests(); n < 12 {
					return fmt.Errorf("%d requests", n)
				}
				return nil
			})
			select {
			case s := <-f.states:
				t.Fatalf("a State without every kind: %+v", s)
			default:
			}
			api.misbehave(nil)
			f.until("the namespace", hasNamespace("a"))
		})
	}
}

// TestKubernetesListsWithoutStreams: an API server that does not stream lists
// is listed.
func TestKubernetesListsWithoutStreams(t *testing.T) {
	t.Parallel()
	api := newFakeAPI(t)
	api.noStream = true
	api.objects["namespaces"] = []string{namespace("a", 1)}
	f := follow(t, newKubernetes(t, api.config()))
	f.until("the namespace", hasNamespace("a"))
	eventually(t, func() error {
		if api.watching("namespaces") == 0 {
			return errors.New("namespaces are not watched")
		}
		return nil
	})
	api.send("namespaces", "ADDED", namespace("b", 2))
	f.until("the second namespace", hasNamespace("b"))
}

// TestKubernetesComesBack: a watch that breaks is resumed, and what was missed
// meanwhile is seen, deletions too; nothing is lost in between.
func TestKubernetesComesBack(t *testing.T) {
	t.Parallel()
	api := newFakeAPI(t)
	api.objects["namespaces"] = []string{namespace("a", 1), namespace("b", 1)}
	f := follow(t, newKubernetes(t, api.config()))
	before := f.until("both", func(s *model.State) bool { return hasNamespace("a")(s) && hasNamespace("b")(s) })
	api.mu.Lock()
	api.objects["namespaces"] = []string{namespace("b", 1), namespace("c", 2)}
	api.mu.Unlock()
	api.misbehave(func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Query().Get("watch") == "true" && r.URL.Query().Get("sendInitialEvents") == "" {
			status(w, http.StatusGone, "Expired")
			return true
		}
		return false
	})
	api.http.CloseClientConnections()
	after := f.until("the truth", func(s *model.State) bool { return !hasNamespace("a")(s) && hasNamespace("c")(s) })
	if before.Namespace("b") != after.Namespace("b") {
		t.Error("a namespace that did not change has a new pointer")
	}
	if !hasNamespace("b")(after) {
		t.Error("a namespace was lost")
	}
}

// TestKubernetesRefusesObjectsAlone: an object that cannot be understood
// disturbs no other; what was good of it stays.
func TestKubernetesRefusesObjectsAlone(t *testing.T) {
	t.Parallel()
	service := func(ip string, version int) string {
		return fmt.Sprintf(`{"kind":"Service","apiVersion":"v1","metadata":{"name":"s","namespace":"default","resourceVersion":"%d"},"spec":{"clusterIP":%q}}`, version, ip)
	}
	api := newFakeAPI(t)
	api.objects["services"] = []string{service("10.0.0.1", 1)}
	api.objects["nodes"] = []string{`{"kind":"Node","apiVersion":"v1","metadata":{"name":"n","resourceVersion":"1","annotations":{"netctl.io/endpoints":"nonsense"}},"spec":{"podCIDR":"10.1.0.0/24"}}`}
	f := follow(t, newKubernetes(t, api.config()))
	s := f.until("the service", func(s *model.State) bool { return len(s.Services) == 1 })
	if n := s.Node("n"); n == nil || len(n.PodCIDRs) != 1 || len(n.Endpoints) != 0 {
		t.Errorf("node with a malformed claim: %+v, want its range and no endpoint", n)
	}
	api.send("services", "MODIFIED", service("10.0.0.one", 2))
	api.send("namespaces", "ADDED", namespace("a", 3))
	s = f.until("the namespace", hasNamespace("a"))
	if len(s.Services) != 1 || s.Services[0].ClusterIPs[0] != netip.MustParseAddr("10.0.0.1") {
		t.Errorf("services %+v, want the good one of before", s.Services)
	}
	api.send("services", "MODIFIED", service("10.0.0.2", 4))
	f.until("the new address", func(s *model.State) bool { return s.Services[0].ClusterIPs[0] == netip.MustParseAddr("10.0.0.2") })
}

// TestKubernetesBeginsWithTheLastState: without a server the State of the last
// run counts, and the live one replaces it.
func TestKubernetesBeginsWithTheLastState(t *testing.T) {
	t.Parallel()
	api := newFakeAPI(t)
	api.objects["namespaces"] = []string{namespace("a", 1), namespace("b", 1)}
	api.objects["blocks"] = []string{`{"kind":"Block","apiVersion":"netctl.io/v1alpha1","metadata":{"name":"10-0-0-0-24","resourceVersion":"1"},"spec":{"cidr":"10.0.0.0/24","node":"n1"}}`}
	cfg := api.config()
	cfg.CacheFile = filepath.Join(t.TempDir(), "state")
	f := follow(t, newKubernetes(t, cfg))
	first := f.until("both", func(s *model.State) bool { return hasNamespace("a")(s) && hasNamespace("b")(s) })
	f.stop()
	info, err := os.Stat(cfg.CacheFile)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("cache file: %v, %v; want mode 0600", info, err)
	}

	api.objects["namespaces"] = []string{namespace("b", 1)}
	api.objects["blocks"] = nil
	hang := make(chan struct{})
	t.Cleanup(func() { api.misbehave(nil) })
	api.misbehave(func(_ http.ResponseWriter, r *http.Request) bool {
		select {
		case <-hang:
		case <-r.Context().Done():
		}
		return false
	})
	f = follow(t, newKubernetes(t, cfg))
	cached := f.until("the cached State", func(*model.State) bool { return true })
	if !cached.Synced || !hasNamespace("a")(cached) || len(cached.Blocks) != 1 || cached.Revision < first.Revision {
		t.Errorf("cached State %+v, want that of revision %d", cached, first.Revision)
	}
	if !cached.Heard.IsZero() {
		t.Errorf("the cached State was heard of at %s, in an earlier run", cached.Heard)
	}
	close(hang)
	live := f.until("the live State", func(s *model.State) bool { return !hasNamespace("a")(s) })
	if len(live.Blocks) != 0 {
		t.Errorf("blocks %v are gone from the server", live.Blocks)
	}
	if cached.Namespace("b") != live.Namespace("b") {
		t.Error("what is the same in the cached and the live State has two pointers")
	}
}

// TestKubernetesContinuesAtOnce: who comes right after the last run does not wait
// for an API server, who comes later does; and a run says until when its file was
// the newest, also when nothing had changed, but not when it heard of nothing.
func TestKubernetesContinuesAtOnce(t *testing.T) {
	t.Parallel()
	api := newFakeAPI(t)
	api.objects["namespaces"] = []string{namespace("a", 1)}
	cfg := api.config()
	cfg.CacheFile = filepath.Join(t.TempDir(), "state")
	if k := newKubernetes(t, cfg); k.Patience() == 0 {
		t.Error("without a file: no patience")
	}
	f := follow(t, newKubernetes(t, cfg))
	f.until("the State", hasNamespace("a"))
	f.stop()
	hour := time.Now().Add(-time.Hour)
	if err := os.Chtimes(cfg.CacheFile, hour, hour); err != nil {
		t.Fatal(err)
	}
	later := newKubernetes(t, cfg)
	if later.Patience() == 0 {
		t.Error("an hour after the last run: no patience")
	}
	api.misbehave(func(http.ResponseWriter, *http.Request) bool { return true })
	f = follow(t, later)
	f.until("the State of the last run", hasNamespace("a"))
	f.stop()
	if k := newKubernetes(t, cfg); k.Patience() == 0 {
		t.Error("after a run that no server answered: the file counts as new")
	}
	api.misbehave(nil)
	again := newKubernetes(t, cfg)
	f = follow(t, again)
	confirmed(t, again)
	again.Keep(false)
	f.stop()
	if err := os.Chtimes(cfg.CacheFile, hour, hour); err != nil {
		t.Fatal(err)
	}
	again = newKubernetes(t, cfg)
	f = follow(t, again)
	again.Keep(false)
	confirmed(t, again)
	f.stop()
	if k := newKubernetes(t, cfg); k.Patience() == 0 {
		t.Error("a run that others have followed says that the file is new")
	}
	again = newKubernetes(t, cfg)
	f = follow(t, again)
	again.Keep(false)
	again.Keep(true)
	confirmed(t, again)
	f.stop()
	if k := newKubernetes(t, cfg); k.Patience() != 0 {
		t.Errorf("right after a run in which nothing changed: waits %v", k.Patience())
	}
}

// confirmed waits until the State is the server's.
func confirmed(t *testing.T, k *cluster.Kubernetes) {
	t.Helper()
	eventually(t, k.Unconfirmed)
	if !k.Live() {
		t.Error("confirmed, and not live")
	}
}

// TestKubernetesSaysWhatIsMissing: while the State of the last run counts, it is
// known why, and whether anybody answers.
func TestKubernetesSaysWhatIsMissing(t *testing.T) {
	t.Parallel()
	api := newFakeAPI(t)
	cfg := api.config()
	cfg.CacheFile = filepath.Join(t.TempDir(), "state")
	k := newKubernetes(t, cfg)
	if err := k.Unconfirmed(); !errors.Is(err, cluster.ErrNoAnswer) {
		t.Errorf("before anything was asked: %v", err)
	}
	f := follow(t, k)
	confirmed(t, k)
	f.stop()

	api.misbehave(func(w http.ResponseWriter, r *http.Request) bool {
		if strings.HasSuffix(r.URL.Path, "/blockpools") {
			status(w, http.StatusForbidden, "Forbidden")
			return true
		}
		return false
	})
	k = newKubernetes(t, cfg)
	f = follow(t, k)
	f.until("the State of the last run", func(s *model.State) bool { return s.Synced })
	eventually(t, func() error {
		if err := k.Unconfirmed(); err == nil || errors.Is(err, cluster.ErrNoAnswer) || !strings.Contains(err.Error(), "blockpools cannot be read") {
			return fmt.Errorf("a kind that is forbidden: %w", err)
		}
		return nil
	})
	if k.Live() {
		t.Error("live without a kind")
	}
	api.misbehave(nil)
	confirmed(t, k)
	f.stop()

	stranger := newFakeAPI(t) // signed by somebody else
	foreign := cfg
	foreign.Server = stranger.http.URL
	k = newKubernetes(t, foreign)
	follow(t, k)
	eventually(t, func() error {
		if err := k.Unconfirmed(); err == nil || errors.Is(err, cluster.ErrNoAnswer) {
			return fmt.Errorf("a server that is not the cluster's: %w", err)
		}
		return nil
	})

	api.http.Listener.Close()
	api.http.CloseClientConnections()
	k = newKubernetes(t, cfg)
	follow(t, k).until("the State of the last run", func(s *model.State) bool { return s.Synced })
	time.Sleep(time.Second) // several tries
	if err := k.Unconfirmed(); !errors.Is(err, cluster.ErrNoAnswer) {
		t.Errorf("without a server: %v", err)
	}
}

// TestKubernetesIgnoresAnotherClustersCache: a node that was given to another
// cluster begins with nothing of the former one.
func TestKubernetesIgnoresAnotherClustersCache(t *testing.T) {
	t.Parallel()
	former, api := newFakeAPI(t), newFakeAPI(t)
	former.objects["namespaces"] = []string{namespace("former", 1)}
	cfg := former.config()
	cfg.CacheFile = filepath.Join(t.TempDir(), "state")
	f := follow(t, newKubernetes(t, cfg))
	f.until("the former cluster's State", hasNamespace("former"))
	f.stop()

	var log bytes.Buffer
	file := cfg.CacheFile
	cfg = api.config()
	cfg.CacheFile, cfg.Logger = file, slog.New(slog.NewTextHandler(&log, nil))
	k := newKubernetes(t, cfg)
	if !strings.Contains(log.String(), "of another cluster") {
		t.Errorf("log says %q, want that the file is of another cluster", log.String())
	}
	if s := follow(t, k).until("a State", func(*model.State) bool { return true }); hasNamespace("former")(s) {
		t.Error("the former cluster's State counts")
	}
}

// TestKubernetesKnowsItsClustersCache: the same authority from other places, as
// with a kubelet.conf that has it too, is the same cluster.
func TestKubernetesKnowsItsClustersCache(t *testing.T) {
	t.Parallel()
	api := newFakeAPI(t)
	api.objects["namespaces"] = []string{namespace("a", 1)}
	cfg := api.config()
	cfg.CacheFile = filepath.Join(t.TempDir(), "state")
	f := follow(t, newKubernetes(t, cfg))
	f.until("the State", hasNamespace("a"))
	f.stop()
	twice := append(append([]byte{}, api.ca.pem...), api.ca.pem...)
	if err := os.WriteFile(filepath.Join(api.dir, "ca.crt"), twice, 0o600); err != nil {
		t.Fatal(err)
	}
	api.http.Listener.Close()
	api.http.CloseClientConnections()
	follow(t, newKubernetes(t, cfg)).until("the State of the last run", hasNamespace("a"))
}

func TestKubernetesIgnoresADamagedCache(t *testing.T) {
	t.Parallel()
	api := newFakeAPI(t)
	cfg := api.config()
	cfg.CacheFile = filepath.Join(t.TempDir(), "state")
	if err := os.WriteFile(cfg.CacheFile, []byte("netctl state 1\nnonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	follow(t, newKubernetes(t, cfg)).until("a State", func(s *model.State) bool { return s.Synced })
}

// TestKubernetesReadsSomeKinds: a source of some kinds asks for no others, and
// takes no others from the file of one that read more.
func TestKubernetesReadsSomeKinds(t *testing.T) {
	t.Parallel()
	api := newFakeAPI(t)
	api.objects["namespaces"] = []string{namespace("a", 1)}
	cfg := api.config()
	cfg.CacheFile = filepath.Join(t.TempDir(), "state")
	f := follow(t, newKubernetes(t, cfg))
	f.until("the namespace", hasNamespace("a"))
	f.stop()
	cfg.Kinds = []string{"services", "endpointslices"}
	var others atomic.Int32
	api.misbehave(func(_ http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, "/services") && !strings.HasSuffix(r.URL.Path, "/endpointslices") {
			others.Add(1)
		}
		return false
	})
	f = follow(t, newKubernetes(t, cfg))
	if s := f.until("a State", func(s *model.State) bool { return s.Synced }); len(s.Namespaces) != 0 {
		t.Errorf("namespaces %v were not to be read", s.Namespaces)
	}
	if n := others.Load(); n != 0 {
		t.Errorf("%d requests for other kinds", n)
	}
	cfg.Kinds = []string{"secrets"}
	if _, err := cluster.NewKubernetes(cfg); err == nil || !strings.Contains(err.Error(), "secrets") {
		t.Errorf("a kind that no State has: %v", err)
	}
}

// TestKubernetesFailsOver: when the configured API server is gone, the others
// that the cluster names are used, for reading and writing, also by an agent
// that starts then.
func TestKubernetesFailsOver(t *testing.T) {
	t.Parallel()
	api := newFakeAPI(t)
	other := api.serve(t, []string{"kubernetes", "kubernetes.default.svc"}) // the first one's address is not in its certificate
	addr := netip.MustParseAddrPort(other.Listener.Addr().String())
	api.objects["endpointslices"] = []string{fmt.Sprintf(`{"kind":"EndpointSlice","apiVersion":"discovery.k8s.io/v1",
		"metadata":{"name":"kubernetes","namespace":"default","resourceVersion":"1"},"addressType":"IPv4",
		"endpoints":[{"addresses":[%q]}],"ports":[{"name":"https","port":%d}]}`, addr.Addr(), addr.Port())}
	cfg := api.config()
	cfg.CacheFile = filepath.Join(t.TempDir(), "state")
	k := newKubernetes(t, cfg)
	f := follow(t, k)
	f.until("the endpoints", func(s *model.State) bool { return len(s.EndpointSlices) == 1 })
	servers := k.Servers()
	if want := netip.MustParseAddrPort(api.http.Listener.Addr().String()); len(servers) != 2 || servers[0] != want || servers[1] != addr {
		t.Errorf("Servers: %v, want %v and %v", servers, want, addr)
	}
	api.http.Listener.Close()
	api.http.CloseClientConnections()
	check := func(f *follower, name string) {
		t.Helper()
		eventually(t, func() error {
			if n := api.watching("namespaces"); n != 1 {
				return fmt.Errorf("%d watch namespaces, want 1", n)
			}
			return nil
		})
		api.mu.Lock()
		api.objects["namespaces"] = append(api.objects["namespaces"], namespace(name, 2))
		api.mu.Unlock()
		api.send("namespaces", "ADDED", namespace(name, 2))
		f.until("a namespace by the other server", hasNamespace(name))
	}
	check(f, "a")
	f.stop()
	eventually(t, func() error {
		if api.watching("namespaces") > 0 {
			return errors.New("still watched")
		}
		return nil
	})
	f = follow(t, newKubernetes(t, cfg))
	f.until("the first namespace", hasNamespace("a"))
	check(f, "b")
}

// TestKubernetesNeedsAnAPIServer: what is missing is said, with what to do.
func TestKubernetesNeedsAnAPIServer(t *testing.T) {
	t.Parallel()
	api := newFakeAPI(t)
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	kubelet := func(server string) string {
		return fmt.Sprintf("apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts: [{name: c, context: {cluster: k, user: u}}]\nclusters: [{name: k, cluster: {server: %q}}]\nusers: [{name: u, user: {client-certificate: /absent}}]\n", server)
	}
	good := write("good", kubelet(api.http.URL))
	for name, test := range map[string]struct {
		change func(*cluster.KubernetesConfig)
		want   string // in the error; "" for none
	}{
		"server from the kubelet":    {func(c *cluster.KubernetesConfig) { c.Server, c.KubeletConf = "", good }, ""},
		"server as host and port":    {func(c *cluster.KubernetesConfig) { c.Server = "192.0.2.1:6443" }, ""},
		"no token":                   {func(c *cluster.KubernetesConfig) { c.ServiceAccount = dir }, "no credentials"},
		"no server":                  {func(c *cluster.KubernetesConfig) { c.Server = "" }, "no API server: none is configured"},
		"kubelet.conf is no config":  {func(c *cluster.KubernetesConfig) { c.Server, c.KubeletConf = "", write("bad", "{") }, "no API server"},
		"kubelet.conf has no server": {func(c *cluster.KubernetesConfig) { c.Server, c.KubeletConf = "", write("empty", "kind: Config") }, "no cluster for its current context"},
		"server without TLS":         {func(c *cluster.KubernetesConfig) { c.Server = "http://192.0.2.1" }, "not an https URL"},
		"no kubeconfig":              {func(c *cluster.KubernetesConfig) { c.Kubeconfig = filepath.Join(dir, "none") }, "kubeconfig"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := api.config()
			test.change(&cfg)
			k, err := cluster.NewKubernetes(cfg)
			switch {
			case test.want == "" && (err != nil || len(k.Servers()) != 1):
				t.Errorf("error %v, servers %v", err, k)
			case test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)):
				t.Errorf("error %v, want one with %q", err, test.want)
			}
		})
	}
}

// TestKubernetesSettings reads what kubeadm wrote, and remembers it.
func TestKubernetesSettings(t *testing.T) {
	t.Parallel()
	api := newFakeAPI(t)
	var mu sync.Mutex
	maps := map[string]string{} // guarded by mu
	api.misbehave(func(w http.ResponseWriter, r *http.Request) bool {
		name, ok := strings.CutPrefix(r.URL.Path, "/api/v1/namespaces/kube-system/configmaps/")
		mu.Lock()
		data := maps[name]
		mu.Unlock()
		if ok && data != "" {
			w.Header().Set("Content-Type", "application/json")
			_, _ = fmt.Fprintf(w, `{"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":%q},"data":%s}`, name, data)
			return true
		}
		return false
	})
	cfg := api.config()
	cfg.CacheFile = filepath.Join(t.TempDir(), "state")
	k := newKubernetes(t, cfg)
	if s, err := k.Settings(t.Context()); err != nil || len(s.PodSubnets)+len(s.ServiceSubnets)+len(s.ClusterDNS) != 0 || s.DNSDomain != "" {
		t.Errorf("settings of a cluster without kubeadm: %+v, %v", s, err)
	}
	maps["kubeadm-config"] = `{"ClusterConfiguration":"networking: {podSubnet: nonsense}"}`
	if s, err := k.Settings(t.Context()); err == nil || !strings.Contains(err.Error(), "kubeadm-config: networking.podSubnet") {
		t.Errorf("settings %+v of a broken configuration: %v", s, err)
	}
	maps["kubeadm-config"] = `{"ClusterConfiguration":"networking:\n  dnsDomain: example.org\n  podSubnet: 10.1.0.0/16,fd00:1::/56\n  serviceSubnet: 10.96.0.0/12\n"}`
	maps["kubelet-config"] = `{"kubelet":"clusterDNS:\n- 10.96.0.10\nclusterDomain: example.org\n"}`
	check := func(k *cluster.Kubernetes) {
		t.Helper()
		s, err := k.Settings(t.Context())
		if got, want := fmt.Sprint(s), "{[10.1.0.0/16 fd00:1::/56] [10.96.0.0/12] example.org [10.96.0.10]}"; err != nil || got != want {
			t.Errorf("settings %s, %v; want %s", got, err, want)
		}
	}
	check(k)
	f := follow(t, k)
	f.until("a State", func(*model.State) bool { return true })
	f.stop()

	// What changed meanwhile is not seen at once by who goes on from the file, but
	// when it asks, and then it is in the file.
	domain := func(name string) {
		mu.Lock()
		defer mu.Unlock()
		maps["kubeadm-config"] = fmt.Sprintf(`{"ClusterConfiguration":"networking: {podSubnet: \"10.1.0.0/16,fd00:1::/56\", serviceSubnet: 10.96.0.0/12, dnsDomain: %s}"}`, name)
	}
	domain("other.org")
	k = newKubernetes(t, cfg)
	check(k)
	f = follow(t, k)
	confirmed(t, k)
	if s, err := k.LiveSettings(t.Context()); err != nil || s.DNSDomain != "other.org" {
		t.Errorf("live settings %+v, %v", s, err)
	}
	if s, err := newKubernetes(t, cfg).Settings(t.Context()); err != nil || s.DNSDomain != "other.org" {
		t.Errorf("settings %+v, %v of the next process", s, err)
	}
	domain("example.org")
	if s, err := k.LiveSettings(t.Context()); err != nil || s.DNSDomain != "example.org" {
		t.Errorf("live settings %+v, %v", s, err)
	}
	f.stop()
	api.http.Listener.Close()
	api.http.CloseClientConnections()
	check(newKubernetes(t, cfg))
	if s, err := newKubernetes(t, cfg).LiveSettings(t.Context()); err == nil {
		t.Errorf("live settings %+v without a server", s)
	}
	cfg.CacheFile = ""
	if _, err := newKubernetes(t, cfg).Settings(t.Context()); err == nil {
		t.Error("settings without a server and a cache")
	}
}

// TestKubernetesKeepsWhatItKnowsOfAKind: a kind that was there does not become
// empty because the server does not know it for a while; with the Blocks every
// pod would lose its network.
func TestKubernetesKeepsWhatItKnowsOfAKind(t *testing.T) {
	t.Parallel()
	api := newFakeAPI(t)
	api.objects["blocks"] = []string{`{"kind":"Block","apiVersion":"netctl.io/v1alpha1","metadata":{"name":"10-0-0-0-24","resourceVersion":"1"},"spec":{"cidr":"10.0.0.0/24","node":"n1"}}`}
	f := follow(t, newKubernetes(t, api.config()))
	f.until("the block", func(s *model.State) bool { return len(s.Blocks) == 1 })
	var refused atomic.Int32
	api.misbehave(func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, "/blocks") {
			return false
		}
		refused.Add(1)
		status(w, http.StatusNotFound, "NotFound")
		return true
	})
	api.mu.Lock()
	api.objects["namespaces"] = []string{namespace("a", 2)}
	api.mu.Unlock()
	api.http.CloseClientConnections()
	eventually(t, func() error {
		if n := refused.Load(); n < 4 {
			return fmt.Errorf("blocks were asked for %d times", n)
		}
		return nil
	})
	api.send("namespaces", "ADDED", namespace("b", 3))
	if s := f.until("the namespace", hasNamespace("b")); len(s.Blocks) != 1 {
		t.Errorf("blocks %v, want the one of before", s.Blocks)
	}
}
