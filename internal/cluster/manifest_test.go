package cluster_test

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/netctl/netctl/internal/cluster"
	"github.com/netctl/netctl/internal/model"
)

func comparers() cmp.Options {
	return cmp.Options{
		cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
		cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
		cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b }),
		cmpopts.IgnoreUnexported(cluster.Pod{}, cluster.Deployment{}, cluster.Service{}),
		cmpopts.EquateEmpty(),
	}
}

// nginx is the manifest that newcomers know.
const nginx = `apiVersion: apps/v1
kind: Deployment
metadata: {name: nginx, labels: {app: nginx}}
spec:
  replicas: 3
  selector: {matchLabels: {app: nginx}}
  template:
    metadata: {labels: {app: nginx}}
    spec:
      dnsConfig: {nameservers: [10.96.0.10], searches: [x.example], options: [{name: ndots, value: "5"}, {name: rotate}]}
      containers:
      - name: web
        image: nginx:1.27
        command: [netctl, lab, serve]
        args: ["--http", ":80"]
        workingDir: /srv
        env: [{name: A, value: b}, {name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}]
        ports: [{name: http, containerPort: 80}]
        readinessProbe: {httpGet: {path: /, port: http}}
      - {name: side, command: [sleep, "60"]}
---
apiVersion: v1
kind: Service
metadata: {name: nginx, labels: {a: b}}
spec:
  selector: {app: nginx}
  ipFamilyPolicy: PreferDualStack
  ports: [{name: web, port: 80, targetPort: http}, {name: raw, port: 81, targetPort: 8081}, {name: same, port: 82}]
---
apiVersion: v1
kind: Namespace
metadata: {name: extra, labels: {team: x}}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: c}
data: {k: v}
`

func parse(t *testing.T, text string) []cluster.Object {
	t.Helper()
	out, err := cluster.ParseManifests([]byte(text), "f.yaml")
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestParseManifests(t *testing.T) {
	t.Parallel()
	objects := parse(t, nginx)
	var kinds []string
	for _, o := range objects {
		kinds = append(kinds, fmt.Sprintf("%s:%d %s %s", o.File, o.Line, o.Kind, o.Name))
	}
	if diff := cmp.Diff([]string{"f.yaml:1 Deployment default/nginx", "f.yaml:22 Service default/nginx", "f.yaml:30 Namespace /extra", "f.yaml:34 ConfigMap default/c"}, kinds); diff != "" {
		t.Fatalf("-want +got:\n%s", diff)
	}
	want := &cluster.Deployment{
		Name: model.Name{Namespace: "default", Name: "nginx"}, Labels: map[string]string{"app": "nginx"}, Replicas: 3, Selector: map[string]string{"app": "nginx"},
		Template: cluster.Pod{
			Pod: model.Pod{
				Name: model.Name{Namespace: "default"}, Labels: map[string]string{"app": "nginx"},
				Ports: []model.ContainerPort{{Name: "http", Port: 80, Protocol: model.TCP}},
			},
			Containers: []cluster.Container{
				{Name: "web", Image: "nginx:1.27", Command: []string{"netctl", "lab", "serve"}, Args: []string{"--http", ":80"}, WorkingDir: "/srv", Env: []cluster.EnvVar{{Name: "A", Value: "b"}, {Name: "IP", Field: "status.podIP"}}},
				{Name: "side", Command: []string{"sleep", "60"}},
			},
			DNSPolicy: "ClusterFirst", Nameservers: []string{"10.96.0.10"}, Searches: []string{"x.example"}, DNSOptions: []string{"ndots:5", "rotate"},
		},
	}
	if diff := cmp.Diff(want, objects[0].Deployment, comparers()); diff != "" {
		t.Errorf("deployment (-want +got):\n%s", diff)
	}
	svc := &cluster.Service{
		Service: model.Service{
			Name: model.Name{Namespace: "default", Name: "nginx"}, Type: model.ClusterIP,
			Ports: []model.ServicePort{{Name: "web", Protocol: model.TCP, Port: 80}, {Name: "raw", Protocol: model.TCP, Port: 81}, {Name: "same", Protocol: model.TCP, Port: 82}},
		},
		Labels: map[string]string{"a": "b"}, Selector: map[string]string{"app": "nginx"}, IPFamilyPolicy: "PreferDualStack",
		TargetPorts: []cluster.TargetPort{{Name: "http"}, {Port: 8081}, {Port: 82}},
	}
	if diff := cmp.Diff(svc, objects[1].Service, comparers()); diff != "" {
		t.Errorf("service (-want +got):\n%s", diff)
	}
	if objects[2].Namespace.Labels["team"] != "x" {
		t.Errorf("namespace: %+v", objects[2].Namespace)
	}
	if !strings.Contains(string(objects[3].Raw), "k: v") {
		t.Errorf("raw:\n%s", objects[3].Raw)
	}
}

func TestParseManifestsRefuses(t *testing.T) {
	t.Parallel()
	pod := "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: "
	deployment := "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d}\nspec: "
	for _, tc := range []struct{ name, text, want string }{
		{"no containers", pod + "{}", "f.yaml:6: Pod default/p: spec.containers is empty"},
		{"container twice", pod + "{containers: [{name: a}, {name: a}]}", `Pod default/p: spec.containers: name "a" is used twice`},
		{"container without a name", pod + "{containers: [{image: a}]}", `name "" is not a DNS label`},
		{"container that climbs", pod + "{containers: [{name: ../../tmp/x}]}", `name "../../tmp/x" is not a DNS label`},
		{"selector", deployment + "{selector: {matchLabels: {a: b}}, template: {spec: {containers: [{name: c}]}}}", "spec.selector does not match the template's labels: a=b"},
		{"replicas", deployment + "{replicas: -1}", "spec.replicas -1 is negative"},
		{"template", deployment + "{template: {spec: {}}}", "spec.template: spec.containers is empty"},
		{"target port", "apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec: {ports: [{port: 80, targetPort: 70000}]}", "spec.ports.targetPort 70000 is not a port"},
		{"policy", "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p}\nspec: {podSelector: {}, policyTypes: [X]}", `"X" is unknown`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			good := "apiVersion: v1\nkind: Node\nmetadata: {name: good}\n\n---\n"
			objects, err := cluster.ParseManifests([]byte(good+tc.text), "f.yaml")
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want %q", err, tc.want)
			}
			if len(objects) != 1 || objects[0].Name.Name != "good" {
				t.Errorf("the good object is missing: %v", objects)
			}
		})
	}
}

func TestTargetPortResolve(t *testing.T) {
	t.Parallel()
	pod := &model.Pod{Ports: []model.ContainerPort{{Name: "x", Port: 1, Protocol: model.UDP}, {Name: "x", Port: 2, Protocol: model.TCP}}}
	for _, tc := range []struct {
		target cluster.TargetPort
		want   uint16
		ok     bool
	}{
		{cluster.TargetPort{Name: "x"}, 2, true},
		{cluster.TargetPort{Name: "y"}, 0, false},
		{cluster.TargetPort{Port: 80}, 80, true},
		{cluster.TargetPort{}, 0, false},
	} {
		if got, ok := tc.target.Resolve(pod, model.TCP); got != tc.want || ok != tc.ok {
			t.Errorf("%+v: got %d, %t", tc.target, got, ok)
		}
	}
}

// TestObjectsComeBack writes every kind of object and reads the directory.
func TestObjectsComeBack(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	addr, prefix := netip.MustParseAddr, netip.MustParsePrefix
	n := model.Name{Namespace: "a", Name: "web-1.x"}
	pod := model.Pod{
		Name: n, UID: "u", Labels: map[string]string{"app": "x"}, Node: "n1", Addresses: []netip.Addr{addr("10.0.0.3"), addr("fd00::3")},
		Hostname: "h", Subdomain: "s", HostNetwork: true, Terminating: true, Finished: true,
		Ports: []model.ContainerPort{{Name: "http", Port: 80, HostPort: 8080, HostIP: addr("192.0.2.1"), Protocol: model.TCP}, {Port: 53, Protocol: model.UDP}},
	}
	service := model.Service{
		Name: n, UID: "v", Type: model.LoadBalancer, ClusterIPs: []netip.Addr{addr("10.96.0.1"), addr("fd00::a")}, AffinityTimeout: 9 * time.Second,
		InternalLocal: true, ExternalLocal: true, ExternalIPs: []netip.Addr{addr("203.0.113.1")}, LoadBalancerIPs: []netip.Addr{addr("203.0.113.2")},
		SourceRanges: []netip.Prefix{prefix("198.51.100.0/24")}, HealthCheckNodePort: 30000, TrafficDistribution: "PreferClose", PublishNotReady: true,
		Ports: []model.ServicePort{{Name: "p", Protocol: model.SCTP, Port: 80, NodePort: 30001}},
	}
	headless := model.Service{Name: model.Name{Namespace: "b", Name: "h"}, Type: model.ClusterIP, Headless: true, Ports: []model.ServicePort{{Port: 1, Protocol: model.TCP}}}
	external := model.Service{Name: model.Name{Namespace: "b", Name: "x"}, Type: model.ExternalName, ExternalName: "x.example"}
	slice := model.EndpointSlice{
		Name: n, Service: "web", IPv6: true, Headless: true, Ports: []model.EndpointPort{{Name: "p", Protocol: model.UDP, Port: 53}},
		Endpoints: []model.Endpoint{{Address: addr("fd00::3"), Ready: true, Serving: true, Terminating: true, Node: "n1", Zone: "z", Hostname: "h", Pod: "p", HintZones: []string{"z"}, HintNodes: []string{"n1"}}, {Address: addr("fd00::4")}},
	}
	node := model.Node{
		Name: "n1", Addresses: []netip.Addr{addr("192.0.2.1"), addr("2001:db8::1")}, PodCIDRs: []netip.Prefix{prefix("10.0.0.0/24"), prefix("fd00::/112")}, Zone: "z",
		PublicKey: "K=", Endpoints: []netip.AddrPort{netip.MustParseAddrPort("[2001:db8::1]:51820")},
	}
	namespace := model.Namespace{Name: "a", Labels: map[string]string{"x": "z", "kubernetes.io/metadata.name": "a"}}
	write := func(o cluster.Object, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		for range 2 { // the second time nothing changes
			if err := cluster.WriteObject(dir, o); err != nil {
				t.Fatal(err)
			}
		}
	}
	write(cluster.PodObject(&cluster.Pod{Pod: pod, Containers: []cluster.Container{{Name: "c", Command: []string{"x"}, Env: []cluster.EnvVar{{Name: "A", Field: "status.podIP"}}}}, Owner: "web", HostIPs: []string{"192.0.2.1"}, DNSOptions: []string{"ndots:5"}, DNSPolicy: "None"}))
	write(cluster.ServiceObject(&cluster.Service{Service: service, IPFamilies: []string{"IPv4", "IPv6"}, TargetPorts: []cluster.TargetPort{{Name: "http"}}}))
	write(cluster.ServiceObject(&cluster.Service{Service: headless}))
	write(cluster.ServiceObject(&cluster.Service{Service: external}))
	write(cluster.EndpointSliceObject(&slice))
	write(cluster.NodeObject(&node))
	write(cluster.NamespaceObject(&namespace))
	got, problems, err := cluster.Read(dir)
	if err != nil || len(problems) > 0 {
		t.Fatalf("%v, %v", problems, err)
	}
	want := &model.State{
		Revision: 1, Synced: true, Nodes: []*model.Node{&node}, Namespaces: []*model.Namespace{&namespace}, Pods: []*model.Pod{&pod},
		Services: []*model.Service{&service, &headless, &external}, EndpointSlices: []*model.EndpointSlice{&slice},
	}
	if diff := cmp.Diff(want, got, comparers()); diff != "" {
		t.Errorf("-written +read:\n%s", diff)
	}
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, f := range files {
		names = append(names, f.Name())
	}
	if diff := cmp.Diff([]string{
		"endpointslice.a.web-1.x.yaml", "namespace.a.yaml", "node.n1.yaml", "pod.a.web-1.x.yaml", "service.a.web-1.x.yaml", "service.b.h.yaml", "service.b.x.yaml",
	}, names); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
	for range 2 {
		if err := cluster.RemoveObject(dir, "Pod", n); err != nil {
			t.Fatal(err)
		}
	}
	if got, _, err = cluster.Read(dir); err != nil || len(got.Pods) != 0 {
		t.Errorf("after removal: %v, %v", got.Pods, err)
	}
}

// TestPodObjectKeepsTheManifest runs a deployment's template as a pod: what
// netctl knows nothing of is still there.
func TestPodObjectKeepsTheManifest(t *testing.T) {
	t.Parallel()
	p := parse(t, nginx)[0].Deployment.Template
	p.Name.Name, p.UID, p.Node, p.Owner = "nginx-1", "u", "n1", "nginx"
	p.Addresses, p.Phase, p.Ready, p.HostIPs = []netip.Addr{netip.MustParseAddr("10.0.0.3")}, "Running", true, []string{"192.0.2.1"}
	o, err := cluster.PodObject(&p)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"readinessProbe:", "image: nginx:1.27", "fieldPath: status.podIP", "podIP: 10.0.0.3", "phase: Running", "hostIP: 192.0.2.1", "nodeName: n1"} {
		if !strings.Contains(string(o.Raw), want) {
			t.Errorf("%q is missing in\n%s", want, o.Raw)
		}
	}
	back := parse(t, string(o.Raw))[0].Pod
	if diff := cmp.Diff(&p, back, comparers()); diff != "" {
		t.Errorf("-written +read:\n%s", diff)
	}
}

func TestWriteObjectRefusesPaths(t *testing.T) {
	t.Parallel()
	for _, o := range []cluster.Object{
		{Kind: "Pod", Name: model.Name{Namespace: "default", Name: "../x"}},
		{Kind: "Pod", Name: model.Name{Namespace: "../x", Name: "x"}},
		{Kind: "../Pod", Name: model.Name{Namespace: "default", Name: "x"}},
		{Kind: "Pod"},
	} {
		if err := cluster.WriteObject(t.TempDir(), o); err == nil {
			t.Errorf("%s %s was written", o.Kind, o.Name)
		}
	}
}

func TestFileName(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", 240)
	a := cluster.FileName("Pod", model.Name{Namespace: "default", Name: long + "a"})
	b := cluster.FileName("Pod", model.Name{Namespace: "default", Name: long + "b"})
	if a == b || len(a) > 210 || filepath.Base(a) != a {
		t.Errorf("%s, %s", a, b)
	}
	if cluster.FileName("Pod", model.Name{Namespace: "a-b", Name: "c"}) == cluster.FileName("Pod", model.Name{Namespace: "a", Name: "b-c"}) {
		t.Error("two objects share a file")
	}
}
