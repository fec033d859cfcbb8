package days_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// dayUninstalled: no node and no API object remembers netctl, and it can be
// installed again.
func dayUninstalled(t *testing.T, c *cluster) string {
	netctl, err := filepath.Abs("../../../bin/netctl")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(netctl); err != nil {
		t.Fatalf("%v: make build", err)
	}
	nodes, err := c.nodes()
	if err != nil {
		t.Fatal(err)
	}
	c.get(t, "delete", "namespace", "days") // pods go before their network does
	said := c.control(t, "run", "--", netctl, "uninstall")
	for _, n := range nodes {
		for what, command := range map[string]string{
			"interfaces": `ip -o link | grep -v ': lo:\|: eth0@'`,
			"routes":     "ip route show table all proto 157; ip -6 route show table all proto 157",
			"rules":      `ip rule | grep -v 'lookup \(local\|main\|default\)'`,
			"files":      "find /run/netctl* /var/lib/netctl /etc/cni/net.d/*netctl* /opt/cni/bin/* 2>/dev/null",
			"namespaces": "ls /run/netns | grep cni-",
			"sockets":    `ss -Hltunp | grep ':51820 \|netctl'`,
		} {
			if out, err := c.on(n, "sh", "-c", "("+command+") || true"); err != nil || out != "" {
				t.Errorf("%s: %s are left: %v\n%s", n, what, err, out)
			}
		}
	}
	kinds := strings.Fields(c.get(t, "api-resources", "--verbs=list", "-o", "name"))
	kinds = slices.DeleteFunc(kinds, func(k string) bool { return strings.HasPrefix(k, "events") })
	for line := range strings.Lines(c.get(t, "get", strings.Join(kinds, ","), "-A", "-o", "name")) {
		if strings.Contains(line, "netctl") {
			t.Errorf("object is left: %s", line)
		}
	}
	if out, err := c.try("-n", "kube-system", "get", "svc", "kube-dns", "-o", "name"); err == nil {
		t.Errorf("the Service of the name server is left: %s", out)
	}
	for line := range strings.Lines(c.get(t, "get", "nodes", "-o", "yaml")) {
		if strings.Contains(line, "netctl.io/") {
			t.Errorf("annotation of a node is left: %s", line)
		}
	}
	if t.Failed() {
		t.Logf("uninstall said:\n%s", said)
	}
	c.get(t, "apply", "-f", "../../../deploy/netctl.yaml")
	c.get(t, "wait", "node", "--all", "--for=condition=Ready", "--timeout=60s")
	c.get(t, "-n", "kube-system", "rollout", "status", "ds/netctl", "--timeout=60s")
	c.furnish(t)
	return "no interface, route, file or object was left on " + strings.Join(nodes, ", ") + " or in the API; installed again, it serves"
}
