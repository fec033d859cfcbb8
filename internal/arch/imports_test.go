package arch_test

import (
	"maps"
	"slices"
	"strings"
	"testing"
)

// row says which packages of the project one package may import, and why it is
// not more.
type row struct {
	imports []string
	tests   []string // what only its tests may import besides
	reason  string
}

// rows has one row per package; what is not listed is denied. Imports point
// down: cmd constructs, agent and lab compose, features stand side by side and
// do not know each other, and all rest on a few shared packages above model.
var rows = map[string]row{
	"cmd/netctl": {
		imports: []string{
			"cni", "cni/shim", "deploy", "deploy/removal", "dns", "dns/corefile", "dns/options", "internal/agent", "internal/agent/cleanup", "internal/agent/probe", "internal/agent/status", "internal/agent/settings",
			"internal/cluster", "internal/cluster/objects", "internal/dnsnode", "internal/holder", "internal/lab", "internal/model", "internal/packet", "internal/proxynode",
			"ipam", "proxy", "proxy/balance", "proxy/health",
		},
		reason: "the only place that constructs across features",
	},

	"deploy": {
		reason: "a chart and its renderer; knows nothing of what it installs",
	},
	"deploy/removal": {
		imports: []string{"deploy", "internal/cluster/objects"},
		reason:  "deletes what was installed; the nodes are cleaned by programs of their own",
	},
	"deploy/image": {
		imports: []string{"deploy"},
		reason:  "packs binaries under the name that the chart gives the image",
	},

	"internal/agent": {
		imports: []string{
			"cni", "dns", "dns/metrics", "dns/options", "internal/agent/balancer", "internal/agent/claim", "internal/agent/confirm", "internal/agent/estate", "internal/agent/handover", "internal/agent/hold", "internal/agent/install", "internal/agent/limits", "internal/agent/loop",
			"internal/agent/port", "internal/agent/probe", "internal/agent/record", "internal/agent/settings", "internal/agent/status", "internal/cluster",
			"internal/datapath", "internal/drain", "internal/flow", "internal/kernel", "internal/mapfile", "internal/model", "internal/netstack", "internal/nodeport", "internal/notice", "internal/offload", "internal/packet", "internal/policy", "internal/rawport", "internal/shape", "ipam", "overlay", "proxy", "proxy/balance", "proxy/health",
		},
		reason: "composes the features of one node; it never knows the lab",
	},
	"internal/agent/settings": {
		imports: []string{"internal/model"},
		reason:  "pure functions of what the file, the cluster and the node say",
	},
	"internal/agent/confirm": {
		imports: []string{"internal/agent/handover", "internal/agent/settings", "internal/cluster"},
		reason:  "waits for the cluster where another agent serves, and knows nothing of serving",
	},
	"internal/agent/handover": {
		imports: []string{"internal/kernel"},
		reason:  "a lock, and descriptors under names; what they are is the agents' affair",
	},
	"internal/agent/estate": {
		imports: []string{"cni", "internal/holder", "internal/kernel", "internal/model"},
		reason:  "the names of what one process leaves to the next, and the holder that keeps it",
	},
	"internal/holder": {
		imports: []string{"internal/kernel"},
		reason:  "names and descriptors; the less it knows the less can end it",
	},
	"internal/agent/cleanup": {
		imports: []string{"cni", "internal/agent/estate", "internal/agent/handover", "internal/agent/record", "internal/kernel"},
		reason:  "takes away what an agent made, without being one",
	},
	"internal/agent/limits": {
		imports: []string{"cni", "internal/agent/status", "internal/model", "internal/shape"},
		reason:  "a pod's limits, from the words of the cluster and of the runtime to those of who has them hold",
	},
	"internal/agent/record": {
		imports: []string{"cni", "internal/datapath", "internal/model", "internal/nodeport"},
		reason:  "a file per pod interface, in the words of those who make and number it",
	},
	"internal/agent/port": {
		imports: []string{"dns", "internal/datapath", "internal/kernel", "internal/packet", "overlay"},
		reason:  "each part of a node as the router writes to it",
	},
	"internal/agent/status": {
		reason: "what is said of an agent, and the socket for it; whoever asks needs no part of one",
	},
	"internal/agent/loop": {
		reason: "turns whatever it is given",
	},
	"internal/agent/hold": {
		imports: []string{"cni"},
		reason:  "keeps apart who works on one attachment",
	},
	"internal/agent/install": {
		imports: []string{"cni"},
		reason:  "calls the installation again and again",
	},
	"internal/agent/claim": {
		imports: []string{"internal/agent/settings", "internal/cluster", "internal/model", "ipam"},
		reason:  "what a node tells the cluster, whoever carries it there",
	},
	"internal/agent/probe": {
		reason: "a socket and two questions",
	},
	"internal/dnsnode": {
		imports: []string{"dns", "dns/metrics", "dns/options", "internal/agent/probe", "internal/model"},
		reason:  "the name server alone; it knows no packets",
	},
	"internal/proxynode": {
		imports: []string{
			"internal/agent/probe", "internal/kernel", "internal/model", "internal/netstack", "internal/nodeport", "internal/notice", "internal/packet", "proxy", "proxy/health",
		},
		tests:  []string{"internal/cluster"},
		reason: "composes the service proxy alone; it knows neither the agent nor the datapath",
	},
	"proxy/maglev": {
		reason: "arithmetic",
	},
	"proxy/balance": {
		imports: []string{"internal/model"},
		reason:  "pure functions of the cluster's state",
	},
	"proxy/health": {
		imports: []string{"internal/model", "internal/quota"},
		reason:  "sockets and what they answer; it is told what there is to say",
	},
	"internal/announce": {
		tests:  []string{"internal/kernel"},
		reason: "sockets that answer for addresses; it is told which",
	},
	"internal/agent/balancer": {
		imports: []string{"internal/agent/alive", "internal/announce", "internal/kernel", "internal/model", "ipam", "overlay", "proxy/balance"},
		reason:  "composes what load balancer addresses need; the loop tells it what is in force",
	},
	"internal/agent/alive": {
		reason: "questions and answers between addresses; whose they are is given to it",
	},
	"internal/notice": {
		imports: []string{"internal/model"},
		reason:  "what is said once, and how often; who writes it down is given to it",
	},
	"internal/lab": {
		imports: []string{"cni", "internal/agent/settings", "internal/cluster", "internal/kernel", "internal/model", "ipam", "overlay"},
		tests:   []string{"internal/agent/status"},
		reason:  "plays the cluster around agents that run as processes, so it needs none of their parts",
	},

	"internal/cluster": {
		imports: []string{"internal/cluster/apiserver", "internal/cluster/statefile", "internal/model"},
		reason:  "turns objects into a State and nothing else",
	},
	"internal/cluster/apiserver": {
		reason: "carries HTTP requests; what they say is the source's affair",
	},
	"internal/cluster/statefile": {
		imports: []string{"internal/model"},
		reason:  "a State in a file",
	},
	"internal/cluster/objects": {
		reason: "single objects as plain maps; knows no kind",
	},
	"internal/datapath": {
		imports: []string{"internal/flow", "internal/kernel", "internal/packet", "internal/policy", "internal/shape", "proxy"},
		tests:   []string{"internal/agent", "internal/packet/packettest", "internal/vnet"},
		reason:  "reads the tables of proxy and policy by their concrete types; the one feature that imports another",
	},
	"internal/netstack": {
		imports: []string{"internal/packet", "internal/quota", "internal/splice"},
		tests:   []string{"internal/drain", "internal/kernel", "internal/model", "internal/nodeport"},
		reason:  "a port: packets in, packets out; sockets are given to it as functions",
	},
	"internal/drain": {
		imports: []string{"internal/netstack", "internal/nodeport", "internal/packet"},
		reason:  "a wire between the sockets of two processes; it says what both of these packages have to say",
	},
	"internal/rawport": {
		imports: []string{"internal/packet"},
		tests:   []string{"internal/datapath", "internal/flow", "internal/kernel", "internal/netstack", "internal/policy", "proxy"},
		reason:  "a port: packets in, packets out; what it sends with is given to it as a function",
	},
	"internal/nodeport": {
		imports: []string{"internal/model", "internal/quota", "internal/splice"},
		reason:  "sockets; the way into the cluster and the choice of backends are given to it as functions",
	},
	"overlay": {
		imports: []string{"internal/model", "internal/packet", "overlay/handshake", "overlay/pathmtu", "overlay/sessions", "overlay/udp"},
		tests:   []string{"overlay/overlaytest"},
		reason:  "a port, and peers compiled from the State",
	},
	"overlay/handshake": {
		reason: "messages in, messages out: what is parsed for strangers is kept apart from what acts on it",
	},
	"overlay/pathmtu": {
		reason: "a search without clock and sockets; who asks and answers is the engine's affair",
	},
	"overlay/sessions": {
		imports: []string{"internal/mapfile"},
		reason:  "a file of key pairs; what they are for is the engine's affair",
	},
	"overlay/udp": {
		reason: "sockets; what the datagrams say is the engine's affair",
	},
	"overlay/overlaytest": {
		reason: "an underlay in memory for tests of anything that has an overlay",
	},
	"proxy": {
		imports: []string{"internal/mapfile", "internal/model", "internal/packet", "internal/portable", "internal/sharemap", "proxy/maglev"},
		reason:  "a pure table, and the clients' affinities, which outlive tables and the process",
	},
	"dns": {
		imports: []string{"dns/metrics", "dns/options", "internal/model", "internal/quota", "internal/sharemap"},
		reason:  "messages in, messages out; packets are the agent's affair",
	},
	"dns/corefile": {
		imports: []string{"dns/options"},
		reason:  "text in, options out; who works by them is not its affair",
	},
	"dns/metrics": {
		reason: "counts numbers; what they mean is in their names",
	},
	"dns/options": {
		reason: "plain values and their file",
	},
	"ipam": {
		imports: []string{"internal/model"},
		reason:  "arithmetic on prefixes and a record on disk",
	},
	"cni": {
		imports: []string{"cni/queue", "cni/shim", "cni/wire", "internal/kernel", "internal/model"},
		reason:  "the server's side of the plugin; the agent gives it a backend",
	},
	"cni/plugin": {
		imports: []string{"cni/shim"},
		reason:  "must start within milliseconds: the standard library and the shim only",
	},
	"cni/shim": {
		imports: []string{"cni/queue", "cni/wire"},
		reason:  "runs in the plugin's process, so it may link nothing that is slow to start",
	},
	"cni/queue": {
		imports: []string{"cni/wire"},
		reason:  "runs in the plugin's process, so it may link nothing that is slow to start",
	},
	"cni/wire": {
		reason: "runs in the plugin's process, so it may link nothing that is slow to start",
	},

	"internal/vnet": {
		imports: []string{
			"dns", "internal/agent", "internal/agent/port", "internal/datapath", "internal/flow", "internal/model", "internal/packet",
			"internal/packet/packettest", "ipam", "overlay", "overlay/overlaytest", "proxy",
		},
		reason: "a cluster in a test, made of what the agent is made of; imported by tests only",
	},
	"test/bench": {
		imports: []string{"internal/agent/status", "internal/cluster", "internal/kernel", "internal/lab", "test/bench/cost", "test/bench/ends", "test/bench/results", "test/bench/rivals", "test/figures"},
		reason:  "measures from outside, as the lab's user; it reads what an agent says of itself",
	},
	"test/bench/cost": {
		reason: "reads /proc; what runs there is not its affair",
	},
	"test/bench/ends": {
		imports: []string{"internal/kernel"},
		reason:  "sockets in network namespaces; what is between them is not its affair",
	},
	"test/bench/results": {
		reason: "numbers and files only",
	},
	"test/bench/rivals": {
		imports: []string{"internal/kernel"},
		reason:  "namespaces and programs that are not netctl",
	},

	"test/kube": {
		imports: []string{"test/kube/cache", "test/kube/machine", "test/kube/oci"},
		reason:  "plays the machines of real clusters; netctl is an image and a manifest to it",
	},
	"test/kube/cache": {
		imports: []string{"test/kube/oci"},
		reason:  "runs compilers and writes images",
	},
	"test/kube/days": {
		tests:  []string{"internal/agent/record", "internal/agent/status", "test/kube/machine"},
		reason: "tests only: it breaks real clusters and reads the agents' books; the clusters are test/kube's, by its command",
	},
	"test/kube/machine": {
		reason: "namespaces only; what runs in them is the cluster's affair",
	},
	"test/kube/oci": {
		reason: "files only",
	},
	"test/kube/pause": {
		reason: "the program in every pod's sandbox: the standard library only",
	},

	"test/figures": {
		reason: "numbers only",
	},
	"test/kube/speed": {
		imports: []string{"internal/agent/status", "internal/kernel", "test/figures"},
		reason:  "measures from outside; it reads what an agent says of itself and enters a pod's network",
	},

	"test/restart": {
		imports: []string{"internal/agent/settings", "internal/cluster", "internal/kernel", "internal/lab", "internal/mapfile", "test/figures", "test/kube/machine", "test/restart/agents", "test/restart/load"},
		reason:  "breaks agents from outside, in labs and on real clusters, while load runs",
	},
	"test/restart/agents": {
		imports: []string{"internal/agent/status", "test/figures"},
		reason:  "processes as the kernel shows them, and what an agent says of itself",
	},
	"test/dns": {
		imports: []string{"test/figures"},
		tests:   []string{"dns", "internal/cluster", "internal/model"},
		reason:  "compares the name server with another one from outside",
	},
	"test/restart/load": {
		imports: []string{"internal/kernel"},
		reason:  "sockets in network namespaces; what they are the namespaces of is not its affair",
	},

	"internal/flow": {
		imports: []string{"internal/mapfile", "internal/packet", "internal/portable"},
		reason:  "a table of tuples; verdicts are numbers to it",
	},
	"internal/mapfile": {
		reason: "words in a file; what they mean is the user's affair",
	},
	"internal/portable": {
		reason: "fields with numbers; what they mean is the user's affair",
	},
	"internal/policy": {
		imports: []string{"internal/model", "internal/packet"},
		reason:  "a pure table",
	},
	"internal/kernel": {
		reason: "plain arguments, so that anyone can use it and a fake is a small interface at the user's",
	},
	"internal/packet": {
		tests:  []string{"internal/packet/packettest"},
		reason: "bytes only",
	},
	"internal/packet/packettest": {
		reason: "builds and checks packets independently of package packet, so that it can test it",
	},
	"internal/splice": {
		reason: "bytes from one connection to another",
	},
	"internal/sharemap": {
		reason: "a data structure; tables that are compiled again and again share it",
	},
	"internal/offload": {
		imports: []string{"internal/kernel", "internal/packet"},
		reason:  "tries what the kernel grants; who acts upon it is the caller's affair",
	},
	"internal/shape": {
		imports: []string{"internal/packet"},
		reason:  "rates and a queue; whose packets they are is the caller's affair",
	},
	"internal/quota": {
		reason: "counts per address; whoever bounds its clients uses it",
	},
	"internal/model": {
		reason: "plain values; the standard library only",
	},
	"internal/arch": {
		reason: "reads source, runs nothing",
	},
}

func TestEveryPackageHasARow(t *testing.T) {
	t.Parallel()
	s := mustSource(t)
	for _, name := range slices.Sorted(maps.Keys(s.packages)) {
		if _, ok := rows[name]; !ok {
			t.Errorf("package %s has no row in rows: a new package is a decision, write down what it may import and why", name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(rows)) {
		r := rows[name]
		if s.packages[name] == nil {
			t.Errorf("rows: package %s does not exist", name)
		}
		if r.reason == "" {
			t.Errorf("rows: package %s has no reason", name)
		}
		for _, imported := range slices.Concat(r.imports, r.tests) {
			if s.packages[imported] == nil {
				t.Errorf("rows: %s may import %s, which does not exist", name, imported)
			}
		}
	}
}

func TestImportsPointDown(t *testing.T) {
	t.Parallel()
	for name, p := range mustSource(t).packages {
		r := rows[name]
		used := map[string]bool{}
		for _, f := range p.files {
			for _, imported := range f.imports {
				target, ok := internalName(imported)
				if !ok || target == name && f.test {
					continue
				}
				switch {
				case slices.Contains(r.imports, target):
					used[target] = true
				case f.test && slices.Contains(r.tests, target):
					used[target] = true
				default:
					t.Errorf("%s imports %s, which %s may not: %s", f.path, target, name, r.reason)
				}
			}
		}
		for _, allowed := range slices.Concat(r.imports, r.tests) {
			if !used[allowed] {
				t.Errorf("rows: %s may import %s but does not: remove the permission", name, allowed)
			}
		}
	}
}

// TestPluginStaysSmall: the plugin runs once per pod and operation, and Go
// initialises everything that a program links before main.
func TestPluginStaysSmall(t *testing.T) {
	t.Parallel()
	s := mustSource(t)
	heavy := []string{"net", "net/http", "net/netip", "log/slog", "text/template", "regexp"}
	seen := map[string]bool{}
	var visit func(name string)
	visit = func(name string) {
		if seen[name] {
			return
		}
		seen[name] = true
		for _, f := range s.packages[name].files {
			if f.test {
				continue
			}
			for _, imported := range f.imports {
				if target, ok := internalName(imported); ok {
					visit(target)
					continue
				}
				if !standard(imported) || slices.Contains(heavy, imported) {
					t.Errorf("%s imports %s: the CNI plugin links it, and it costs milliseconds of every pod start", f.path, imported)
				}
			}
		}
	}
	visit("cni/plugin")
	if len(seen) < 2 {
		t.Errorf("the plugin consists of %v only: this test looks at the wrong package", strings.Join(slices.Sorted(maps.Keys(seen)), " "))
	}
}
