package removal_test

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/netctl/netctl/deploy"
	"github.com/netctl/netctl/deploy/removal"
	"github.com/netctl/netctl/internal/cluster/objects"
)

// memory is a cluster in memory. What is deleted is gone after a second; a
// DaemonSet's pods go with it; a cleanup pod ends after two seconds in the phase
// that nodes says.
type memory struct {
	mu      sync.Mutex
	objects map[objects.Ref]objects.Object
	phases  map[string]string // of the cleanup pod, by node; "Succeeded" where nothing stands
	calls   []string
}

func refOf(o objects.Object) objects.Ref {
	m, _ := o["metadata"].(objects.Object)
	s := func(v any) string { t, _ := v.(string); return t }
	return objects.Ref{APIVersion: s(o["apiVersion"]), Kind: s(o["kind"]), Namespace: s(m["namespace"]), Name: s(m["name"])}
}

func (m *memory) note(verb string, r objects.Ref) {
	m.calls = append(m.calls, verb+" "+r.String())
}

func (m *memory) Get(_ context.Context, r objects.Ref) (objects.Object, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if o, ok := m.objects[r]; ok {
		return o, nil
	}
	return nil, fs.ErrNotExist
}

func (m *memory) List(_ context.Context, r objects.Ref, selector string) ([]objects.Object, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []objects.Object
	for _, have := range slices.SortedFunc(maps.Keys(m.objects), func(a, b objects.Ref) int { return strings.Compare(a.Name, b.Name) }) {
		o := m.objects[have]
		labels, _ := o["metadata"].(objects.Object)["labels"].(objects.Object)
		matches := have.Kind == r.Kind && (have.Namespace == r.Namespace || r.Namespace == "")
		for term := range strings.SplitSeq(selector, ",") {
			k, v, _ := strings.Cut(term, "=")
			matches = matches && (k == "" || labels[k] == v)
		}
		if matches {
			out = append(out, o)
		}
	}
	return out, nil
}

func (m *memory) Create(_ context.Context, o objects.Object) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := refOf(o)
	m.note("create", r)
	if _, ok := m.objects[r]; ok {
		return fs.ErrExist
	}
	m.objects[r] = o
	if r.Kind == "Pod" {
		time.AfterFunc(2*time.Second, func() {
			m.mu.Lock()
			defer m.mu.Unlock()
			node, _ := o["spec"].(objects.Object)["nodeName"].(string)
			phase := "Succeeded"
			if p, ok := m.phases[node]; ok {
				phase = p
			}
			ended := maps.Clone(o)
			ended["status"] = objects.Object{"phase": phase, "containerStatuses": []any{
				objects.Object{"state": objects.Object{"terminated": objects.Object{"message": "netctl0 is busy\n"}}},
			}}
			m.objects[r] = ended
		})
	}
	return nil
}

func (m *memory) Merge(_ context.Context, r objects.Ref, patch objects.Object) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.note("merge", r)
	meta, _ := m.objects[r]["metadata"].(objects.Object)
	annotations, _ := meta["annotations"].(objects.Object)
	change, _ := patch["metadata"].(objects.Object)["annotations"].(objects.Object)
	for k, v := range change {
		if v == nil {
			delete(annotations, k)
		}
	}
	return nil
}

func (m *memory) Delete(_ context.Context, r objects.Ref) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.note("delete", r)
	time.AfterFunc(time.Second, func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.objects, r)
		if r.Kind == "DaemonSet" {
			maps.DeleteFunc(m.objects, func(p objects.Ref, _ objects.Object) bool {
				return strings.HasPrefix(p.Name, "agent-")
			})
		}
	})
	return nil
}

func (m *memory) add(o objects.Object) { m.objects[refOf(o)] = o }

// installed is a cluster of three nodes with netctl on two of them.
func installed(t *testing.T) (*memory, []deploy.Document) {
	t.Helper()
	docs, err := deploy.Render(deploy.Options{})
	if err != nil {
		t.Fatal(err)
	}
	m := &memory{objects: map[objects.Ref]objects.Object{}, phases: map[string]string{}}
	for _, d := range docs {
		o, err := d.Object()
		if err != nil {
			t.Fatal(err)
		}
		m.add(o)
	}
	for _, node := range []string{"a", "b"} {
		m.add(objects.Object{
			"apiVersion": "v1", "kind": "Pod", "spec": objects.Object{"nodeName": node, "hostNetwork": true},
			"metadata": objects.Object{"name": "agent-" + node, "namespace": "kube-system", "labels": objects.Object{
				"app.kubernetes.io/name": "netctl", "app.kubernetes.io/component": "agent",
			}},
		})
		m.add(objects.Object{"apiVersion": "v1", "kind": "Node", "metadata": objects.Object{
			"name": node, "annotations": objects.Object{"netctl.io/public-key": "k", "example.com/other": "stays"},
		}})
	}
	m.add(objects.Object{"apiVersion": "v1", "kind": "Node", "metadata": objects.Object{"name": "windows"}})
	m.add(service("netctl"))
	return m, docs
}

func service(manager string) objects.Object {
	return objects.Object{"apiVersion": "v1", "kind": "Service", "metadata": objects.Object{
		"name": "kube-dns", "namespace": "kube-system", "labels": objects.Object{"app.kubernetes.io/managed-by": manager},
	}}
}

// left lists what is in the cluster, with the nodes' annotations.
func (m *memory) left() []string {
	var out []string
	for r, o := range m.objects {
		meta, _ := o["metadata"].(objects.Object)
		annotations, _ := meta["annotations"].(objects.Object)
		line := r.String()
		if r.Kind == "Node" {
			line += " " + strings.Join(slices.Sorted(maps.Keys(annotations)), ",")
		}
		out = append(out, strings.TrimSpace(line))
	}
	slices.Sort(out)
	return out
}

func TestNothingIsLeft(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m, docs := installed(t)
		var out bytes.Buffer
		if err := removal.Run(t.Context(), removal.Config{Objects: m, Installed: docs, Out: &out}); err != nil {
			t.Fatal(err)
		}
		want := []string{"Node a example.com/other", "Node b example.com/other", "Node windows"}
		if diff := cmp.Diff(m.left(), want); diff != "" {
			t.Errorf("what is left differs (-got +want):\n%s", diff)
		}
		first := func(call string) int { return slices.Index(m.calls, call) }
		order := []int{
			first("delete DaemonSet kube-system/netctl"), first("create Pod kube-system/netctl-cleanup-a"),
			first("create Pod kube-system/netctl-cleanup-b"), first("delete Pod kube-system/netctl-cleanup-a"), first("merge Node a"),
			first("delete ConfigMap kube-system/netctl"), first("delete CustomResourceDefinition blocks.netctl.io"),
		}
		if order[0] < 0 || !slices.IsSorted(order) {
			t.Errorf("the order is wrong: %v in %v", order, m.calls)
		}
		// A second time there is nothing to do.
		m.calls = nil
		if err := removal.Run(t.Context(), removal.Config{Objects: m, Installed: docs, Out: &out}); err != nil || len(m.calls) > 0 {
			t.Errorf("the second time: %v, %v", m.calls, err)
		}
	})
}

func TestDryRunChangesNothing(t *testing.T) {
	t.Parallel()
	m, docs := installed(t)
	before := m.left()
	var out bytes.Buffer
	if err := removal.Run(t.Context(), removal.Config{Objects: m, Installed: docs, DryRun: true, Out: &out}); err != nil {
		t.Fatal(err)
	}
	if len(m.calls) > 0 || !cmp.Equal(m.left(), before) {
		t.Errorf("it did %v", m.calls)
	}
	for _, want := range []string{
		"DaemonSet kube-system/netctl: delete\n", "Node a: run 'netctl cleanup' in Pod kube-system/netctl-cleanup-a\n",
		"Node b: remove the annotations netctl.io/public-key\n", "Service kube-system/kube-dns: delete\n",
		"CustomResourceDefinition blocks.netctl.io: delete\n",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("it does not say %q:\n%s", want, out.String())
		}
	}
}

// TestOthersDNSStays: the Service of CoreDNS is not ours.
func TestOthersDNSStays(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m, docs := installed(t)
		m.add(service("somebody"))
		if err := removal.Run(t.Context(), removal.Config{Objects: m, Installed: docs, Out: &bytes.Buffer{}}); err != nil {
			t.Fatal(err)
		}
		if !slices.Contains(m.left(), "Service kube-system/kube-dns") {
			t.Error("the Service is gone")
		}
	})
}

// TestPodsKeepTheirNetwork: while pods depend on netctl, it stays unless forced.
func TestPodsKeepTheirNetwork(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m, docs := installed(t)
		pod := func(name, node, phase string) objects.Object {
			return objects.Object{
				"apiVersion": "v1", "kind": "Pod", "metadata": objects.Object{"name": name, "namespace": "n"},
				"spec": objects.Object{"nodeName": node}, "status": objects.Object{"phase": phase},
			}
		}
		m.add(pod("ended", "a", "Succeeded"))
		m.add(pod("elsewhere", "windows", "Running"))
		cfg := removal.Config{Objects: m, Installed: docs, Out: &bytes.Buffer{}, DryRun: true}
		if err := removal.Run(t.Context(), cfg); err != nil {
			t.Errorf("pods that do not matter: %v", err)
		}
		m.add(pod("runs", "a", "Running"))
		cfg.DryRun = false
		if err := removal.Run(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "1 pods have their network from netctl: n/runs") || len(m.calls) > 0 {
			t.Errorf("error %v after %v", err, m.calls)
		}
		cfg.Force = true
		if err := removal.Run(t.Context(), cfg); err != nil || !slices.Contains(m.left(), "Pod n/runs") {
			t.Errorf("forced: %v, left %v", err, m.left())
		}
	})
}

// TestNodesThatFail: while a node is not clean, everything that another run
// needs stays; the error names the node and why.
func TestNodesThatFail(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ phase, want string }{
		{"Failed", "node b: 'netctl cleanup' failed: netctl0 is busy"},
		{"Pending", "node b: not done within 1m0s"},
	} {
		t.Run(tt.phase, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				m, docs := installed(t)
				m.phases["b"] = tt.phase
				ctx, cancel := context.WithTimeoutCause(t.Context(), time.Minute, errors.New("not done within 1m0s"))
				defer cancel()
				cfg := removal.Config{Objects: m, Installed: docs, Out: &bytes.Buffer{}}
				err := removal.Run(ctx, cfg)
				if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), "--skip-node") {
					t.Errorf("error %v, want one with %q", err, tt.want)
				}
				for _, stays := range []string{"ConfigMap kube-system/netctl", "Node b example.com/other,netctl.io/public-key"} {
					if !slices.Contains(m.left(), stays) {
						t.Errorf("%s is gone", stays)
					}
				}
				// It goes on from there, with the node or without it.
				cfg.SkipNodes = []string{"b"}
				if err := removal.Run(t.Context(), cfg); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Minute)
				want := []string{"Node a example.com/other", "Node b example.com/other", "Node windows"}
				if diff := cmp.Diff(m.left(), want); diff != "" {
					t.Errorf("what is left differs (-got +want):\n%s", diff)
				}
			})
		})
	}
}

// TestCleanupPod: the pod that cleans a node reaches what the agent reached,
// and can remove the agent's folders.
func TestCleanupPod(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m, docs := installed(t)
		m.phases["a"], m.phases["b"] = "Failed", "Failed"
		if err := removal.Run(t.Context(), removal.Config{Objects: m, Installed: docs, Out: &bytes.Buffer{}}); err == nil {
			t.Fatal("it succeeded")
		}
		pod := m.objects[objects.Ref{APIVersion: "v1", Kind: "Pod", Namespace: "kube-system", Name: "netctl-cleanup-a"}]
		spec, _ := pod["spec"].(objects.Object)
		containers, _ := spec["containers"].([]any)
		agent, _ := containers[0].(objects.Object)
		for k, want := range map[string]any{
			"nodeName": "a", "restartPolicy": "Never", "hostNetwork": true, "automountServiceAccountToken": false,
			"serviceAccountName": nil, "nodeSelector": nil,
		} {
			if diff := cmp.Diff(spec[k], want); diff != "" {
				t.Errorf("%s differs (-got +want):\n%s", k, diff)
			}
		}
		if agent["livenessProbe"] != nil || agent["image"] != "ghcr.io/netctl/netctl:v0.1.0" ||
			!cmp.Equal(agent["args"], []any{"cleanup", "--config=/etc/netctl/config.yaml"}) {
			t.Errorf("the container is %v", agent)
		}
		if spec["initContainers"] != nil {
			t.Errorf("init containers %v are left", spec["initContainers"])
		}
		folders := map[any]any{}
		names := map[any]bool{}
		for _, v := range spec["volumes"].([]any) {
			volume := v.(objects.Object)
			names[volume["name"]] = true
			if host, ok := volume["hostPath"].(objects.Object); ok {
				folders[volume["name"]] = host["path"]
			}
		}
		for _, c := range containers {
			for _, v := range c.(objects.Object)["volumeMounts"].([]any) {
				if mount := v.(objects.Object); !names[mount["name"]] {
					t.Errorf("%v is mounted, and no volume", mount["name"])
				}
			}
		}
		for _, v := range agent["volumeMounts"].([]any) {
			if mount := v.(objects.Object); folders[mount["name"]] != mount["mountPath"] && mount["name"] != "config" {
				t.Errorf("%v of the node is mounted at %v", folders[mount["name"]], mount["mountPath"])
			}
		}
		if folders["state"] != "/run" || folders["data"] != "/var/lib" || folders["cni-conf"] != "/etc/cni/net.d" || folders["pod"] != nil {
			t.Errorf("folders %v", folders)
		}
	})
}
