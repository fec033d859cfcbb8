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
