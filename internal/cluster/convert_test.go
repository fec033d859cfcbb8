package cluster

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/netctl/netctl/internal/model"
)

// comparers let cmp look at netip values and at unexported fields here.
func comparers() cmp.Options {
	return cmp.Options{
		cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
		cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
		cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b }),
		cmp.AllowUnexported(nodePatch{}),
	}
}

// only decodes the one document of text and converts it.
func only(t *testing.T, text string, patch bool) (any, error) {
	t.Helper()
	docs, problems := decodeFile([]byte(text), "x.yaml")
	if len(docs) != 1 || len(problems) != 0 {
		t.Fatalf("%d documents, problems %v", len(docs), problems)
	}
	k := kindOf(docs[0])
	if patch {
		k = kindNodePatch
	}
	return docs[0].toModel(k)
}

func addr(s string) netip.Addr     { return netip.MustParseAddr(s) }
func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }
func name(ns, n string) model.Name { return model.Name{Namespace: ns, Name: n} }
func ap(s string) netip.AddrPort   { return netip.MustParseAddrPort(s) }

func endpoint(a string) model.Endpoint {
	return model.Endpoint{Address: addr(a), Ready: true, Serving: true}
}

func TestConvert(t *testing.T) {
	t.Parallel()
	policy := func(p model.NetworkPolicy, ingress, egress bool) *model.NetworkPolicy {
		p.Isolates.Ingress, p.Isolates.Egress = ingress, egress
		return &p
	}
	for _, tc := range []struct {
		name  string
		text  string
		patch bool
		want  any
	}{
		{name: "node", text: `
apiVersion: v1
kind: Node
metadata:
  name: n1
  labels: {topology.kubernetes.io/zone: z1, node.kubernetes.io/exclude-from-external-load-balancers: ""}
  annotations:
    netctl.io/public-key: KEY=
    netctl.io/endpoints: "192.0.2.1:51820, [::ffff:192.0.2.2]:51820,[2001:db8::1]:51820"
spec: {taints: [{key: ToBeDeletedByClusterAutoscaler, effect: NoSchedule}], podCIDR: 10.9.0.0/24, podCIDRs: [10.1.0.7/24, "fd00:1::/112"]}
status:
  addresses:
  - {type: Hostname, address: n1}
  - {type: InternalIP, address: "::ffff:192.0.2.1"}
  - {type: ExternalIP, address: 203.0.113.1}
  - {type: InternalIP, address: "2001:db8::1"}
`, want: &model.Node{
			Name: "n1", Zone: "z1", Leaving: true, Excluded: true, PublicKey: "KEY=", Addresses: []netip.Addr{addr("192.0.2.1"), addr("2001:db8::1")},
			PodCIDRs:  []netip.Prefix{prefix("10.1.0.0/24"), prefix("fd00:1::/112")},
			Endpoints: []netip.AddrPort{ap("192.0.2.1:51820"), ap("192.0.2.2:51820"), ap("[2001:db8::1]:51820")},
		}},
		{name: "node of old", text: "apiVersion: v1\nkind: Node\nmetadata: {name: n1}\nspec: {podCIDR: 10.9.0.0/24}\n", want: &model.Node{
			Name: "n1", PodCIDRs: []netip.Prefix{prefix("10.9.0.0/24")},
		}},
		{name: "node patch", patch: true, text: "apiVersion: v1\nkind: Node\nmetadata: {name: n1, annotations: {netctl.io/public-key: K}}\n", want: &nodePatch{
			node: "n1", publicKey: new("K"),
		}},
		{name: "namespace", text: "apiVersion: v1\nkind: Namespace\nmetadata: {name: a, labels: {x: z, kubernetes.io/metadata.name: lie}}\n", want: &model.Namespace{
			Name: "a", Labels: map[string]string{"x": "z", "kubernetes.io/metadata.name": "a"},
		}},
		{name: "pod", text: `
apiVersion: v1
kind: Pod
metadata: {name: p, namespace: a, uid: u1, labels: {app: x}, deletionTimestamp: "2026-01-01T00:00:00Z"}
spec:
  nodeName: n1
  hostname: h
  subdomain: s
  initContainers:
  - {name: i, ports: [{containerPort: 1}]}
  - {name: sidecar, restartPolicy: Always, ports: [{containerPort: 9, protocol: SCTP}]}
  containers:
  - {name: c, ports: [{name: web, containerPort: 80}, {containerPort: 53, protocol: UDP, hostPort: 5353, hostIP: 192.0.2.1}]}
status: {phase: Running, podIP: 10.0.0.1, podIPs: [{ip: 10.0.0.1}, {ip: "fd00::1"}]}
`, want: &model.Pod{
			Name: name("a", "p"), UID: "u1", Labels: map[string]string{"app": "x"}, Node: "n1", Hostname: "h", Subdomain: "s", Terminating: true,
			Addresses: []netip.Addr{addr("10.0.0.1"), addr("fd00::1")},
			Ports: []model.ContainerPort{
				{Name: "web", Port: 80, Protocol: model.TCP},
				{Port: 53, Protocol: model.UDP, HostPort: 5353, HostIP: addr("192.0.2.1")},
				{Port: 9, Protocol: model.SCTP},
			},
		}},
		{name: "pod of old, finished, on the host", text: "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {hostNetwork: true}\nstatus: {phase: Failed, podIP: 010.0.0.09}\n", want: &model.Pod{
			Name: name("default", "p"), HostNetwork: true, Finished: true, Addresses: []netip.Addr{addr("10.0.0.9")},
		}},
		{name: "service", text: `
apiVersion: v1
kind: Service
metadata:
  name: s
  uid: u
  labels: {service.kubernetes.io/service-proxy-name: other}
  annotations: {netctl.io/balancing: maglev, netctl.io/load-balancer-share: k, netctl.io/load-balancer-ips: "203.0.113.1, 2001:db8::1"}
spec:
  type: LoadBalancer
  clusterIP: 10.96.0.1
  clusterIPs: [10.96.0.1, "fd00::a"]
  sessionAffinity: ClientIP
  internalTrafficPolicy: Local
  externalTrafficPolicy: Local
  healthCheckNodePort: 30001
  trafficDistribution: PreferClose
  publishNotReadyAddresses: true
  externalIPs: [203.0.113.5]
  loadBalancerClass: example.com/lb
  loadBalancerIP: 203.0.113.9
  loadBalancerSourceRanges: [" 198.51.100.7/24 "]
  ports: [{name: web, port: 80, nodePort: 30080, targetPort: http}, {name: dns, port: 53, protocol: UDP}]
status:
  loadBalancer:
    ingress: [{ip: 203.0.113.1}, {ip: 203.0.113.2, ipMode: VIP}, {ip: 203.0.113.3, ipMode: Proxy}, {hostname: x.example}]
`, want: &model.Service{
			Name: name("default", "s"), UID: "u", Type: model.LoadBalancer, ForeignProxy: true, ClusterIPs: []netip.Addr{addr("10.96.0.1"), addr("fd00::a")},
			AffinityTimeout: 3 * time.Hour, InternalLocal: true, ExternalLocal: true, HealthCheckNodePort: 30001, TrafficDistribution: "PreferClose",
			PublishNotReady: true, ExternalIPs: []netip.Addr{addr("203.0.113.5")}, LoadBalancerIPs: []netip.Addr{addr("203.0.113.1"), addr("203.0.113.2")},
			SourceRanges: []netip.Prefix{prefix("198.51.100.0/24")}, Maglev: true, ShareKey: "k", LoadBalancerClass: "example.com/lb",
			WantedIPs: []netip.Addr{addr("203.0.113.1"), addr("2001:db8::1")},
			Ports:     []model.ServicePort{{Name: "web", Protocol: model.TCP, Port: 80, NodePort: 30080}, {Name: "dns", Protocol: model.UDP, Port: 53}},
		}},
		{name: "headless service", text: "apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec: {clusterIP: None, clusterIPs: [None]}\n", want: &model.Service{
			Name: name("default", "s"), Type: model.ClusterIP, Headless: true,
		}},
		{name: "service with a timeout", text: "apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec: {clusterIP: 10.96.0.9, loadBalancerIP: 203.0.113.9, sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 7}}}\n", want: &model.Service{
			Name: name("default", "s"), Type: model.ClusterIP, ClusterIPs: []netip.Addr{addr("10.96.0.9")}, WantedIPs: []netip.Addr{addr("203.0.113.9")}, AffinityTimeout: 7 * time.Second,
		}},
		{name: "external name", text: "apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec: {type: ExternalName, externalName: x.example, clusterIP: 10.96.0.9}\n", want: &model.Service{
			Name: name("default", "s"), Type: model.ExternalName, ExternalName: "x.example",
		}},
		{name: "endpoint slice", text: `
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: s-1, namespace: a, labels: {kubernetes.io/service-name: s}, annotations: {endpoints.kubernetes.io/last-change-trigger-time: "2026-01-02T03:04:05.6Z"}}
addressType: IPv4
ports: [{name: web, port: 8080}, {port: 53, protocol: UDP}, {name: all}]
endpoints:
- {addresses: [10.0.0.1, 10.0.0.99], nodeName: n1, zone: z, hostname: h, targetRef: {kind: Pod, name: p}, hints: {forZones: [{name: z}], forNodes: [{name: n1}]}}
- {addresses: [10.0.0.2], conditions: {ready: false, serving: true, terminating: true}, targetRef: {kind: Node, name: n1}}
- {addresses: [10.0.0.3], conditions: {ready: false, serving: false}}
- {addresses: []}
`, want: &model.EndpointSlice{
			Name: name("a", "s-1"), Service: "s", Triggered: time.Date(2026, 1, 2, 3, 4, 5, 600000000, time.UTC), Ports: []model.EndpointPort{{Name: "web", Protocol: model.TCP, Port: 8080}, {Protocol: model.UDP, Port: 53}},
			Endpoints: []model.Endpoint{
				{Address: addr("10.0.0.1"), Ready: true, Serving: true, Node: "n1", Zone: "z", Hostname: "h", Pod: "p", HintZones: []string{"z"}, HintNodes: []string{"n1"}},
				{Address: addr("10.0.0.2"), Serving: true, Terminating: true},
				{Address: addr("10.0.0.3")},
			},
		}},
		{name: "headless slice of IPv6", text: "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: s-1, labels: {service.kubernetes.io/headless: \"\"}}\naddressType: IPv6\nendpoints: [{addresses: [\"fd00::1\"]}]\n", want: &model.EndpointSlice{
			Name: name("default", "s-1"), IPv6: true, Headless: true, Endpoints: []model.Endpoint{endpoint("fd00::1")},
		}},
		{name: "policy without types", text: "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p}\nspec: {podSelector: {}}\n", want: policy(model.NetworkPolicy{Name: name("default", "p")}, true, false)},
		{name: "policy", text: `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: p, namespace: a}
spec:
  podSelector: {matchLabels: {app: x}, matchExpressions: [{key: k, operator: In, values: [v, w]}, {key: l, operator: Exists}]}
  ingress:
  - from: [{podSelector: {}}, {namespaceSelector: {matchLabels: {o: m}}, podSelector: {matchLabels: {q: r}}}]
    ports: [{port: 80}, {port: web, protocol: UDP}, {protocol: SCTP}, {port: 1000, endPort: 2000}]
  egress:
  - to: [{ipBlock: {cidr: 10.0.0.5/8, except: [10.1.0.0/16]}}]
  - {}
`, want: policy(model.NetworkPolicy{
			Name: name("a", "p"),
			Pods: model.Selector{MatchLabels: map[string]string{"app": "x"}, Expressions: []model.SelectorExpression{{Key: "k", Operator: "In", Values: []string{"v", "w"}}, {Key: "l", Operator: "Exists"}}},
			Ingress: []model.PolicyRule{{
				Peers: []model.PolicyPeer{{Pods: &model.Selector{}}, {Namespaces: &model.Selector{MatchLabels: map[string]string{"o": "m"}}, Pods: &model.Selector{MatchLabels: map[string]string{"q": "r"}}}},
				Ports: []model.PolicyPort{{Protocol: model.TCP, Port: 80}, {Protocol: model.UDP, Name: "web"}, {Protocol: model.SCTP}, {Protocol: model.TCP, Port: 1000, End: 2000}},
			}},
			Egress: []model.PolicyRule{{Peers: []model.PolicyPeer{{CIDR: prefix("10.0.0.0/8"), Except: []netip.Prefix{prefix("10.1.0.0/16")}}}}, {}},
		}, true, true)},
		{name: "policy for egress only ignores ingress rules", text: "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p}\nspec: {podSelector: {}, policyTypes: [Egress], ingress: [{}]}\n", want: policy(model.NetworkPolicy{Name: name("default", "p")}, false, true)},
		{name: "service CIDR", text: "apiVersion: networking.k8s.io/v1\nkind: ServiceCIDR\nmetadata: {name: kubernetes}\nspec: {cidrs: [10.96.0.0/12, \"fd00::/112\"]}\n", want: &serviceRanges{prefix("10.96.0.0/12"), prefix("fd00::/112")}},
		{name: "block", text: "apiVersion: netctl.io/v1alpha1\nkind: Block\nmetadata: {name: 10-1-2-0-24}\nspec: {cidr: 10.1.2.0/24, node: n1}\n", want: &model.Block{CIDR: prefix("10.1.2.0/24"), Node: "n1"}},
		{name: "block pool", text: "apiVersion: netctl.io/v1alpha1\nkind: BlockPool\nmetadata: {name: default}\nspec: {ranges: [{cidr: 10.192.0.0/15, blockSize: 25}, {cidr: \"fd00::/102\", blockSize: 112}]}\n", want: &blockRanges{{CIDR: prefix("10.192.0.0/15"), Bits: 25}, {CIDR: prefix("fd00::/102"), Bits: 112}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			got, err := only(t, tc.text, tc.patch)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, got, comparers()); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

func TestConvertRefuses(t *testing.T) {
	t.Parallel()
	service := "apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec: "
	slice := "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: s}\n"
	policy := "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p}\nspec: "
	block := "apiVersion: netctl.io/v1alpha1\nkind: Block\nmetadata: {name: 10-1-2-0-24}\nspec: "
	for _, tc := range []struct{ name, text, want string }{
		{"node address", "apiVersion: v1\nkind: Node\nmetadata: {name: n1}\nstatus: {addresses: [{type: InternalIP, address: x}]}", `status.addresses: "x" is not an IP address`},
		{"zone", "apiVersion: v1\nkind: Node\nmetadata: {name: n1}\nstatus: {addresses: [{type: InternalIP, address: \"fe80::1%eth0\"}]}", `"fe80::1%eth0" is not an IP address`},
		{"pod CIDR", "apiVersion: v1\nkind: Node\nmetadata: {name: n1}\nspec: {podCIDRs: [10.0.0.0]}", `spec.podCIDRs: "10.0.0.0" is not an address range`},
		{"endpoints", "apiVersion: v1\nkind: Node\nmetadata: {name: n1, annotations: {netctl.io/endpoints: \"192.0.2.1:51820,192.0.2.2\"}}", `annotation netctl.io/endpoints: "192.0.2.2" is not an address and port`},
		{"pod address", "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nstatus: {podIPs: [{ip: 10.0.0.256}]}", `status.podIPs: "10.0.0.256"`},
		{"all of it", service + "{type: Foo, clusterIP: q, ports: [{port: 70000, protocol: ICMP}]}", `spec.type "Foo" is unknown; spec.clusterIPs: "q" is not an IP address; protocol "ICMP" is unknown; spec.ports.port 70000 is not a port`},
		{"timeout", service + "{sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 0}}}", "timeoutSeconds 0 is not within 1 and 86400"},
		{"type of a field", service + "{ports: [{port: eighty}]}", "spec.ports.port: have string, want number"},
		{"family", slice + "addressType: IPv6\nendpoints: [{addresses: [10.0.0.1]}]", "endpoint address 10.0.0.1 is not of the slice's addressType"},
		{"address type", slice + "addressType: IPX", `addressType "IPX" is unknown`},
		{"empty peer", policy + "{podSelector: {}, ingress: [{from: [{}]}]}", "spec.ingress[0]: a peer needs ipBlock, podSelector or namespaceSelector"},
		{"both kinds of peer", policy + "{podSelector: {}, egress: [{to: [{ipBlock: {cidr: 10.0.0.0/8}, podSelector: {}}]}]}", "spec.egress[0]: ipBlock cannot be combined with selectors"},
		{"range of a block", policy + "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [x]}}]}]}", `spec.ingress[0].ipBlock.except: "x" is not an address range`},
		{"port range", policy + "{podSelector: {}, ingress: [{ports: [{port: 80, endPort: 79}]}]}", "endPort 79 needs a numeric port that is not greater"},
		{"operator", policy + "{podSelector: {matchExpressions: [{key: a, operator: Is, values: [b]}]}}", `spec.podSelector: operator "Is" is unknown`},
		{"operator without values", policy + "{podSelector: {matchExpressions: [{key: a, operator: In}]}}", "operator In with 0 values"},
		{"policy type", policy + "{podSelector: {}, policyTypes: [Sideways]}", `spec.policyTypes: "Sideways" is unknown`},
		{"name of a block", block + "{cidr: 10.1.3.0/24, node: n1}", "metadata.name must be 10-1-3-0-24, which is the name of 10.1.3.0/24"},
		{"mask of a block", block + "{cidr: 10.1.2.1/24, node: n1}", "spec.cidr: 10.1.2.1/24 has bits beyond its mask"},
		{"size of a pool's blocks", "apiVersion: netctl.io/v1alpha1\nkind: BlockPool\nmetadata: {name: p}\nspec: {ranges: [{cidr: 10.0.0.0/16, blockSize: 15}]}", "spec.ranges[0].blockSize: 10.0.0.0/16 cannot be cut into blocks of /15"},
		{"node of a block", block + "{cidr: 10.1.2.0/24}", `spec.node: "" is not a node name`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			got, err := only(t, tc.text, false)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, %v, want the error %q", got, err, tc.want)
			}
		})
	}
}

func TestConvertIgnoresSlicesOfNames(t *testing.T) {
	t.Parallel()
	_, err := only(t, "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: s}\naddressType: FQDN\nendpoints: [{addresses: [x.example]}]\n", false)
	if !errors.Is(err, errIgnored) {
		t.Errorf("got %v", err)
	}
}
