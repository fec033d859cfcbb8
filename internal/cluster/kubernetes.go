package cluster

import (
	"cmp"
	"context"
	"log/slog"
	"net/netip"
	"net/url"
	"strconv"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"github.com/netctl/netctl/internal/cluster/statefile"
	"github.com/netctl/netctl/internal/model"
)

// Times of the Kubernetes source.
const (
	// mergeWindow joins the changes that follow closely upon a published one; a
	// change after a pause does not wait at all.
	mergeWindow = 5 * time.Millisecond
	// patience is how long the first State may take before the one of the last
	// run is published instead.
	patience = 2 * time.Second
)

// KubernetesConfig says how to reach the API server.
type KubernetesConfig struct {
	Node           string // this node's name
	Kubeconfig     string // for use outside the cluster; "": the ServiceAccount
	Server         string // URL or host:port of the API server; "": the one in KubeletConf
	KubeletConf    string // the kubelet's kubeconfig, read for the server's address and CA only; "": kubeadm's place
	ServiceAccount string // directory with token and ca.crt; "": where the kubelet puts it
	CacheFile      string // where the last State is kept; "": nowhere
	// Kinds are the kinds that are read, by their plurals ("services"); none: all
	// that a State has. The others are as if there were none.
	Kinds  []string
	Logger *slog.Logger
}

// Kubernetes is the Source that watches an API server. It is also where an
// agent publishes its node's claim, claims blocks and makes the Service of the
// cluster's DNS. The methods may be called concurrently.
//
// While no API server answers, the last State stays in force, and what is
// written fails. What was read last is also kept in a file, for an agent that
// starts meanwhile.
type Kubernetes struct {
	cfg       KubernetesConfig
	log       *slog.Logger
	api       *clients
	resources []resource
	pool      *interner
	wake      chan struct{} // capacity 1: something changed
	resave    chan struct{} // capacity 1: the file lacks settings that are known

	mu       sync.Mutex
	snapshot *snapshot            // guarded by mu
	heard    time.Time            // of the first change that is in no State yet; guarded by mu
	listed   [kindCount]bool      // guarded by mu
	troubles [kindCount]error     // why a kind could not be read the last time; guarded by mu
	live     bool                 // the last State was the API server's; guarded by mu
	refused  map[objectKey]string // what is wrong with objects, so that it is said once; guarded by mu
	settings *Settings            // the last ones known; guarded by mu
	cached   *model.State         // of the last run, until the first live one; guarded by mu
	fresh    bool                 // the last run ended a moment ago; guarded by mu
	keeps    bool                 // the file is this run's to write; guarded by mu
	kept     statefile.Content    // what this run wrote into the file last; guarded by mu
}

// objectKey is what an object is known by.
type objectKey struct {
	kind kind
	name model.Name
}

// NewKubernetes returns a Kubernetes; nothing is dialled before Run or another
// method. The error says what is missing to find the API server.
func NewKubernetes(cfg KubernetesConfig) (*Kubernetes, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	cfg.KubeletConf = cmp.Or(cfg.KubeletConf, defaultKubelet)
	cfg.ServiceAccount = cmp.Or(cfg.ServiceAccount, serviceAccountDir)
	api, err := connect(cfg)
	if err != nil {
		return nil, err
	}
	read, err := chosen(resources(api), cfg.Kinds)
	if err != nil {
		return nil, err
	}
	k := &Kubernetes{
		cfg: cfg, log: cfg.Logger, api: api, resources: read, pool: newInterner(),
		wake: make(chan struct{}, 1), resave: make(chan struct{}, 1), keeps: true, snapshot: newSnapshot(), refused: map[objectKey]string{},
	}
	k.load()
	return k, nil
}

// Run implements Source. It never fails: an API server that does not answer is
// waited for.
func (k *Kubernetes) Run(ctx context.Context, publish func(*model.State)) error {
	defer k.api.close()
	var wg sync.WaitGroup
	defer wg.Wait()
	saved := make(chan *model.State, 1)
	wg.Go(func() { k.keepSaving(saved) })
	defer close(saved)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	quiet := klog.NewContext(ctx, klog.Logger{}) // reflectors' errors are logged by us, once
	for _, r := range k.resources {
		wg.Go(func() { k.reflector(r).RunWithContext(quiet) })
	}

	late := time.NewTimer(k.patience())
	defer late.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-late.C:
			if s := k.fallback(); s != nil {
				k.log.Info("no complete answer of the api server yet, using the state of the last run", "file", k.cfg.CacheFile, "revision", s.Revision)
				publish(s)
			}
			continue
		case <-k.wake:
		}
		s := k.build()
		if s == nil {
			continue
		}
		k.learnServers(s)
		publish(s)
		k.mu.Lock()
		k.live = true
		k.mu.Unlock()
		offer(saved, s)
		select {
		case <-time.After(mergeWindow):
		case <-ctx.Done():
		}
	}
}

// build returns the next State, nil while a kind is missing or nothing changed.
func (k *Kubernetes) build() *model.State {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.missing() != "" {
		return nil
	}
	k.cached = nil
	s := k.snapshot.build()
	if s != nil {
		s.Heard = k.heard
	}
	k.heard = time.Time{}
	return s
}

// patience returns how long the API server may take before the State of the
// last run is published.
func (k *Kubernetes) patience() time.Duration {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.fresh {
		return 0
	}
	return patience
}

// fallback returns the cached State when the live one is not complete yet.
func (k *Kubernetes) fallback() *model.State {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.missing() == "" {
		return nil
	}
	return k.cached
}

// missing names a kind that was not listed yet; mu is held.
func (k *Kubernetes) missing() string {
	for _, r := range k.resources {
		if !k.listed[r.kind] {
			return r.plural
		}
	}
	return ""
}

// hear notes when something changed, once everything was read; mu is held.
func (k *Kubernetes) hear(at time.Time) {
	if k.heard.IsZero() && k.missing() == "" {
		k.heard = at
	}
}

// changed wakes Run.
func (k *Kubernetes) changed() {
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// offer puts the newest State into a channel of capacity 1.
func offer(c chan *model.State, s *model.State) {
	select {
	case <-c:
	default:
	}
	c <- s
}

// learnServers tells the connection where the cluster's API servers are: they
// write their addresses into the slices of the Service default/kubernetes.
func (k *Kubernetes) learnServers(s *model.State) {
	if k.api.servers == nil {
		return
	}
	lists := newSnapshot().lists
	slice, ok := lists[kindEndpointSlice].get(s, model.Name{Namespace: "default", Name: "kubernetes"}).(*model.EndpointSlice)
	if !ok || len(slice.Ports) == 0 {
		return
	}
	var addrs []netip.AddrPort
	for _, e := range slice.Endpoints {
		if e.Ready && e.Address.IsValid() {
			addrs = append(addrs, netip.AddrPortFrom(e.Address, slice.Ports[0].Port))
		}
	}
	k.api.servers.Use(addrs)
}

// Servers returns the addresses of the API servers as far as they are known.
func (k *Kubernetes) Servers() []netip.AddrPort {
	if k.api.servers != nil {
		return k.api.servers.Addrs()
	}
	u, err := url.Parse(k.api.host)
	if err != nil {
		return nil
	}
	addr, err := netip.ParseAddr(u.Hostname())
	if err != nil {
		return nil // a name; who resolves it does not tell
	}
	port, err := strconv.ParseUint(cmp.Or(u.Port(), "443"), 10, 16)
	if err != nil {
		return nil
	}
	return []netip.AddrPort{netip.AddrPortFrom(addr.Unmap(), uint16(port))}
}
