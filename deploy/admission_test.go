package deploy_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// cluster is a real one with netctl installed and two nodes at least, which
// $KUBECTL reaches as its administrator. These tests leave nothing behind:
// writes are dry runs of the server, but for two blocks.
type cluster struct {
	t       *testing.T
	kubectl string
}

func realCluster(t *testing.T) cluster {
	t.Helper()
	c := cluster{t: t, kubectl: os.Getenv("KUBECTL")}
	if c.kubectl == "" {
		t.Skip("$KUBECTL does not name a kubectl that reaches a cluster with netctl")
	}
	return c
}

// run runs kubectl with what credentials name; nil is the administrator.
func (c cluster) run(credentials []string, stdin string, args ...string) (string, error) {
	c.t.Helper()
	cmd := exec.CommandContext(c.t.Context(), c.kubectl, append(credentials, args...)...)
	cmd.Stdin = strings.NewReader(stdin)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	return out.String(), err
}

func (c cluster) must(stdin string, args ...string) string {
	c.t.Helper()
	out, err := c.run(nil, stdin, args...)
	if err != nil {
		c.t.Fatalf("kubectl %v: %v\n%s", args, err, out)
	}
	return out
}

// as returns kubectl's flags for a token and nothing else.
func (c cluster) as(name, token string) []string {
	c.t.Helper()
	var config map[string]any
	if err := json.Unmarshal([]byte(c.must("", "config", "view", "--raw", "--minify", "-o", "json")), &config); err != nil {
		c.t.Fatal(err)
	}
	config["users"] = []any{map[string]any{"name": name, "user": map[string]any{"token": strings.TrimSpace(token)}}}
	clusters, _ := config["clusters"].([]any)
	first, _ := clusters[0].(map[string]any)
	config["contexts"] = []any{map[string]any{"name": name, "context": map[string]any{"cluster": first["name"], "user": name}}}
	config["current-context"] = name
	data, err := json.Marshal(config)
	if err != nil {
		c.t.Fatal(err)
	}
	file := filepath.Join(c.t.TempDir(), "kubeconfig")
	if err := os.WriteFile(file, data, 0o600); err != nil {
		c.t.Fatal(err)
	}
	return []string{"--kubeconfig=" + file}
}

// agent returns the credentials of an agent and the name of its node, and the
// name of another node that has an agent.
func (c cluster) agent() (credentials []string, node, other string) {
	c.t.Helper()
	lines := strings.Fields(c.must("", "-n", "kube-system", "get", "pods", "-l", "app.kubernetes.io/name=netctl,app.kubernetes.io/component=agent",
		"-o", `jsonpath={range .items[*]}{.metadata.name}={.spec.nodeName}{"\n"}{end}`))
	if len(lines) < 2 {
		c.t.Fatalf("agents %v, want two at least", lines)
	}
	pod, node, _ := strings.Cut(lines[0], "=")
	for _, line := range lines[1:] {
		if _, n, _ := strings.Cut(line, "="); n != node {
			other = n
		}
	}
	token := c.must("", "-n", "kube-system", "create", "token", "netctl", "--bound-object-kind=Pod", "--bound-object-name="+pod)
	return c.as("agent", token), node, other
}

const block = `{"apiVersion":"netctl.io/v1alpha1","kind":"Block","metadata":{"name":%q},"spec":{"cidr":%q,"node":%q}}`

const dnsService = `{"apiVersion":"v1","kind":"Service","metadata":{"name":%q,"namespace":%q},"spec":{%s"ports":[{"name":"dns","port":53,"protocol":"UDP"}]}}`

// TestAgentsWriteTheirOwnOnly: with the very credentials of an agent, what the
// agent does is let through, and what a compromised one might try is not.
func TestAgentsWriteTheirOwnOnly(t *testing.T) {
	c := realCluster(t)
	agent, node, other := c.agent()
	c.must(fmt.Sprintf(block, "198-18-1-0-24", "198.18.1.0/24", "a-node-that-is-gone"), "apply", "-f", "-")
	c.must(fmt.Sprintf(block, "198-18-2-0-24", "198.18.2.0/24", other), "apply", "-f", "-")
	c.must(fmt.Sprintf(block, "198-18-3-0-24", "198.18.3.0/24", node), "apply", "-f", "-")
	t.Cleanup(func() {
		_ = exec.Command(c.kubectl, "delete", "--ignore-not-found", "blocks", "198-18-1-0-24", "198-18-2-0-24", "198-18-3-0-24").Run()
	})
	unbound := c.as("unbound", c.must("", "-n", "kube-system", "create", "token", "netctl"))

	patch := func(node, body string) []string { return []string{"patch", "node", node, "--type=merge", "-p", body} }
	create := []string{"create", "-f", "-"}
	tests := []struct {
		name   string
		args   []string
		stdin  string
		denied string // "" is allowed
		as     []string
	}{
		{name: "own annotation", args: patch(node, `{"metadata":{"annotations":{"netctl.io/public-key":"x"}}}`)},
		{name: "own annotation away", args: patch(node, `{"metadata":{"annotations":{"netctl.io/public-key":null}}}`)},
		{name: "other node's annotation", args: patch(other, `{"metadata":{"annotations":{"netctl.io/public-key":"x"}}}`), denied: "may write its own Node only"},
		{name: "foreign annotation", args: patch(node, `{"metadata":{"annotations":{"example.com/a":"x"}}}`), denied: "annotations netctl.io/* only"},
		{name: "look-alike annotation", args: patch(node, `{"metadata":{"annotations":{"netctl.io.example.com/a":"x"}}}`), denied: "annotations netctl.io/* only"},
		{name: "foreign annotation away", args: patch(node, `{"metadata":{"annotations":{"volumes.kubernetes.io/controller-managed-attach-detach":null}}}`), denied: "annotations netctl.io/* only"},
		{name: "label", args: patch(node, `{"metadata":{"labels":{"node-role.kubernetes.io/x":""}}}`), denied: "nothing of a Node but annotations"},
		{name: "finalizer", args: patch(node, `{"metadata":{"finalizers":["netctl.io/x"]}}`), denied: "nothing of a Node but annotations"},
		{name: "spec", args: patch(node, `{"spec":{"unschedulable":true}}`), denied: "nothing of a Node but annotations"},
		{name: "status", args: append(patch(node, `{"status":{"phase":"x"}}`), "--subresource=status"), denied: "forbidden"},
		{name: "delete a node", args: []string{"delete", "node", node}, denied: "forbidden"},
		{name: "token without a node", as: unbound, args: patch(node, `{"metadata":{"annotations":{"netctl.io/public-key":"x"}}}`), denied: "may write its own Node only"},

		{name: "own block", args: create, stdin: fmt.Sprintf(block, "198-18-9-0-24", "198.18.9.0/24", node)},
		{name: "own IPv6 block", args: create, stdin: fmt.Sprintf(block, "2001-db8-9---64", "2001:db8:9::/64", node)},
		{name: "other node's block", args: create, stdin: fmt.Sprintf(block, "198-18-9-0-24", "198.18.9.0/24", other), denied: "Blocks of its own node only"},
		{name: "block without a node in the token", as: unbound, args: create, stdin: fmt.Sprintf(block, "198-18-9-0-24", "198.18.9.0/24", node), denied: "Blocks of its own node only"},
		{name: "the largest block", args: create, stdin: fmt.Sprintf(block, "198-18-0-0-20", "198.18.0.0/20", node)},
		{name: "a block of many nodes' size", args: create, stdin: fmt.Sprintf(block, "198-18-0-0-19", "198.18.0.0/19", node), denied: "Blocks of /20 or smaller"},
		{name: "an IPv6 block of many nodes' size", args: create, stdin: fmt.Sprintf(block, "2001-db8---63", "2001:db8::/63", node), denied: "of IPv6 of /64 or smaller"},
		{name: "change a block", args: []string{"patch", "block", "198-18-3-0-24", "--type=merge", "-p", `{"spec":{"node":"x"}}`}, denied: "forbidden"},
		{name: "delete an own block", args: []string{"delete", "block", "198-18-3-0-24"}},
		{name: "delete a block of a node that is gone", args: []string{"delete", "block", "198-18-1-0-24"}},
		{name: "delete another node's block", args: []string{"delete", "block", "198-18-2-0-24"}, denied: "and of nodes that are gone"},
		{name: "delete without a node in the token", as: unbound, args: []string{"delete", "block", "198-18-1-0-24"}, denied: "and of nodes that are gone"},
		{name: "delete all blocks", args: []string{"delete", "blocks", "--all"}, denied: "and of nodes that are gone"},
		{name: "block pool", args: create, stdin: `{"apiVersion":"netctl.io/v1alpha1","kind":"BlockPool","metadata":{"name":"x"},"spec":{"ranges":[]}}`, denied: "forbidden"},

		{name: "kube-dns", args: create, stdin: fmt.Sprintf(dnsService, "kube-dns", "kube-system", "")},
		{name: "another service", args: create, stdin: fmt.Sprintf(dnsService, "other", "kube-system", ""), denied: "kube-system/kube-dns and no other"},
		{name: "kube-dns elsewhere", args: create, stdin: fmt.Sprintf(dnsService, "kube-dns", "default", ""), denied: "forbidden"},
		{name: "kube-dns for everybody's traffic", args: create, stdin: fmt.Sprintf(dnsService, "kube-dns", "kube-system", `"externalIPs":["8.8.8.8"],`), denied: "without selector and external addresses"},
		{name: "kube-dns to chosen pods", args: create, stdin: fmt.Sprintf(dnsService, "kube-dns", "kube-system", `"selector":{"a":"b"},`), denied: "without selector and external addresses"},
		{name: "kube-dns as a node port", args: create, stdin: fmt.Sprintf(dnsService, "kube-dns", "kube-system", `"type":"NodePort",`), denied: "without selector and external addresses"},
		{name: "status of a service that is no load balancer", args: []string{"-n", "default", "patch", "service", "kubernetes", "--subresource=status", "--type=merge", "-p", `{"status":{"loadBalancer":{"ingress":[{"ip":"8.8.8.8"}]}}}`}, denied: "netctl agent"},
		{name: "delete kube-dns", args: []string{"-n", "kube-system", "delete", "service", "kube-dns"}, denied: "forbidden"},
		{name: "secrets", args: []string{"-n", "kube-system", "get", "secrets"}, denied: "forbidden"},
		{name: "other configuration", args: []string{"-n", "kube-system", "get", "configmap", "netctl"}, denied: "forbidden"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := cluster{t: t, kubectl: c.kubectl}
			credentials, args := agent, tt.args
			if tt.as != nil {
				credentials = tt.as
			}
			if tt.args[len(tt.args)-2] != "get" && !strings.Contains(strings.Join(tt.args, " "), " get ") {
				args = append(args, "--dry-run=server")
			}
			out, err := c.run(credentials, tt.stdin, args...)
			switch {
			case tt.denied != "" && (err == nil || !strings.Contains(out, tt.denied)):
				t.Errorf("%v: %s\nwant that it is refused with %q", err, out, tt.denied)
			case tt.denied == "" && err != nil && !strings.Contains(out, "already exists"), // which storage says, behind admission
				tt.denied == "" && err != nil && strings.Contains(out, "denied"):
				t.Errorf("%v: %s\nwant that it is allowed", err, out)
			}
		})
	}
}

// TestDefinitionsCheck: objects of our kinds that no agent could use do not get
// into the cluster.
func TestDefinitionsCheck(t *testing.T) {
	c := realCluster(t)
	const pool = `{"apiVersion":"netctl.io/v1alpha1","kind":"BlockPool","metadata":{"name":"x"},"spec":{"ranges":[{"cidr":%q,"blockSize":%d}]}}`
	for _, tt := range []struct{ name, object, refused string }{
		{"block", fmt.Sprintf(block, "198-18-9-0-24", "198.18.9.0/24", "n"), ""},
		{"IPv6 block", fmt.Sprintf(block, "fd00-10-244-1---64", "fd00:10:244:1::/64", "n"), ""},
		{"IPv6 block with a dash first", fmt.Sprintf(block, "0---8", "::/8", "n"), ""},
		{"name of another range", fmt.Sprintf(block, "198-18-8-0-24", "198.18.9.0/24", "n"), "metadata.name must be spec.cidr"},
		{"host bits", fmt.Sprintf(block, "198-18-9-1-24", "198.18.9.1/24", "n"), "without bits beyond its mask"},
		{"long spelling", fmt.Sprintf(block, "fd00-0---64", "fd00:0::/64", "n"), "in its shortest spelling"},
		{"capitals", fmt.Sprintf(block, "fd00-a---64", "FD00:A::/64", "n"), "in its shortest spelling"},
		{"IPv4 in IPv6", fmt.Sprintf(block, "--ffff-198-18-9-0-120", "::ffff:198.18.9.0/120", "n"), "in its shortest spelling"},
		{"no range", fmt.Sprintf(block, "ten", "ten", "n"), "must be an address range"},
		{"no node", fmt.Sprintf(block, "198-18-9-0-24", "198.18.9.0/24", ""), "spec.node"},
		{"pool", fmt.Sprintf(pool, "10.0.0.0/8", 24), ""},
		{"IPv6 pool", fmt.Sprintf(pool, "fd00::/56", 112), ""},
		{"blocks larger than the pool", fmt.Sprintf(pool, "10.0.0.0/16", 15), "between the range's own prefix length"},
		{"blocks smaller than an address", fmt.Sprintf(pool, "10.0.0.0/16", 33), "between the range's own prefix length"},
		{"pool with host bits", fmt.Sprintf(pool, "10.0.0.1/16", 24), "without bits beyond its mask"},
		{"unknown field", `{"apiVersion":"netctl.io/v1alpha1","kind":"BlockPool","metadata":{"name":"x"},"spec":{"range":[]}}`, "unknown field"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			out, err := c.run(nil, tt.object, "create", "--dry-run=server", "--validate=strict", "-f", "-")
			if tt.refused == "" && err != nil || tt.refused != "" && (err == nil || !strings.Contains(out, tt.refused)) {
				t.Errorf("%v: %s\nwant %q", err, out, tt.refused)
			}
		})
	}
	c.must(fmt.Sprintf(block, "198-18-4-0-24", "198.18.4.0/24", "a-node-that-is-gone"), "apply", "-f", "-")
	t.Cleanup(func() {
		_ = exec.Command(c.kubectl, "delete", "--ignore-not-found", "block", "198-18-4-0-24").Run()
	})
	if out, err := c.run(nil, "", "patch", "block", "198-18-4-0-24", "--type=merge", "-p", `{"spec":{"node":"other"}}`); err == nil || !strings.Contains(out, "cannot be changed") {
		t.Errorf("a block was changed: %v: %s", err, out)
	}
}
