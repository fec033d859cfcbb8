package cluster_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/netctl/netctl/internal/cluster"
	"github.com/netctl/netctl/internal/model"
)

// crds are the definitions of netctl's own kinds, as loose as can be.
const crds = `
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: %[2]s.netctl.io}
spec:
  group: netctl.io
  scope: Cluster
  names: {kind: %[1]s, plural: %[2]s}
  versions:
  - name: v1alpha1
    served: true
    storage: true
    schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
`

const crdPath = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"

// follower runs a source and waits for what its States say.
type follower struct {
	t      testing.TB
	states chan *model.State
	last   *model.State
	cancel context.CancelFunc
	done   chan error
}

func follow(t testing.TB, source cluster.Source) *follower {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	f := &follower{t: t, states: make(chan *model.State, 1000), cancel: cancel, done: make(chan error, 1)}
	go func() { f.done <- source.Run(ctx, func(s *model.State) { f.states <- s }) }()
	t.Cleanup(f.stop)
	return f
}

// stop ends the source.
func (f *follower) stop() {
	f.cancel()
	select {
	case err := <-f.done:
		if err != nil {
			f.t.Errorf("Run: %v", err)
		}
		f.done <- nil
	case <-time.After(20 * time.Second):
		f.t.Error("Run does not end with its context")
	}
}

// until waits for a State for which ok holds.
func (f *follower) until(what string, ok func(*model.State) bool) *model.State {
	f.t.Helper()
	deadline := time.After(60 * time.Second)
	for {
		if f.last != nil && ok(f.last) {
			return f.last
		}
		select {
		case s := <-f.states:
			if f.last != nil && s.Revision <= f.last.Revision {
				f.t.Fatalf("revision %d after %d", s.Revision, f.last.Revision)
			}
			f.last = s
		case <-deadline:
			f.t.Fatalf("no State with %s; the last one: %+v", what, f.last)
		}
	}
}

func (k *kube) config() cluster.KubernetesConfig {
	return cluster.KubernetesConfig{Node: "n1", Server: k.server, ServiceAccount: k.dir, KubeletConf: filepath.Join(k.dir, "none")}
}

func newKubernetes(t testing.TB, cfg cluster.KubernetesConfig) *cluster.Kubernetes {
	t.Helper()
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.NewTextHandler(t.Output(), nil))
	}
	k, err := cluster.NewKubernetes(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestKubernetesFollowsTheServer(t *testing.T) {
	t.Parallel()
	api := realServer(t)
	k := newKubernetes(t, api.config())
	f := follow(t, k)
	first := f.until("the default namespace", func(s *model.State) bool { return s.Namespace("default") != nil })
	if !first.Synced || !slices.Contains(first.ServiceCIDRs, netip.MustParsePrefix("10.96.0.0/16")) {
		t.Errorf("first State: synced %v, service ranges %v", first.Synced, first.ServiceCIDRs)
	}
	api.post(t, "/api/v1/namespaces", "{apiVersion: v1, kind: Namespace, metadata: {name: follow}}")
	api.post(t, "/api/v1/namespaces/follow/services", `
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {ports: [{name: http, port: 80}], clusterIP: 10.96.7.7}
`)
	want := &model.Service{
		Name: model.Name{Namespace: "follow", Name: "web"}, Type: model.ClusterIP, ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.7.7")},
		Ports: []model.ServicePort{{Name: "http", Protocol: model.TCP, Port: 80}},
	}
	s := f.until("the service", func(s *model.State) bool { return s.Service(want.Name) != nil })
	if diff := cmp.Diff(want, s.Service(want.Name), cmpopts.EquateComparable(netip.Addr{}), cmpopts.IgnoreFields(model.Service{}, "UID")); diff != "" {
		t.Errorf("service (-want +got):\n%s", diff)
	}
	api.must(t, http.MethodDelete, "/api/v1/namespaces/follow/services/web", "", "")
	f.until("no service", func(s *model.State) bool { return s.Service(want.Name) == nil })
}

func TestKubernetesBlocks(t *testing.T) {
	t.Parallel()
	api := ownServer(t)
	k := newKubernetes(t, api.config())
	f := follow(t, k)
	f.until("no kind Block", func(s *model.State) bool { return len(s.Blocks) == 0 })
	b := model.Block{CIDR: netip.MustParsePrefix("10.128.4.0/24"), Node: "n1"}
	store := k.Blocks()
	if err := store.Create(t.Context(), b); err == nil {
		t.Error("a block was created without its kind")
	}
	api.post(t, crdPath, fmt.Sprintf(crds, "Block", "blocks"))
	api.post(t, crdPath, fmt.Sprintf(crds, "BlockPool", "blockpools"))
	eventually(t, func() error { return store.Create(t.Context(), b) })
	if err := store.Create(t.Context(), model.Block{CIDR: b.CIDR, Node: "n2"}); !errors.Is(err, fs.ErrExist) {
		t.Errorf("second claim of a block: %v, want fs.ErrExist", err)
	}
	f.until("the block", func(s *model.State) bool { return slices.Contains(s.Blocks, b) })
	if got, err := store.List(t.Context()); err != nil || !slices.Equal(got, []model.Block{b}) {
		t.Errorf("List: %v, %v", got, err)
	}
	if err := store.Delete(t.Context(), model.Block{CIDR: b.CIDR, Node: "n2"}); err == nil {
		t.Error("another node's block was deleted")
	}
	for range 2 { // the second time there is none, which is success
		if err := store.Delete(t.Context(), b); err != nil {
			t.Error(err)
		}
	}
	f.until("no block", func(s *model.State) bool { return len(s.Blocks) == 0 })
	api.post(t, "/apis/netctl.io/v1alpha1/blockpools", `
apiVersion: netctl.io/v1alpha1
kind: BlockPool
metadata: {name: pods}
spec: {ranges: [{cidr: 10.128.0.0/16, blockSize: 24}]}
`)
	f.until("the pool", func(s *model.State) bool {
		return slices.Equal(s.BlockPools, []model.BlockPool{{CIDR: netip.MustParsePrefix("10.128.0.0/16"), Bits: 24}})
	})
}

// eventually repeats what fails until it does not.
func eventually(t testing.TB, try func() error) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for {
		err := try()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func TestKubernetesPublishNode(t *testing.T) {
	t.Parallel()
	api := realServer(t)
	k := newKubernetes(t, api.config())
	api.post(t, "/api/v1/nodes", "{apiVersion: v1, kind: Node, metadata: {name: publisher, annotations: {other: kept}}}")
	claim := cluster.NodeClaim{Node: "publisher", PublicKey: "key", Endpoints: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:51820")}}
	version := func() (string, string) {
		var o struct {
			Metadata struct {
				ResourceVersion, CreationTimestamp string
				Annotations                        map[string]string
			}
		}
		mustJSON(t, api.must(t, http.MethodGet, "/api/v1/nodes/publisher", "", ""), &o)
		if o.Metadata.CreationTimestamp == "" {
			t.Error("the node's creation time was removed")
		}
		return o.Metadata.ResourceVersion, fmt.Sprint(o.Metadata.Annotations)
	}
	if err := k.PublishNode(t.Context(), claim); err != nil {
		t.Fatal(err)
	}
	first, annotations := version()
	if want := "map[netctl.io/endpoints:192.0.2.1:51820 netctl.io/public-key:key other:kept]"; annotations != want {
		t.Errorf("annotations %s, want %s", annotations, want)
	}
	if err := k.PublishNode(t.Context(), claim); err != nil {
		t.Fatal(err)
	}
	if second, _ := version(); second != first {
		t.Error("publishing the same again wrote the Node")
	}
	claim.Node = "absent"
	if err := k.PublishNode(t.Context(), claim); err == nil {
		t.Error("publishing for a Node that does not exist succeeded")
	}
}

func mustJSON(t testing.TB, data []byte, to any) {
	t.Helper()
	if err := json.Unmarshal(data, to); err != nil {
		t.Fatal(err)
	}
}

// TestKubernetesConvertsWhatTheServerSends: every kind comes through protobuf
// (netctl's own through JSON) as the manifest says.
func TestKubernetesConvertsWhatTheServerSends(t *testing.T) {
	t.Parallel()
	api := realServer(t)
	f := follow(t, newKubernetes(t, api.config()))
	api.post(t, "/api/v1/namespaces", "{apiVersion: v1, kind: Namespace, metadata: {name: kinds, labels: {team: a}}}")
	api.post(t, "/api/v1/nodes", `
apiVersion: v1
kind: Node
metadata: {name: kinds, labels: {topology.kubernetes.io/zone: z1}}
spec: {podCIDR: 10.77.0.0/24, podCIDRs: [10.77.0.0/24]}
`)
	api.must(t, http.MethodPatch, "/api/v1/nodes/kinds/status", "application/merge-patch+json",
		`{"status":{"addresses":[{"type":"InternalIP","address":"192.0.2.77"},{"type":"Hostname","address":"kinds"}]}}`)
	api.post(t, "/api/v1/namespaces/kinds/pods", `
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec: {nodeName: kinds, containers: [{name: c, image: i, ports: [{name: http, containerPort: 80}]}]}
`)
	api.must(t, http.MethodPatch, "/api/v1/namespaces/kinds/pods/web/status", "application/merge-patch+json",
		`{"status":{"phase":"Running","podIP":"10.77.0.3","podIPs":[{"ip":"10.77.0.3"}]}}`)
	api.post(t, "/apis/discovery.k8s.io/v1/namespaces/kinds/endpointslices", `
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 80}]
endpoints: [{addresses: [10.77.0.3], nodeName: kinds, zone: z1, conditions: {ready: true}, targetRef: {kind: Pod, name: web}}]
`)
	api.post(t, "/apis/networking.k8s.io/v1/namespaces/kinds/networkpolicies", `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: deny}
spec: {podSelector: {}, policyTypes: [Ingress]}
`)
	api.post(t, "/apis/networking.k8s.io/v1/servicecidrs", `
apiVersion: networking.k8s.io/v1
kind: ServiceCIDR
metadata: {name: more}
spec: {cidrs: [10.98.0.0/24]}
`)
	ip := netip.MustParseAddr("10.77.0.3")
	name := func(n string) model.Name { return model.Name{Namespace: "kinds", Name: n} }
	want := &model.State{
		Nodes: []*model.Node{{
			Name: "kinds", Zone: "z1", Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.77")}, PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.77.0.0/24")},
		}},
		Namespaces: []*model.Namespace{{Name: "kinds", Labels: map[string]string{"kubernetes.io/metadata.name": "kinds", "team": "a"}}},
		Pods: []*model.Pod{{
			Name: name("web"), Labels: map[string]string{"app": "web", "topology.kubernetes.io/zone": "z1"}, Node: "kinds", Addresses: []netip.Addr{ip},
			Ports: []model.ContainerPort{{Name: "http", Port: 80, Protocol: model.TCP}},
		}},
		EndpointSlices: []*model.EndpointSlice{{
			Name: name("web-1"), Service: "web", Ports: []model.EndpointPort{{Name: "http", Port: 80, Protocol: model.TCP}},
			Endpoints: []model.Endpoint{{Address: ip, Ready: true, Serving: true, Node: "kinds", Zone: "z1", Pod: "web"}},
		}},
		NetworkPolicies: []*model.NetworkPolicy{{Name: name("deny"), Isolates: struct{ Ingress, Egress bool }{Ingress: true}}},
	}
	got := func(s *model.State) *model.State {
		out := &model.State{}
		for _, p := range s.Pods {
			if p.Name.Namespace == "kinds" {
				out.Pods = append(out.Pods, p)
			}
		}
		for _, e := range s.EndpointSlices {
			if e.Name.Namespace == "kinds" {
				out.EndpointSlices = append(out.EndpointSlices, e)
			}
		}
		if n := s.Node("kinds"); n != nil {
			out.Nodes = []*model.Node{n}
		}
		if n := s.Namespace("kinds"); n != nil {
			out.Namespaces = []*model.Namespace{n}
		}
		out.NetworkPolicies = s.NetworkPolicies
		return out
	}
	diff := func(s *model.State) string {
		return cmp.Diff(want, got(s), cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{}, netip.AddrPort{}), cmpopts.IgnoreFields(model.Pod{}, "UID"))
	}
	// What is posted last comes last, or nearly: kinds are watched one by one.
	s := f.until("the ranges", func(s *model.State) bool {
		return slices.Contains(s.ServiceCIDRs, netip.MustParsePrefix("10.98.0.0/24"))
	})
	deadline := time.Now().Add(20 * time.Second)
	for diff(s) != "" && time.Now().Before(deadline) {
		select {
		case s = <-f.states:
		case <-time.After(time.Second):
		}
	}
	if d := diff(s); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
}

// TestKubernetesMakesTheDNSService: once, at the addresses of the kubelets, and
// never over what is there.
func TestKubernetesMakesTheDNSService(t *testing.T) {
	t.Parallel()
	api := realServer(t)
	k := newKubernetes(t, api.config())
	const path = "/api/v1/namespaces/kube-system/services/kube-dns"
	eventually(t, func() error { // the API server makes the namespace itself, soon after its start
		return k.EnsureDNSService(t.Context(), []netip.Addr{netip.MustParseAddr("10.96.0.10")})
	})
	if err := k.EnsureDNSService(t.Context(), []netip.Addr{netip.MustParseAddr("10.96.0.11")}); err != nil {
		t.Errorf("a second time: %v", err)
	}
	var o struct {
		Metadata struct{ Labels map[string]string }
		Spec     struct {
			ClusterIP string
			Selector  map[string]string
			Ports     []struct {
				Name, Protocol string
				Port           int
			}
		}
	}
	mustJSON(t, api.must(t, http.MethodGet, path, "", ""), &o)
	if got, want := fmt.Sprint(o.Spec), "{10.96.0.10 map[] [{dns UDP 53} {dns-tcp TCP 53}]}"; got != want {
		t.Errorf("service %s, want %s", got, want)
	}
	if o.Metadata.Labels["app.kubernetes.io/managed-by"] != "netctl" || o.Metadata.Labels["k8s-app"] != "kube-dns" {
		t.Errorf("labels %v", o.Metadata.Labels)
	}
	if err := k.EnsureDNSService(t.Context(), nil); err == nil {
		t.Error("a service without an address")
	}
}

// TestKubernetesSurvivesTheServer: while the API server is down nothing changes
// and nothing fails, and afterwards the source catches up by itself. An agent
// that starts meanwhile begins with the last State.
func TestKubernetesSurvivesTheServer(t *testing.T) {
	t.Parallel()
	api := ownServer(t)
	cfg := api.config()
	cfg.CacheFile = filepath.Join(t.TempDir(), "state")
	f := follow(t, newKubernetes(t, cfg))
	f.until("the default namespace", hasNamespace("default"))
	api.post(t, "/api/v1/namespaces", "{apiVersion: v1, kind: Namespace, metadata: {name: before}}")
	f.until("a namespace", hasNamespace("before"))
	f.stop()
	f = follow(t, newKubernetes(t, cfg))
	f.until("the live State", hasNamespace("before"))
	api.down()
	late := follow(t, newKubernetes(t, cfg))
	if s := late.until("the last State", func(*model.State) bool { return true }); !hasNamespace("before")(s) || !s.Synced {
		t.Error("the State of the last run is not what it was")
	}
	if err := api.up(); err != nil {
		t.Fatal(err)
	}
	api.post(t, "/api/v1/namespaces", "{apiVersion: v1, kind: Namespace, metadata: {name: after}}")
	start := time.Now()
	f.until("what came after", hasNamespace("after"))
	late.until("what came after", hasNamespace("after"))
	t.Logf("caught up %v after the server", time.Since(start).Round(time.Millisecond))
}

// TestKubernetesApplies creates and changes the objects of a plan, by a
// kubeconfig, as somebody outside the cluster does.
func TestKubernetesApplies(t *testing.T) {
	t.Parallel()
	api := realServer(t)
	path := filepath.Join(t.TempDir(), "kubeconfig")
	text := fmt.Sprintf(`{apiVersion: v1, kind: Config, current-context: c, contexts: [{name: c, context: {cluster: k, user: u}}],
		clusters: [{name: k, cluster: {server: "https://%s", certificate-authority: %q}}], users: [{name: u, user: {token: %s}}]}`,
		api.server, filepath.Join(api.dir, "ca.crt"), token)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	k := newKubernetes(t, cluster.KubernetesConfig{Kubeconfig: path})
	if want := []netip.AddrPort{netip.MustParseAddrPort(api.server)}; !slices.Equal(k.Servers(), want) {
		t.Errorf("Servers: %v, want %v", k.Servers(), want)
	}
	api.post(t, crdPath, fmt.Sprintf(crds, "BlockPool", "blockpools"))
	plan := func(size int) []byte {
		return fmt.Appendf(nil, `
apiVersion: networking.k8s.io/v1
kind: ServiceCIDR
metadata: {name: netctl}
spec: {cidrs: [10.99.0.0/16]}
---
apiVersion: netctl.io/v1alpha1
kind: BlockPool
metadata: {name: default}
spec: {ranges: [{cidr: 10.128.0.0/16, blockSize: %d}]}
`, size)
	}
	f := follow(t, k)
	for _, size := range []int{24, 25, 25} {
		var done []string
		eventually(t, func() (err error) { // the API server takes a moment to know a new kind
			done, err = k.Apply(t.Context(), plan(size))
			return err
		})
		if want := []string{"ServiceCIDR netctl", "BlockPool default"}; !slices.Equal(done, want) {
			t.Errorf("applied %v, want %v", done, want)
		}
		f.until("the plan", func(s *model.State) bool {
			return slices.Contains(s.ServiceCIDRs, netip.MustParsePrefix("10.99.0.0/16")) &&
				slices.Equal(s.BlockPools, []model.BlockPool{{CIDR: netip.MustParsePrefix("10.128.0.0/16"), Bits: size}})
		})
	}
	for name, bad := range map[string]string{
		"another kind": "{apiVersion: v1, kind: Namespace, metadata: {name: x}}",
		"not valid":    "{apiVersion: netctl.io/v1alpha1, kind: BlockPool, metadata: {name: x}, spec: {ranges: [{cidr: nonsense}]}}",
		"no object":    "a: b",
	} {
		if done, err := k.Apply(t.Context(), []byte(bad)); err == nil || len(done) > 0 {
			t.Errorf("%s: applied %v, %v", name, done, err)
		}
	}
}
